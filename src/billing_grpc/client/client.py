"""The client: decisions that are always answered, closed when nobody can be asked, and administration that is truthful.

A decision (`resolve`, `resolve_many`, `validate_secret_write`, `plan_provision_env`) never raises, whatever happens to the
call: without an answer that can be used it is `platform_managed`, with every listed key refused and stripped, and
`resolution.error` says why (contract, sections 2 and 3). Administration (`get`, `set`, `inherit`, `changes`) raises the
errors of `errors`. Every call has a deadline, and is retried as the shipped service config says.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import fallback, verified
from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.calls import MAX_TIMEOUT, Calls, fallback_error
from billing_grpc.client.channel import Dialer
from billing_grpc.client.tls import ClientTls
from billing_grpc.errors import AnswerInvalid, BillingError, InvalidArgument
from billing_grpc.model import (
    BillingMode,
    BillingModeUpdate,
    Change,
    ProvisionPlan,
    Resolution,
    ResolutionError,
    SecretVerdict,
    SecretWriteDecision,
    WorkspaceBillingMode,
)
from billing_grpc.secret_keys import KeyList, can_be_sent, normalise
from billing_grpc.wire.messages import MODE_FROM_PROTO, MODE_TO_PROTO

__all__ = ["BillingClient", "ClientTls", "TokenSource", "WorkspaceId"]

WorkspaceId = str | uuid.UUID
_NO_WORKSPACE: Final = ""
_RESOLVE_MANY: Final = "BatchResolveBillingModes"
Item = TypeVar("Item")


class BillingClient:
    """Asks one server, for as long as the application lives.

    It works on one event loop at a time: on a new loop, when the old one has ended, it connects anew. While the old one
    runs, and in a process that was forked after gRPC was used, decisions are closed with CLIENT_MISUSED, and administration
    raises `ClientMisused`.

    Args:
        target: as gRPC takes it: `host:port`, `unix:/path`, `dns:///name:port`.
        token: a file that holds a bearer token, or what returns one; asked at every call, so that tokens rotate.
        tls: how to know the server; None speaks plain text, which shows a token to this machine only.
        extra_blocked_keys: names that the server's configuration adds to the vendor keys, which a client without an answer
            could not know.
        timeout: seconds that a call may take; None for what the shipped service config says (5).
        metadata: sent with every call besides ours, as what stands between may want it; bytes under a key that ends in
            `-bin`.

    Raises:
        ValueError: a token without TLS for another machine, a key that is no name, metadata that gRPC would refuse or that
            is ours to send, or a timeout that is none.
        TypeError: a token that is neither a path nor a callable.
    """

    def __init__(
        self,
        target: str,
        *,
        token: TokenSource | None = None,
        tls: ClientTls | None = None,
        extra_blocked_keys: Iterable[str] = (),
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        extra = {key: normalise(key) for key in _names(extra_blocked_keys)}
        if wrong := [key for key, name in extra.items() if name is None]:
            raise ValueError(f"extra_blocked_keys: not names of keys: {wrong}")
        if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"timeout: must be more than 0 and at most {MAX_TIMEOUT} seconds; it is {timeout}")
        self._keys = KeyList(name for name in extra.values() if name is not None)
        self._calls = Calls(Dialer(target, token=token, tls=tls), timeout, metadata)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls that run; what is decided afterwards is closed."""
        await self._calls.close()

    async def resolve(
        self,
        workspace_id: WorkspaceId = _NO_WORKSPACE,
        *,
        org_default: str | None = None,
        timeout: float | None = None,
    ) -> Resolution:
        """Who pays for a workspace, and why. Never raises (contract, section 2).

        Args:
            workspace_id: the workspace; empty before it exists.
            org_default: supposes this org default instead of the published one.
            timeout: seconds, instead of the client's.
        """
        asked = str(workspace_id)

        async def ask() -> Resolution:
            request = service_pb.ResolveBillingModeRequest(workspace_id=asked, org_default=org_default)
            answer = await self._calls.call(
                lambda stub: stub.ResolveBillingMode, "ResolveBillingMode", request, timeout
            )
            return verified.resolution(answer.resolution, asked, what_if=org_default)

        return await self._calls.decide("ResolveBillingMode", ask, lambda error: fallback.resolution(asked, error))

    async def resolve_many(
        self, workspace_ids: Iterable[WorkspaceId], *, timeout: float | None = None
    ) -> list[Resolution]:
        """Who pays for these workspaces, in their order, duplicates included. Never raises.

        Asks for a thousand at a time, each time with a deadline of its own. An id that is none is closed by itself and does
        not close its neighbours.
        """
        ids = [workspace_ids] if isinstance(workspace_ids, str) else [str(each) for each in workspace_ids]
        wrong: dict[int, InvalidArgument] = {}
        for position, each in enumerate(ids):
            try:
                validation.workspace_id(each)
            except InvalidArgument as error:
                wrong[position] = error
        found = _fallbacks(ids, wrong)
        askable = [position for position in range(len(ids)) if position not in wrong]
        for batch in _batches(askable, validation.MAX_BATCH):
            answered = await self._resolve_batch([ids[position] for position in batch], timeout)
            found.update(zip(batch, answered, strict=True))
        return [found[position] for position in range(len(ids))]

    async def _resolve_batch(self, batch: Sequence[str], timeout: float | None) -> list[Resolution]:
        async def ask() -> list[Resolution]:
            request = service_pb.BatchResolveBillingModesRequest(workspace_ids=batch)
            answer = await self._calls.call(lambda stub: stub.BatchResolveBillingModes, _RESOLVE_MANY, request, timeout)
            about = [each.workspace_id for each in answer.resolutions]
            if about != [each.lower() for each in batch]:
                raise AnswerInvalid("the server's answer cannot be used: it is not about the workspaces of the request")
            return _usable(answer.resolutions, batch)

        def fall_back(error: ResolutionError) -> list[Resolution]:
            return [fallback.resolution(each, error) for each in batch]

        return await self._calls.decide(_RESOLVE_MANY, ask, fall_back, decisions=len(batch))

    async def validate_secret_write(
        self,
        secret_keys: Iterable[str],
        *,
        workspace_id: WorkspaceId = _NO_WORKSPACE,
        org_wide: bool = False,
        timeout: float | None = None,
    ) -> SecretWriteDecision:
        """May secrets be stored under these names. Never raises (contract, section 4).

        Args:
            secret_keys: the names; never a value. What is no key's name is refused by itself, and closes nothing else.
            workspace_id: where they would be stored; empty before the workspace exists.
            org_wide: for the whole organisation instead.
            timeout: seconds, instead of the client's.
        """
        names, asked, began = _names(secret_keys), "" if org_wide else str(workspace_id), time.monotonic()
        askable = [position for position, name in enumerate(names) if can_be_sent(name)]
        if not askable:
            return await self._validate(names, asked, timeout, began, org_wide=org_wide)
        verdicts = {position: fallback.invalid_name(name) for position, name in enumerate(names)}
        decided: list[Resolution] = []
        for batch in _batches(askable, validation.MAX_SECRET_KEYS):
            sent = [names[position] for position in batch]
            decision = await self._validate(sent, asked, timeout, began, org_wide=org_wide)
            verdicts.update(zip(batch, decision.verdicts, strict=True))
            decided += [] if decision.resolution is None else [decision.resolution]
        allowed = all(each.verdict is SecretVerdict.ALLOWED for each in verdicts.values())
        # Between two calls the mode may have changed: the one that refused says why.
        decided.sort(key=lambda each: (each.error is None, each.mode is not BillingMode.PLATFORM_MANAGED))
        return SecretWriteDecision(allowed, tuple(verdicts.values()), decided[0] if decided else None)

    async def _validate(
        self, sent: Sequence[str], asked: str, timeout: float | None, began: float, *, org_wide: bool
    ) -> SecretWriteDecision:
        method = "ValidateSecretWrite"
        doubted: Iterable[int] = ()

        async def ask() -> SecretWriteDecision:
            nonlocal doubted
            # No name at all, or what can be none, needs no server to be refused.
            validation.secret_names(sent)
            request = service_pb.ValidateSecretWriteRequest(secret_keys=sent)
            if org_wide:
                request.org_wide.SetInParent()
            else:
                request.workspace_id = asked
            call = self._calls.call
            try:
                answer = await call(lambda stub: stub.ValidateSecretWrite, method, request, timeout, since=began)
            except AnswerInvalid:
                doubted = range(len(sent))
                raise
            try:
                decision = verified.secret_write(answer, sent, asked, self._keys, org_wide=org_wide)
            except AnswerInvalid:
                doubted = verified.doubted(answer, sent)
                raise
            if not verified.lacks_mode(decision):
                return decision
            question = service_pb.ResolveBillingModeRequest(workspace_id=asked)
            name = "ResolveBillingMode"
            found = await call(lambda stub: stub.ResolveBillingMode, name, question, timeout, since=began)
            answer.resolution.CopyFrom(found.resolution)
            return verified.secret_write(answer, sent, asked, self._keys, org_wide=org_wide)

        def fall_back(error: ResolutionError) -> SecretWriteDecision:
            return fallback.secret_write(asked, sent, error, self._keys, doubted=doubted)

        return await self._calls.decide(method, ask, fall_back)

    async def plan_provision_env(
        self,
        workspace_id: WorkspaceId = _NO_WORKSPACE,
        env_keys: Iterable[str] = (),
        *,
        timeout: float | None = None,
    ) -> ProvisionPlan:
        """What to strip from a container's environment and what to set; `provision.apply` does it. Never raises.

        A plan whose resolution has an error is safe, but wrong for a tenant on its own key: ask again within the start
        budget before applying it (contract, section 5).

        Args:
            workspace_id: the container's workspace; empty before it exists.
            env_keys: the names present in the environment; never a value. Those that can be no key's name are not sent.
            timeout: seconds, instead of the client's.
        """
        present, method, asked = _names(env_keys), "PlanProvisionEnv", str(workspace_id)
        # A name that is not even UTF-8 cannot be sent, and must not close the plan (contract, section 5).
        askable = [key for key in present if can_be_sent(key)]
        wanted: list[str] = []
        began = time.monotonic()

        async def ask() -> ProvisionPlan:
            plans: list[ProvisionPlan] = []
            for batch in _batches(askable, validation.MAX_ENV_KEYS) or [[]]:
                request = service_pb.PlanProvisionEnvRequest(workspace_id=asked, env_keys=batch)
                call = self._calls.call
                answer = await call(lambda stub: stub.PlanProvisionEnv, method, request, timeout, since=began)
                wanted.extend(answer.strip_keys)
                plans.append(verified.provision_plan(answer, present, asked, self._keys))
                if plans[0].resolution.mode is not BillingMode.PLATFORM_MANAGED:
                    break
            # The first answer decides; the others add what the server strips of further names.
            return verified.stripping(plans[0], wanted, present, self._keys)

        def fall_back(error: ResolutionError) -> ProvisionPlan:
            return fallback.provision_plan(asked, present, error, self._keys, also_strip=wanted)

        return await self._calls.decide(method, ask, fall_back)

    async def get(self, workspace_id: WorkspaceId) -> WorkspaceBillingMode:
        """The billing mode of an existing workspace.

        Raises:
            BillingError: `WorkspaceNotFound`, `InvalidArgument`, a `StorageError`, or one of the rest of the tree.
        """
        asked = str(workspace_id)
        request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=asked)
        answer = await self._calls.call(lambda stub: stub.GetWorkspaceBillingMode, "GetWorkspaceBillingMode", request)
        return verified.workspace(answer.billing_mode, asked)

    async def set(
        self,
        workspace_id: WorkspaceId,
        mode: BillingMode,
        *,
        reason: str = "",
        etag: str = "",
        validate_only: bool = False,
    ) -> BillingModeUpdate:
        """Gives a workspace its own mode, from its next start on. May be repeated.

        Args:
            workspace_id: the workspace.
            mode: its mode from now on.
            reason: why, for the change log; at most 500 characters.
            etag: writes only if this is still the workspace's; empty writes unconditionally.
            validate_only: checks everything and writes nothing.

        Raises:
            BillingError: `EtagStale` with the current `WorkspaceBillingMode` attached, `WorkspaceNotFound`,
                `InvalidArgument`, or one of the rest of the tree. After a `StorageError`, `ServerUnreachable` or
                `AnswerInvalid` the outcome is unknown: repeat the call.
        """
        request = service_pb.SetWorkspaceBillingModeRequest(mode=MODE_TO_PROTO[BillingMode(mode)])
        return await self._set(request, str(workspace_id), reason, etag, validate_only=validate_only)

    async def inherit(
        self, workspace_id: WorkspaceId, *, reason: str = "", etag: str = "", validate_only: bool = False
    ) -> BillingModeUpdate:
        """Makes a workspace inherit the organisation's default again. Arguments, answer and errors as `set`."""
        request = service_pb.SetWorkspaceBillingModeRequest(inherit=pb.Inherit())
        return await self._set(request, str(workspace_id), reason, etag, validate_only=validate_only)

    async def changes(
        self, workspace_id: WorkspaceId = _NO_WORKSPACE, *, page_size: int = 0
    ) -> AsyncGenerator[Change[str], None]:
        """The recorded changes of one workspace, or of all, newest first; asks for a page when the last one is used up.

        Raises:
            BillingError: `InvalidArgument`, a `StorageError`, or one of the rest of the tree.
        """
        request = service_pb.ListBillingModeChangesRequest(workspace_id=str(workspace_id), page_size=page_size)
        seen = set()
        while True:
            answer = await self._calls.call(lambda stub: stub.ListBillingModeChanges, "ListBillingModeChanges", request)
            for each in answer.changes:
                yield verified.change(each, request.workspace_id)
            if not answer.next_page_token:
                return
            if answer.next_page_token in seen:
                raise AnswerInvalid("the server's answer cannot be used: it leads back to an earlier page")
            seen.add(answer.next_page_token)
            request.page_token = answer.next_page_token

    async def _set(
        self,
        request: service_pb.SetWorkspaceBillingModeRequest,
        workspace_id: str,
        reason: str,
        etag: str,
        *,
        validate_only: bool,
    ) -> BillingModeUpdate:
        request.workspace_id, request.reason, request.etag = workspace_id, reason, etag
        request.validate_only = validate_only
        answer = await self._calls.call(lambda stub: stub.SetWorkspaceBillingMode, "SetWorkspaceBillingMode", request)
        wanted = MODE_FROM_PROTO[request.mode].value if request.HasField("mode") else None
        return verified.update(answer, workspace_id, wanted)


