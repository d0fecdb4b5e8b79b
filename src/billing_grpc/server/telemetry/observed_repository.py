"""A `Repository` with metrics and spans: the duration and outcome of each operation, in the caller's trace."""

import time
from collections.abc import Awaitable, Collection, Mapping
from typing import Final, TypeVar

from billing_grpc.errors import StorageError
from billing_grpc.model import (
    BillingMode,
    ChangeKind,
    ChangeNote,
    ChangesPage,
    OverrideChange,
    OverrideCounts,
    OverrideKinds,
    ResolutionError,
    StoredOverride,
    WorkspacePage,
    WorkspaceRecord,
)
from billing_grpc.page_token import LogPosition
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage.repository import Repository

_WORKSPACES: Final = "workspaces"
_CHANGES: Final = "workspace_billing_mode_changes"

_Answer = TypeVar("_Answer")


class ObservedRepository:
    """Passes on another repository's answers and errors unchanged; implements `Repository`."""

    def __init__(self, repository: Repository, metrics: Metrics, tracing: Tracing | None = None) -> None:
        """Observe `repository`; without `tracing` there are no spans."""
        self._repository = repository
        self._metrics = metrics
        self._tracing = tracing

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        work = self._repository.load_override(workspace_id, budget=budget)
        return await self._observed(work, "load_override", "SELECT", _WORKSPACES)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        work = self._repository.load_overrides(workspace_ids, budget=budget)
        return await self._observed(work, "load_overrides", "SELECT", _WORKSPACES)

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        work = self._repository.load_record(workspace_id, budget=budget)
        return await self._observed(work, "load_record", "SELECT", _WORKSPACES)

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        work = self._repository.save_override(workspace_id, mode, by=by, etag=etag, budget=budget)
        return await self._observed(work, "save_override", "UPDATE", _WORKSPACES)

    async def list_changes(
        self,
        workspace_id: str | None,
        *,
        position: LogPosition,
        limit: int,
        budget: float,
        kind: ChangeKind | None = None,
    ) -> ChangesPage:
        work = self._repository.list_changes(workspace_id, position=position, limit=limit, budget=budget, kind=kind)
        return await self._observed(work, "list_changes", "SELECT", _CHANGES)

    async def record_org_default(self, mode: BillingMode | None, *, server: str, origin: str, budget: float) -> bool:
        work = self._repository.record_org_default(mode, server=server, origin=origin, budget=budget)
        return await self._observed(work, "record_org_default", "SELECT", _CHANGES)

    async def list_workspaces(
        self, kinds: OverrideKinds, *, after: str | None, limit: int, budget: float
    ) -> WorkspacePage:
        work = self._repository.list_workspaces(kinds, after=after, limit=limit, budget=budget)
        return await self._observed(work, "list_workspaces", "SELECT", _WORKSPACES)

    async def count_overrides(self, *, budget: float) -> OverrideCounts:
        work = self._repository.count_overrides(budget=budget)
        return await self._observed(work, "count_overrides", "SELECT", _WORKSPACES)

    async def check_administration(self, *, budget: float) -> None:
        await self._observed(
            self._repository.check_administration(budget=budget), "check_administration", "SELECT", _CHANGES
        )

    async def _observed(self, work: Awaitable[_Answer], operation: str, statement: str, table: str) -> _Answer:
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            if self._tracing is None:
                answer = await work
            else:
                with self._tracing.storage_span(operation, statement, table):
                    answer = await work
            outcome = "ok"
        except StorageError as error:
            outcome = error.reason
            raise
        finally:
            self._metrics.count_storage(operation, outcome, time.perf_counter() - started)
        return answer
