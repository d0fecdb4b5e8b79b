"""The RPCs of BillingModeService: each checks its request, loads, decides and answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from billing_grpc import page_token, provision, validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import EtagStale, StorageError, WorkspaceNotFound
from billing_grpc.model import (
    NO_WORKSPACE,
    BillingMode,
    ChangeNote,
    OverrideChange,
    Resolution,
    ResolutionError,
    SecretVerdict,
    StoredOverride,
    WorkspaceBillingMode,
    WorkspaceRecord,
)
from billing_grpc.page_token import LogPosition
from billing_grpc.resolver import resolve, resolve_new_workspace, resolve_organisation
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.call import RequestContext
from billing_grpc.server.decision_log import DecisionLog
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.workspace_lists import WorkspaceLists
from billing_grpc.storage.repository import Repository
from billing_grpc.suspects import suspect_keys
from billing_grpc.wire import messages
from billing_grpc.wire.metadata import ACTOR


@dataclass(slots=True)
class _Decided:
    """The decision for one override, and how many workspaces of a batch have it.

    Attributes:
        resolution: that of the first workspace.
        before: what an answer holds before the workspace's id.
        after: what it holds after the id.
        workspaces: how many have it.
    """

    resolution: Resolution
    before: bytes
    after: bytes
    workspaces: int = 0


class BillingModeService(WorkspaceLists):
    """Implement the contract over a repository and an org default.

    Args:
        repository: where overrides are stored.
        org_default: returns the organisation's default as it is published now; called for every decision.
        keys: the vendor keys.
        storage_timeout: seconds of storage that a call may use, at most.
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
        super().__init__(repository, org_default, storage_timeout)
        self._keys = keys
        self._log = DecisionLog(metrics)

    async def ResolveBillingMode(
        self, request: service_pb.ResolveBillingModeRequest, call: RequestContext
    ) -> service_pb.ResolveBillingModeResponse:
        """Answer who pays for a workspace, and why. Never fails for want of the database."""
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        call.workspace = workspace_id or ""
        what_if = request.HasField("org_default")
        org_default = request.org_default if what_if else self._org_default()
        resolution = await self._decide(workspace_id, org_default, call, what_if=what_if)
        return service_pb.ResolveBillingModeResponse(resolution=messages.resolution_to_proto(resolution))

    async def BatchResolveBillingModes(
        self, request: service_pb.BatchResolveBillingModesRequest, call: RequestContext
    ) -> service_pb.BatchResolveBillingModesResponse:
        """Answer who pays for several workspaces, with one read. Never fails for want of the database."""
        ids = validation.batch_ids(request.workspace_ids)
        call.workspace = len(ids)
        what_if = request.HasField("org_default")
        org_default = request.org_default if what_if else self._org_default()
        overrides = await self._load_many(ids, call)
        # The rule looks at nothing but the override, so each different override is decided and serialised once: the answers
        # for its workspaces differ in the id alone. A message for each workspace takes twice as long.
        parts: list[bytes] = []
        decided: dict[StoredOverride | ResolutionError, _Decided] = {}
        for each in ids:
            override = overrides.get(each, NO_WORKSPACE)
            if (same := decided.get(override)) is None:
                resolution = resolve(each, override, org_default, what_if=what_if)
                same = decided[override] = _Decided(resolution, *messages.bytes_around_id(resolution))
            same.workspaces += 1
            parts += (same.before, each.encode(), same.after)
        self._log.resolved([(each.resolution, each.workspaces) for each in decided.values()], what_if=what_if)
        return service_pb.BatchResolveBillingModesResponse.FromString(b"".join(parts))

    async def GetWorkspaceBillingMode(
        self, request: service_pb.GetWorkspaceBillingModeRequest, call: RequestContext
    ) -> service_pb.GetWorkspaceBillingModeResponse:
        """Return the billing mode of an existing workspace. Fails if the database cannot be read."""
        workspace_id = validation.workspace_id(request.workspace_id)
        call.workspace = workspace_id
        record = await self._load_record(workspace_id, call)
        return service_pb.GetWorkspaceBillingModeResponse(
            billing_mode=messages.billing_mode_to_proto(self._view(workspace_id, record))
        )

    async def SetWorkspaceBillingMode(
        self, request: service_pb.SetWorkspaceBillingModeRequest, call: RequestContext
    ) -> service_pb.SetWorkspaceBillingModeResponse:
        """Set or clear a workspace's own mode. Fails if the database cannot be used; safe to repeat."""
        workspace_id = validation.workspace_id(request.workspace_id)
        call.workspace = workspace_id
        mode = messages.change_from_proto(request)
        by = ChangeNote(
            call.caller.name, validation.reason(request.reason), call.request_id, validation.actor(call.sent(ACTOR))
        )
        etag = validation.etag(request.etag)
        if request.validate_only:
            change = await self._would_save(workspace_id, mode, etag, call)
        else:
            budget = self._budget.of(call)
            change = await self._repository.save_override(workspace_id, mode, by=by, etag=etag, budget=budget)
        previous, current = self._view(workspace_id, change.previous), self._view(workspace_id, change.current)
        if change.stale:
            message = "the workspace changed since this etag was read; read it again, decide again, send its etag"
            raise EtagStale(message, attachments=(previous,))
        if change.writes and not request.validate_only:
            self._log.changed(workspace_id, change, by)
        return service_pb.SetWorkspaceBillingModeResponse(
            billing_mode=messages.billing_mode_to_proto(current),
            previous=messages.resolution_to_proto(previous.resolution),
        )

    async def _would_save(
        self, workspace_id: str, mode: BillingMode | None, etag: str, call: RequestContext
    ) -> OverrideChange:
        """Return the change that `save_override` would make; write nothing, and so keep the etag."""
        previous = await self._repository.load_record(workspace_id, budget=self._budget.of(call))
        return OverrideChange.planned(previous, mode, etag)

    async def ValidateSecretWrite(
        self, request: service_pb.ValidateSecretWriteRequest, call: RequestContext
    ) -> service_pb.ValidateSecretWriteResponse:
        """Answer whether secrets may be stored under these names. Never fails for want of the database."""
        scope = validation.secret_scope(request.WhichOneof("scope"))
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        call.workspace = workspace_id or ""
        names = validation.secret_names(request.secret_keys)
        org_wide = scope == "org_wide"
        resolution: Resolution | None = None
        if any(self._keys.needs_mode(name) for name in names):
            if org_wide:
                resolution = resolve_organisation(self._org_default())
                self._log.resolved([(resolution, 1)])
            else:
                resolution = await self._decide(workspace_id, self._org_default(), call)
        verdicts = [
            self._keys.judge(key, name, resolution, org_wide=org_wide)
            for key, name in zip(request.secret_keys, names, strict=True)
        ]
        blocked = [
            (name, verdict)
            for name, verdict in zip(names, verdicts, strict=True)
            if verdict.verdict is not SecretVerdict.ALLOWED
        ]
        self._log.blocked(blocked, workspace_id or "", resolution, call.caller)
        return service_pb.ValidateSecretWriteResponse(
            allowed=not blocked,
            verdicts=[messages.verdict_to_proto(verdict) for verdict in verdicts],
            resolution=None if resolution is None else messages.resolution_to_proto(resolution),
            catalogue=messages.catalogue_to_proto(self._keys.catalogue),
        )

    async def PlanProvisionEnv(
        self, request: service_pb.PlanProvisionEnvRequest, call: RequestContext
    ) -> service_pb.PlanProvisionEnvResponse:
        """Answer what to strip from a container's environment and what to set. Never fails for want of the database."""
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        call.workspace = workspace_id or ""
        env_keys = validation.env_keys(request.env_keys)
        resolution = await self._decide(workspace_id, self._org_default(), call)
        self._log.planned(resolution)
        suspects = suspect_keys(env_keys, self._keys)
        self._log.suspected(suspects)
        plan = provision.plan(resolution, self._keys, env_keys or None)
        return messages.plan_to_proto(replace(plan, suspect_keys=suspects))

    async def ListBillingModeChanges(
        self, request: service_pb.ListBillingModeChangesRequest, call: RequestContext
    ) -> service_pb.ListBillingModeChangesResponse:
        """List the recorded changes of one workspace or all, newest first. Fails if the database cannot be read."""
        workspace_id = validation.workspace_id_or_none(request.workspace_id)
        call.workspace = workspace_id or ""
        size = validation.page_size(request.page_size)
        kind = messages.change_kind_from_proto(request)
        of = page_token.list_name("changes", workspace_id, request.kind)
        position = page_token.log_position(request.page_token, of) if request.page_token else LogPosition()
        # One change beyond the page tells whether another page follows.
        page = await self._repository.list_changes(
            workspace_id, kind=kind, position=position, limit=size + 1, budget=self._budget.of(call)
        )
        shown, more = page.changes[:size], len(page.changes) > size
        until = position.until or page.snapshot
        following = LogPosition(shown[-1].change_id, position.since, until) if more else None
        newer = LogPosition(since=until) if until and page.snapshot and not more else None
        return service_pb.ListBillingModeChangesResponse(
            changes=[messages.change_to_proto(change) for change in shown],
            next_page_token="" if following is None else page_token.encode(of, following),
            follow_token="" if newer is None else page_token.encode(of, newer),
        )

    def _view(self, workspace_id: str, record: WorkspaceRecord) -> WorkspaceBillingMode:
        """Return a stored workspace as administration sees it.

        Raises:
            WorkspaceNotFound: the workspace does not exist.
        """
        if record.override == NO_WORKSPACE:
            raise WorkspaceNotFound("there is no workspace with this id; check it, or create the workspace first")
        resolution = resolve(workspace_id, record.override, self._org_default())
        return WorkspaceBillingMode(resolution, record.etag, record.change_time, record.changed_by)

    async def _decide(
        self, workspace_id: str | None, org_default: str | None, call: RequestContext, *, what_if: bool = False
    ) -> Resolution:
        if workspace_id is None:
            resolution = resolve_new_workspace(org_default, what_if=what_if)
        else:
            override = await self._load(workspace_id, call)
            resolution = resolve(workspace_id, override, org_default, what_if=what_if)
        self._log.resolved([(resolution, 1)], what_if=what_if)
        return resolution

    async def _load(self, workspace_id: str, call: RequestContext) -> StoredOverride | ResolutionError:
        try:
            return await self._repository.load_override(workspace_id, budget=self._budget.of(call))
        except StorageError as error:
            return ResolutionError(error.reason, error.message)

    async def _load_record(self, workspace_id: str, call: RequestContext) -> WorkspaceRecord:
        try:
            return await self._repository.load_record(workspace_id, budget=self._budget.of(call))
        except StorageError as error:
            # A caller that needs a mode finds the fallback, marked as such, in the error's details.
            fallback = resolve(workspace_id, ResolutionError(error.reason, error.message), self._org_default())
            raise type(error)(attachments=(fallback,)) from error

    async def _load_many(
        self, workspace_ids: Sequence[str], call: RequestContext
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        wanted = dict.fromkeys(workspace_ids)
        try:
            return await self._repository.load_overrides(wanted, budget=self._budget.of(call))
        except StorageError as error:
            return dict.fromkeys(wanted, ResolutionError(error.reason, error.message))
