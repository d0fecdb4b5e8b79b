"""Decide about vendor keys, and answer with the fallback whenever there is no usable answer.

A decision never raises: without a usable answer every listed key is refused and stripped, and `resolution.error` says why.
"""

import time
from collections.abc import Iterable, Sequence

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import fallback, verified_keys
from billing_grpc.client.calls import NO_WORKSPACE, Calls, WorkspaceId
from billing_grpc.client.catalogue_log import CatalogueLog
from billing_grpc.client.deciding import PAUSE, Attempts, batches, decide
from billing_grpc.errors import AnswerInvalid, ClientMisused
from billing_grpc.model import (
    BillingMode,
    Catalogue,
    ProvisionPlan,
    Resolution,
    ResolutionError,
    SecretVerdict,
    SecretWriteDecision,
)
from billing_grpc.secret_keys import KeyList, can_be_sent, names_in


class KeyDecisions:
    """The decisions of one client about vendor keys.

    Args:
        calls: makes the calls.
        keys: the vendor keys, as the caller knows them.
    """

    def __init__(self, calls: Calls, keys: KeyList) -> None:
        self._calls = calls
        self._keys = keys
        self._catalogues = CatalogueLog(keys.catalogue)

    async def validate_secret_write(
        self,
        secret_keys: Iterable[str],
        *,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        org_wide: bool = False,
        timeout: float | None = None,
    ) -> SecretWriteDecision:
        """Return whether secrets may be stored under these names. Never raises.

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
        catalogues: list[Catalogue | None] = []
        for batch in batches(askable, validation.MAX_SECRET_KEYS):
            sent = [names[position] for position in batch]
            decision = await self._validate(sent, asked, timeout, began, org_wide=org_wide)
            verdicts.update(zip(batch, decision.verdicts, strict=True))
            decided += [] if decision.resolution is None else [decision.resolution]
            catalogues.append(decision.catalogue)
        allowed = all(each.verdict is SecretVerdict.ALLOWED for each in verdicts.values())
        # The mode may change between two calls: return the resolution that explains the refusals.
        decided.sort(key=lambda each: (each.error is None, each.mode is not BillingMode.PLATFORM_MANAGED))
        return SecretWriteDecision(allowed, tuple(verdicts.values()), decided[0] if decided else None, catalogues[0])

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
                decision = verified_keys.secret_write(answer, sent, asked, self._keys, org_wide=org_wide)
            except AnswerInvalid:
                doubted = verified_keys.doubted(answer, sent)
                raise
            self._catalogues.compare(method, decision.catalogue)
            if not verified_keys.lacks_mode(decision):
                return decision
            question = service_pb.ResolveBillingModeRequest(workspace_id=asked)
            name = "ResolveBillingMode"
            found = await call(lambda stub: stub.ResolveBillingMode, name, question, timeout, since=began)
            answer.resolution.CopyFrom(found.resolution)
            return verified_keys.secret_write(answer, sent, asked, self._keys, org_wide=org_wide)

        def fall_back(error: ResolutionError) -> SecretWriteDecision:
            return fallback.secret_write(asked, sent, error, self._keys, doubted=doubted)

        return await decide(method, ask, fall_back)

    async def plan_provision_env(
        self,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        env_keys: Iterable[str] | None = None,
        *,
        timeout: float | None = None,
        retry_for: float = 0,
    ) -> ProvisionPlan:
        """Return what to strip from a container's environment and what to set; `provision.apply` does it. Never raises.

        A plan whose resolution has an error is safe, but wrong for a tenant with its own key: give `retry_for` the seconds
        that the start of the container may wait for the right one.

        Args:
            workspace_id: the container's workspace; empty before it exists.
            env_keys: the names present in the environment; never a value. A malformed name is not sent; the names that a
                program could read from it are sent instead. `None` asks for every vendor key.
            timeout: seconds for each attempt, instead of the client's.
            retry_for: ask again for this many seconds in total while the answer has an error; 0 asks once.
        """
        present = None if env_keys is None else key_names(env_keys)
        attempts = Attempts(retry_for)
        while True:
            plan = await self._plan(str(workspace_id), present, timeout, attempts)
            if plan.resolution.error is None or attempts.over():
                return plan
            try:
                await self._calls.pause(PAUSE)
            except ClientMisused:
                return plan

    async def _plan(
        self, asked: str, present: Sequence[str] | None, timeout: float | None, attempts: Attempts
    ) -> ProvisionPlan:
        method = "PlanProvisionEnv"
        askable = list(dict.fromkeys(each for key in present or () for each in _sendable(key)))
        wanted: list[str] = []
        suspects: list[str] = []
        began = time.monotonic()

        async def ask() -> ProvisionPlan:
            plans: list[ProvisionPlan] = []
            limit = attempts.limit(self._calls.terms.seconds(method, timeout))
            for batch in batches(askable, validation.MAX_ENV_KEYS) or [[]]:
                request = service_pb.PlanProvisionEnvRequest(workspace_id=asked, env_keys=batch)
                call = self._calls.call
                answer = await call(lambda stub: stub.PlanProvisionEnv, method, request, limit, since=began)
                wanted.extend(answer.strip_keys)
                suspects.extend(answer.suspect_keys)
                plans.append(verified_keys.provision_plan(answer, present, asked, self._keys))
                self._catalogues.compare(method, plans[-1].catalogue)
                if plans[0].resolution.mode is not BillingMode.PLATFORM_MANAGED:
                    break
            # The first answer decides; the others add the names that the server strips of their batch.
            return verified_keys.completed(plans[0], wanted, suspects, present, self._keys)

        def fall_back(error: ResolutionError) -> ProvisionPlan:
            return fallback.provision_plan(asked, present, error, self._keys, also_strip=wanted)

        return await decide(method, ask, fall_back)


def _sendable(key: str) -> Iterable[str]:
    """Return the names to ask about instead of a variable's name: itself, or those that a program could read from it.

    A malformed name may not be UTF-8, which must not turn the plan into a fallback, and after an `=` it may hold a value.
    """
    return [key] if can_be_sent(key) else [each for each in names_in(key.partition("=")[0]) if can_be_sent(each)]


def key_names(keys: Iterable[object]) -> list[str]:
    """Return the names as strings.

    A single string is one name: as a list of letters, each letter would be allowed. An object that is not a string becomes
    a malformed name, which is refused and does not show the object's value.
    """
    given = [keys] if isinstance(keys, str) else list(keys)
    return [key if isinstance(key, str) else f"<{type(key).__name__}>" for key in given]
