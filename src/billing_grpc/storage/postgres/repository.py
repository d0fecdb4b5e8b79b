"""The `Repository` on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self
from uuid import UUID

import structlog

from billing_grpc.errors import DatabaseDenied, SchemaNotReady, StorageError
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
from billing_grpc.storage.postgres.budgets import server_timeout
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.counting import count_overrides
from billing_grpc.storage.postgres.lending import Result, Work
from billing_grpc.storage.postgres.listing import WorkspacesQuery, list_workspaces
from billing_grpc.storage.postgres.overrides import load_overrides
from billing_grpc.storage.postgres.pool import BoundedPool, PoolStats
from billing_grpc.storage.postgres.reading import list_changes, load_record
from billing_grpc.storage.postgres.shared_reads import SharedReads
from billing_grpc.storage.postgres.slots import Slots
from billing_grpc.storage.postgres.statements import (
    CAN_RECORD_ORG_DEFAULT,
    CHECK_ADMINISTRATION,
    RECORD_ORG_DEFAULT,
)
from billing_grpc.storage.postgres.writing import OverrideWrite, save_override

log = structlog.stdlib.get_logger(__name__)

POOL_SIZE: Final = 8
_MOST_SURVEYS: Final = 2
"""How many reads of many workspaces run at a time. Decisions and writes need the other connections."""

_NO_WORKSPACE_ID: Final = UUID(int=0)
_NARROW_COLUMN: Final = (
    "workspaces.llm_billing_mode cannot hold NULL and every mode: make it an ordinary text column that may be NULL"
)


class PostgresRepository:
    """Overrides in the table `workspaces`; implements `Repository`."""

    def __init__(self, pool: BoundedPool) -> None:
        self._pool = pool
        self._shared_reads = SharedReads(pool)
        self._surveys = Slots(_MOST_SURVEYS)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, database_url: str, *, longest_budget: float = 1.0, size: int = POOL_SIZE
    ) -> AsyncIterator[Self]:
        """Yield a repository while its pool is open; do not wait for the database.

        Args:
            database_url: the address of the database.
            longest_budget: the longest budget, in seconds, that any call will give.
            size: how many connections to hold.

        Raises:
            SettingsError: libpq would not accept the address.
        """
        pool = BoundedPool(database_url, size=size, longest_budget=longest_budget, probe=_probe_query)
        async with pool.opened():
            yield cls(pool)

    @property
    def last_error(self) -> StorageError | None:
        """The error that every method raises while the database is known to be down; None otherwise."""
        return self._pool.breaker.error

    @property
    def available(self) -> bool:
        """False while the database is known to be down."""
        return self.last_error is None

    def add_listener(self, listener: Callable[[StorageError | None], None]) -> None:
        """Call `listener` on the event loop when `available` changes: with the error, or with None."""
        self._pool.breaker.add_listener(listener)

    def pool_stats(self) -> PoolStats:
        """Return how many connections are in which state now."""
        return self._pool.stats

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        return await self._shared_reads.load(workspace_id, budget)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        return await self._pool.run(lambda connection: load_overrides(connection, workspace_ids), budget=budget)

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        return await self._pool.run(lambda connection: load_record(connection, UUID(workspace_id)), budget=budget)

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        clock = asyncio.get_running_loop().time
        began = clock()
        write = OverrideWrite(UUID(workspace_id), mode, by, etag, self._pool.deadline(budget))

        async def work(connection: Connection) -> OverrideChange:
            return await save_override(connection, write, server_timeout(budget, clock() - began))

        try:
            return await self._pool.run(work, budget=budget, writes=True, may_repeat=lambda: not write.commit_sent)
        except asyncio.CancelledError:
            # A proxy that waits no longer cancels the call, and tells the caller that the outcome is unknown.
            write.deadline = clock()
            raise

    async def list_changes(
        self,
        workspace_id: str | None,
        *,
        position: LogPosition,
        limit: int,
        budget: float,
        kind: ChangeKind | None = None,
    ) -> ChangesPage:
        return await self._pool.run(
            lambda connection: list_changes(connection, workspace_id, position, limit, kind),
            budget=budget,
            counts_as_success=False,
        )

    async def record_org_default(self, mode: BillingMode | None, *, server: str, origin: str, budget: float) -> bool:
        async def work(connection: Connection) -> bool:
            ((possible,),) = await connection.read(CAN_RECORD_ORG_DEFAULT, [])
            if not possible:
                raise SchemaNotReady
            text = None if mode is None else mode.value
            ((added,),) = await connection.read(RECORD_ORG_DEFAULT, [text, connection.storable(server), origin])
            return bool(added)

        return await self._pool.run(work, budget=budget, counts_as_success=False)

    async def list_workspaces(
        self, kinds: OverrideKinds, *, after: str | None, limit: int, budget: float
    ) -> WorkspacePage:
        query = WorkspacesQuery(kinds, None if after is None else UUID(after), limit)
        return await self._survey(lambda connection: list_workspaces(connection, query), budget)

    async def count_overrides(self, *, budget: float) -> OverrideCounts:
        return await self._survey(count_overrides, budget)

    async def _survey(self, work: Work[Result], budget: float) -> Result:
        """Run a read of many workspaces."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._pool.require_available()
        await self._surveys.acquire(self._pool.deadline(budget), writes=False)
        try:
            return await self._pool.run(work, budget=budget - (clock() - began))
        finally:
            self._surveys.release(writes=False)

    async def check_administration(self, *, budget: float) -> None:

        async def work(connection: Connection) -> None:
            ((complete, allowed, takes_every_mode),) = await connection.read(CHECK_ADMINISTRATION, [])
            if not complete:
                raise SchemaNotReady
            if not allowed:
                raise DatabaseDenied
            if not takes_every_mode:
                log.warning("storage failed", reason=SchemaNotReady.reason, text=_NARROW_COLUMN)
                raise SchemaNotReady
            await load_record(connection, _NO_WORKSPACE_ID)
            await connection.require_transactions()

        await self._pool.run(work, budget=budget)


async def _probe_query(connection: Connection) -> None:
    """Run the query of a decision for an id that does not exist."""
    await load_overrides(connection, [str(_NO_WORKSPACE_ID)])
