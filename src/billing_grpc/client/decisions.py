"""Ask the server for decisions, and answer with the fallback whenever there is no usable answer.

A decision never raises: without a usable answer it is `platform_managed`, every listed key is refused and stripped, and
`resolution.error` says why (contract, sections 2 and 3).
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import fallback, verified
from billing_grpc.client.calls import NO_WORKSPACE, Calls, WorkspaceId
from billing_grpc.client.fallback_log import record_fallback
from billing_grpc.errors import AnswerInvalid, BillingError, InvalidArgument
from billing_grpc.model import (
    BillingMode,
    ProvisionPlan,
    Resolution,
    ResolutionError,
    SecretVerdict,
    SecretWriteDecision,
)
from billing_grpc.secret_keys import KeyList, can_be_sent

_RESOLVE_MANY: Final = "BatchResolveBillingModes"
Item = TypeVar("Item")
Decision = TypeVar("Decision")


class Decisions:
    """The decisions of one client.

    Args:
        calls: makes the calls.
        keys: the vendor keys, as the caller knows them.
    """

    def __init__(self, calls: Calls, keys: KeyList) -> None:
        self._calls = calls
        self._keys = keys

    async def resolve(
        self,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        *,
        org_default: str | None = None,
        timeout: float | None = None,
    ) -> Resolution:
        """Return who pays for a workspace, and why. Never raises (contract, section 2).

        Args:
            workspace_id: the workspace; empty before it exists.
            org_default: assume this org default instead of the published one.
            timeout: seconds, instead of the client's.
        """
        asked = str(workspace_id)

        async def ask() -> Resolution:
            request = service_pb.ResolveBillingModeRequest(workspace_id=asked, org_default=org_default)
            answer = await self._calls.call(
                lambda stub: stub.ResolveBillingMode, "ResolveBillingMode", request, timeout
            )
            return verified.resolution(answer.resolution, asked, what_if=org_default)

        return await _decide("ResolveBillingMode", ask, lambda error: fallback.resolution(asked, error))

    async def resolve_many(
        self, workspace_ids: Iterable[WorkspaceId], *, timeout: float | None = None
    ) -> list[Resolution]:
        """Return who pays for each of these workspaces, in their order, duplicates included. Never raises.

        A call asks for at most a thousand ids and has its own timeout. A malformed id gets the fallback; the other ids are
        not affected.

        Args:
            workspace_ids: the workspaces.
            timeout: seconds for each call, instead of the client's.
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
            return _verified_each(answer.resolutions, batch)

        def fall_back(error: ResolutionError) -> list[Resolution]:
            return [fallback.resolution(each, error) for each in batch]

        return await _decide(_RESOLVE_MANY, ask, fall_back, decisions=len(batch))

    async def validate_secret_write(
        self,
        secret_keys: Iterable[str],
        *,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        org_wide: bool = False,
        timeout: float | None = None,
    ) -> SecretWriteDecision:
        """Return whether secrets may be stored under these names. Never raises (contract, section 4).

        Args:
            secret_keys: the names; never a value. A malformed name is refused; the other names are not affected.
            workspace_id: where the secrets would be stored; empty before the workspace exists.
            org_wide: store them for the whole organisation instead.
            timeout: seconds, instead of the client's.
        """
        names, asked, began = key_names(secret_keys), "" if org_wide else str(workspace_id), time.monotonic()
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
        # The mode may change between two calls: return the resolution that explains the refusals.
        decided.sort(key=lambda each: (each.error is None, each.mode is not BillingMode.PLATFORM_MANAGED))
        return SecretWriteDecision(allowed, tuple(verdicts.values()), decided[0] if decided else None)

    async def _validate(
        self, sent: Sequence[str], asked: str, timeout: float | None, began: float, *, org_wide: bool
    ) -> SecretWriteDecision:
        method = "ValidateSecretWrite"
        doubted: Iterable[int] = ()

        async def ask() -> SecretWriteDecision:
            nonlocal doubted
            # An empty list, or one with a malformed name, is refused without asking the server.
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

        return await _decide(method, ask, fall_back)

    async def plan_provision_env(
        self,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        env_keys: Iterable[str] = (),
        *,
        timeout: float | None = None,
    ) -> ProvisionPlan:
        """Return what to strip from a container's environment and what to set; `provision.apply` does it. Never raises.

        A plan whose resolution has an error is safe, but wrong for a tenant with its own key: ask again within the start
        budget before you apply it (contract, section 5).

        Args:
            workspace_id: the container's workspace; empty before it exists.
            env_keys: the names present in the environment; never a value. A malformed name is not sent.
            timeout: seconds, instead of the client's.
        """
        present, method, asked = key_names(env_keys), "PlanProvisionEnv", str(workspace_id)
        # A name that is not UTF-8 cannot be sent; it must not turn the plan into a fallback (contract, section 5).
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
            # The first answer decides; the others add the names that the server strips of their batch.
            return verified.stripping(plans[0], wanted, present, self._keys)

        def fall_back(error: ResolutionError) -> ProvisionPlan:
            return fallback.provision_plan(asked, present, error, self._keys, also_strip=wanted)

        return await _decide(method, ask, fall_back)


def key_names(keys: Iterable[object]) -> list[str]:
    """Return the names as strings.

    A single string is one name: as a list of letters, each letter would be allowed. An object that is not a string becomes
    a malformed name, which is refused and does not show the object's value.
    """
    given = [keys] if isinstance(keys, str) else list(keys)
    return [key if isinstance(key, str) else f"<{type(key).__name__}>" for key in given]


async def _decide(
    name: str,
    ask: Callable[[], Awaitable[Decision]],
    fall_back: Callable[[ResolutionError], Decision],
    *,
    decisions: int = 1,
) -> Decision:
    """Return what `ask` returns, or the fallback if it raises. Raise nothing but the cancellation of the task.

    Args:
        name: the method's bare name.
        ask: makes the call and reads the answer.
        fall_back: returns the fallback for an error.
        decisions: how many decisions get the fallback at once.
    """
    try:
        return await ask()
    except Exception as error:  # noqa: BLE001 - a bug of ours gets the fallback too; `record_fallback` logs the traceback
        return fall_back(record_fallback(name, error, decisions))


def _batches(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _verified_each(messages: Iterable[pb.BillingModeResolution], asked: Sequence[str]) -> list[Resolution]:
    """Return each usable resolution, and the fallback for each that is not usable."""
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
    """Return the fallback for each of these positions; log one line for all of them."""
    if not wrong:
        return {}
    error = record_fallback(_RESOLVE_MANY, next(iter(wrong.values())), len(wrong))
    return {position: fallback.resolution(ids[position], error) for position in wrong}
