"""A `Repository` with metrics and spans: the duration and outcome of each operation, in the caller's trace."""

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Final

from billing_grpc.errors import StorageError
from billing_grpc.model import (
    BillingMode,
    Change,
    ChangeNote,
    OverrideChange,
    ResolutionError,
    StoredOverride,
    WorkspaceRecord,
)
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.storage.repository import Repository

_WORKSPACES: Final = "workspaces"
_CHANGES: Final = "workspace_billing_mode_changes"


class ObservedRepository:
    """Passes on another repository's answers and errors unchanged; implements `Repository`."""

    def __init__(self, repository: Repository, metrics: Metrics, tracing: Tracing | None = None) -> None:
        """Observe `repository`; without `tracing` there are no spans."""
        self._repository = repository
        self._metrics = metrics
        self._tracing = tracing

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        async with self._observed("load_override", "SELECT", _WORKSPACES):
            return await self._repository.load_override(workspace_id, budget=budget)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        async with self._observed("load_overrides", "SELECT", _WORKSPACES):
            return await self._repository.load_overrides(workspace_ids, budget=budget)

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        async with self._observed("load_record", "SELECT", _WORKSPACES):
            return await self._repository.load_record(workspace_id, budget=budget)

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        async with self._observed("save_override", "UPDATE", _WORKSPACES):
            return await self._repository.save_override(workspace_id, mode, by=by, etag=etag, budget=budget)

    async def list_changes(
        self, workspace_id: str | None, *, before: int | None, limit: int, budget: float
    ) -> Sequence[Change[int]]:
        async with self._observed("list_changes", "SELECT", _CHANGES):
            return await self._repository.list_changes(workspace_id, before=before, limit=limit, budget=budget)

    async def check_administration(self, *, budget: float) -> None:
        async with self._observed("check_administration", "SELECT", _CHANGES):
            await self._repository.check_administration(budget=budget)

    @asynccontextmanager
    async def _observed(self, operation: str, statement: str, table: str) -> AsyncIterator[None]:
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            with nullcontext() if self._tracing is None else self._tracing.storage_span(operation, statement, table):
                yield
            outcome = "ok"
        except StorageError as error:
            outcome = error.reason
            raise
        finally:
            self._metrics.count_storage(operation, outcome, time.perf_counter() - started)