def _batches(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _names(keys: Iterable[object]) -> list[str]:
    """The names; a text alone is one name and not its letters, of which each would be allowed."""
    given = [keys] if isinstance(keys, str) else list(keys)
    # What is no text can be no name either: it is asked about as one that never is, and its value is shown to nobody.
    return [key if isinstance(key, str) else f"<{type(key).__name__}>" for key in given]


def _usable(messages: Iterable[pb.BillingModeResolution], asked: Sequence[str]) -> list[Resolution]:
    """Each resolution that can be used; the others closed, without closing their neighbours."""
    found: dict[int, Resolution] = {}
    wrong: dict[int, AnswerInvalid] = {}
    for position, message in enumerate(messages):
        try:
            found[position] = verified.resolution(message, asked[position])
        except AnswerInvalid as error:
            wrong[position] = error
    found |= _fallbacks(asked, wrong)
    return [found[position] for position in range(len(asked))]


def _fallbacks(ids: Sequence[str], wrong: Mapping[int, BillingError]) -> dict[int, Resolution]:
    """The closed resolutions of these positions; one line in the log for all of them."""
    if not wrong:
        return {}
    error = fallback_error(_RESOLVE_MANY, next(iter(wrong.values())), len(wrong))
    return {position: fallback.resolution(ids[position], error) for position in wrong}
