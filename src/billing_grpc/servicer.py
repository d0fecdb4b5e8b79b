"""The RPCs of BillingModeService: each checks its request, loads, decides and answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from billing_grpc import convert, provision, validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.caller import current_principal
from billing_grpc.errors import STORAGE_ERRORS, DatabaseTimeout, NotImplementedYet, StorageError, WorkspaceNotFound
from billing_grpc.metrics import Metrics
from billing_grpc.model import (
    NO_WORKSPACE,
    Resolution,
    ResolutionError,
    SecretKeyVerdict,
    SecretVerdict,
    StoredOverride,
)
from billing_grpc.repository import Repository
from billing_grpc.resolver import resolve, resolve_new_workspace, resolve_organisation
from billing_grpc.secrets import KeyList

ANSWER_MARGIN: Final = 0.05
"""Seconds of a call's time left that storage may not use: the answer has to travel too."""

log = structlog.stdlib.get_logger(__name__)


class CallContext(Protocol):
    """The part of a gRPC context that the servicer uses."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None when it has none."""
        ...


class BillingModeService(service_grpc.BillingModeServiceServicer):
    """Answers the contract from a repository and an org default.

    Args:
        repository: where overrides are stored.
        org_default: the organisation's default as published, asked anew for every call.
        keys: the vendor keys.
        storage_timeout: seconds of storage that a call may use.
        metrics: where decisions are counted.
    """

    def __init__(
        self,
        repository: Repository,
        org_default: Callable[[], str | None],
        keys: KeyList,
        storage_timeout: float,
        metrics: Metrics,
    ) -> None:
        self._repository = repository
        self._org_default = org_default
        self._keys = keys
        self._storage_timeout = storage_timeout
        self._metrics = metrics

    async def ResolveBillingMode(  # noqa: N802 - the contract's name
        self, request: service_pb.ResolveBillingModeRequest, context: CallContext
    ) -> service_pb.ResolveBillingModeResponse:
        """Who pays for this workspace, and why. Total (contract, sections 2 and 3)."""
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        what_if = request.HasField("org_default")
        org_default = request.org_default if what_if else self._org_default()
        resolution = await self._decide(workspace_id, org_default, context, what_if=what_if)
        return service_pb.ResolveBillingModeResponse(resolution=convert.resolution_to_proto(resolution))

    async def BatchResolveBillingModes(  # noqa: N802 - the contract's name
        self, request: service_pb.BatchResolveBillingModesRequest, context: CallContext
    ) -> service_pb.BatchResolveBillingModesResponse:
        """Who pays for these workspaces, in one read. Total (contract, section 3)."""
        ids = validation.batch_ids(request.workspace_ids)
        org_default = self._org_default()
        overrides = await self._load_many(ids, context)
        decided = {each: resolve(each, overrides.get(each, NO_WORKSPACE), org_default) for each in dict.fromkeys(ids)}
        resolutions = [decided[each] for each in ids]
        self._note(resolutions)
        return service_pb.BatchResolveBillingModesResponse(
            resolutions=[convert.resolution_to_proto(each) for each in resolutions]
        )

    async def GetWorkspaceBillingMode(  # noqa: N802 - the contract's name
        self, request: service_pb.GetWorkspaceBillingModeRequest, context: CallContext
    ) -> service_pb.GetWorkspaceBillingModeResponse:
        """The billing mode of an existing workspace. Truthful (contract, section 3)."""
        workspace_id = validation.workspace_id(request.workspace_id)
        override = await self._load(workspace_id, context)
        resolution = resolve(workspace_id, override, self._org_default())
        if resolution.error is not None:
            raise STORAGE_ERRORS[resolution.error.reason](attachments=(resolution,))
        if override == NO_WORKSPACE:
            raise _not_found()
        return service_pb.GetWorkspaceBillingModeResponse(
            billing_mode=pb.WorkspaceBillingMode(resolution=convert.resolution_to_proto(resolution))
        )

    async def SetWorkspaceBillingMode(  # noqa: N802 - the contract's name
        self, request: service_pb.SetWorkspaceBillingModeRequest, context: CallContext
    ) -> service_pb.SetWorkspaceBillingModeResponse:
        """Sets or clears a workspace's own mode. Truthful, safe to repeat (contract, section 3)."""
        workspace_id = validation.workspace_id(request.workspace_id)
        mode = convert.change_from_proto(request)
        reason = validation.reason(request.reason)
        if request.etag or request.validate_only:
            field = "etag" if request.etag else "validate_only"
            raise NotImplementedYet(f"{field} is not implemented by this version of the server; leave it out")
        change = await self._repository.save_override(workspace_id, mode, budget=self._budget(context))
        if change.previous == NO_WORKSPACE:
            raise _not_found()
        org_default = self._org_default()
        previous = resolve(workspace_id, change.previous, org_default)
        current = resolve(workspace_id, change.current, org_default)
        if change.previous != change.current:
            log.info(
                "workspace billing mode changed",
                workspace=workspace_id,
                previous_override=change.previous.text,
                new_override=change.current.text,
                principal=current_principal.get().name,
                reason=reason,
            )
        return service_pb.SetWorkspaceBillingModeResponse(
            billing_mode=pb.WorkspaceBillingMode(resolution=convert.resolution_to_proto(current)),
            previous=convert.resolution_to_proto(previous),
        )

    async def ValidateSecretWrite(  # noqa: N802 - the contract's name
        self, request: service_pb.ValidateSecretWriteRequest, context: CallContext
    ) -> service_pb.ValidateSecretWriteResponse:
        """May secrets be stored under these names. Total (contract, section 4)."""
        scope = convert.secret_scope_from_proto(request)
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        names = validation.secret_names(request.secret_keys)
        org_wide = scope == "org_wide"
        resolution: Resolution | None = None
        if any(self._keys.needs_mode(name) for name in names):
            if org_wide:
                resolution = resolve_organisation(self._org_default())
                self._note([resolution])
            else:
                resolution = await self._decide(workspace_id, self._org_default(), context)
        verdicts = [
            self._keys.judge(key, name, resolution, org_wide=org_wide)
            for key, name in zip(request.secret_keys, names, strict=True)
        ]
        blocked = [
            (name, verdict)
            for name, verdict in zip(names, verdicts, strict=True)
            if verdict.verdict is not SecretVerdict.ALLOWED
        ]
        self._note_blocked(blocked, workspace_id, resolution)
        return service_pb.ValidateSecretWriteResponse(
            allowed=not blocked,
            verdicts=[convert.verdict_to_proto(verdict) for verdict in verdicts],
            resolution=None if resolution is None else convert.resolution_to_proto(resolution),
        )

    async def PlanProvisionEnv(  # noqa: N802 - the contract's name
        self, request: service_pb.PlanProvisionEnvRequest, context: CallContext
    ) -> service_pb.PlanProvisionEnvResponse:
        """What to strip from a container's environment and what to set. Total (contract, section 5)."""
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        env_keys = validation.env_keys(request.env_keys)
        resolution = await self._decide(workspace_id, self._org_default(), context)
        # These words are contract: operators search their logs for them.
        log.info(
            f"workspace_provision: billing mode workspace={resolution.workspace_id} resolved={resolution.mode}"  # noqa: G004 - so it must be one text
            f" source={resolution.source} org_default={resolution.org_default}",
        )
        return convert.plan_to_proto(provision.plan(resolution, self._keys, env_keys))

    async def ListBillingModeChanges(  # noqa: N802 - the contract's name
        self, request: service_pb.ListBillingModeChangesRequest, context: CallContext
    ) -> service_pb.ListBillingModeChangesResponse:
        """The change log, which this version of the server does not keep yet."""
        del request, context
        raise NotImplementedYet("the change log is not implemented by this version of the server")

    async def _decide(
        self, workspace_id: str | None, org_default: str | None, context: CallContext, *, what_if: bool = False
    ) -> Resolution:
        if workspace_id is None:
            resolution = resolve_new_workspace(org_default, what_if=what_if)
        else:
            override = await self._load(workspace_id, context)
            resolution = resolve(workspace_id, override, org_default, what_if=what_if)
        self._note([resolution])
        return resolution

    async def _load(self, workspace_id: str, context: CallContext) -> StoredOverride | ResolutionError:
        try:
            return await self._repository.load_override(workspace_id, budget=self._budget(context))
        except StorageError as error:
            return ResolutionError(error.reason, error.message)

    async def _load_many(
        self, workspace_ids: Sequence[str], context: CallContext
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        wanted = dict.fromkeys(workspace_ids)
        try:
            return await self._repository.load_overrides(wanted, budget=self._budget(context))
        except StorageError as error:
            return dict.fromkeys(wanted, ResolutionError(error.reason, error.message))

    def _budget(self, context: CallContext) -> float:
        """Seconds of storage this call may use.

        Raises:
            DatabaseTimeout: none are left, so the database is not asked at all.
        """
        left = context.time_remaining()
        budget = self._storage_timeout if left is None else min(left - ANSWER_MARGIN, self._storage_timeout)
        if budget <= 0:
            raise DatabaseTimeout
        return budget

    def _note(self, resolutions: Sequence[Resolution]) -> None:
        for resolution in resolutions:
            self._metrics.count_resolution(resolution)
        degraded = [(each, each.error) for each in resolutions if each.error is not None]
        if degraded:
            first, error = degraded[0]
            log.warning(
                "billing mode could not be read, defaulting to platform_managed for safety",
                workspace=first.workspace_id,
                reason=error.reason,
                org_default=first.org_default.value,
                affected=len(degraded),
            )

    def _note_blocked(
        self,
        blocked: Sequence[tuple[str, SecretKeyVerdict]],
        workspace_id: str | None,
        resolution: Resolution | None,
    ) -> None:
        for name, verdict in blocked:
            self._metrics.count_blocked_write(verdict.verdict)
            log.info(
                "secret write blocked",
                workspace=workspace_id or "",
                key=name,
                verdict=verdict.verdict.value,
                principal=current_principal.get().name,
                mode=None if resolution is None else resolution.mode.value,
                source=None if resolution is None else resolution.source.value,
            )


def _not_found() -> WorkspaceNotFound:
    return WorkspaceNotFound("there is no workspace with this id; check it, or create the workspace first")
