"""The `Repository` on PostgreSQL: the SQL, and rows into the model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self
from uuid import UUID

import structlog

from billing_grpc.errors import DatabaseDenied, DatabaseUnreachable, SchemaNotReady, StorageError, ValueUnreadable
from billing_grpc.model import (
    NO_WORKSPACE,
    Announcement,
    BillingMode,
    OverrideChange,
    RecordedChange,
    ResolutionError,
    StoredOverride,
    WorkspaceRecord,
)
from billing_grpc.postgres.connection import Connection
from billing_grpc.postgres.pool import BoundedPool, PoolStats, server_timeout

log = structlog.stdlib.get_logger(__name__)

POOL_SIZE: Final = 8

# Decisions need `id` and the one column, and nothing else of the schema. The text is cut here: nobody stores a mode of a
# megabyte on purpose. The casts keep these queries true where the workspace server chose another text type.
LOAD_OVERRIDE: Final = "SELECT left(llm_billing_mode::text, 256) FROM workspaces WHERE id = $1"

LOAD_OVERRIDES: Final = "SELECT id, left(llm_billing_mode::text, 256) FROM workspaces WHERE id = ANY($1)"

LOAD_RECORD: Final = """
SELECT left(workspaces.llm_billing_mode::text, 256), last.change_id::bigint, last.change_time::timestamptz,
       last.principal::text, last.database_user::text
FROM workspaces
LEFT JOIN LATERAL (
    SELECT change_id, change_time, principal, database_user FROM workspace_billing_mode_changes
    WHERE workspace_id = workspaces.id ORDER BY change_id DESC LIMIT 1
) AS last ON true
WHERE workspaces.id = $1
"""

# A write is these, in one round trip and so in one transaction. Each statement sees what was committed when it began, so
# everything is read after the lock was got: what a concurrent writer did before us is seen, and nothing comes between. A
# workspace that appears after the lock found none is not written: the answer says that there is none.
ANNOUNCE: Final = """
SELECT set_config('billing_grpc.principal', $1, true), set_config('billing_grpc.reason', $2, true),
       set_config('billing_grpc.request_id', $3, true), set_config('statement_timeout', $4, true),
       set_config('billing_grpc.locked', 'no', true)
"""
LOCK: Final = """
SELECT set_config('billing_grpc.locked', 'yes', true)
FROM (SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE) AS locked
"""
WRITE: Final = """
UPDATE workspaces SET llm_billing_mode = $2::text
WHERE id = $1 AND current_setting('billing_grpc.locked') = 'yes' AND llm_billing_mode IS DISTINCT FROM $2::text
    AND ($3::text = '' OR $3::text = (
        SELECT coalesce(max(change_id), 0)::text FROM workspace_billing_mode_changes WHERE workspace_id = $1))
"""

# What is put off until the commit would fail where nobody can tell why.
CHECK_NOW: Final = "SET CONSTRAINTS ALL IMMEDIATE"

_CHANGE: Final = """
SELECT change_id::bigint, workspace_id::uuid, change_time::timestamptz, left(previous_override::text, 256),
       left(new_override::text, 256), principal::text, database_user::text, reason::text, request_id::text
FROM workspace_billing_mode_changes
"""
LIST_CHANGES: Final = f"{_CHANGE} WHERE change_id < $1 ORDER BY change_id DESC LIMIT $2"
LIST_CHANGES_OF: Final = f"{_CHANGE} WHERE change_id < $1 AND workspace_id = $3 ORDER BY change_id DESC LIMIT $2"

# What administration needs, from the catalogs: a question that fails as long as the schema is missing would be logged with
# every look. The triggers count: without them a change leaves no trail and no etag. The look at a row notices the rest: a
# table that is locked, a policy that hides rows.
CHECK_ADMINISTRATION: Final = """
SELECT bool_and(attnum IS NOT NULL)
           AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('workspaces')
                       AND tgname = 'workspace_billing_mode_updated' AND tgenabled <> 'D'),
       bool_and(has_column_privilege(attrelid, attnum, privilege)),
       current_setting('transaction_read_only')::boolean
FROM (VALUES
    ('workspaces', 'SELECT', ARRAY['id', 'llm_billing_mode']),
    ('workspaces', 'UPDATE', ARRAY['llm_billing_mode']),
    ('workspace_billing_mode_changes', 'SELECT',
     ARRAY['change_id', 'workspace_id', 'change_time', 'previous_override', 'new_override', 'principal', 'database_user',
           'reason', 'request_id'])
) AS needed (relation, privilege, names)
CROSS JOIN unnest(names) AS name
LEFT JOIN pg_attribute ON attrelid = to_regclass(relation) AND attname = name AND NOT attisdropped
"""
_NOBODY: Final = UUID(int=0)
_AFTER_THE_LAST: Final = 2**63 - 1


class PostgresRepository:
    """Overrides in the table `workspaces`; implements `Repository`."""

    def __init__(self, pool: BoundedPool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, database_url: str, *, longest_budget: float = 1.0, size: int = POOL_SIZE
    ) -> AsyncIterator[Self]:
        """A repository while its pool is open; does not wait for the database.

        Args:
            database_url: the Postgres.
            longest_budget: the longest budget, in seconds, that any call will give.
            size: how many connections to hold.
        """
        pool = BoundedPool(database_url, size=size, longest_budget=longest_budget, probe=_read_nothing)
        async with pool.opened():
            yield cls(pool)

    @property
    def last_error(self) -> StorageError | None:
        """Why the database is known to be down, in which case every method raises this at once; None while it is not."""
        return self._pool.breaker.error

    @property
    def available(self) -> bool:
        """Whether the database is not known to be down."""
        return self.last_error is None

    def add_listener(self, listener: Callable[[StorageError | None], None]) -> None:
        """Calls it, on the event loop, whenever `available` changes: with the error, or with None once it is back."""
        self._pool.breaker.add_listener(listener)

    def pool_stats(self) -> PoolStats:
        """The connections at this moment."""
        return self._pool.stats

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        """As `Repository` says."""

        async def work(connection: Connection) -> StoredOverride:
            await connection.cur.execute(LOAD_OVERRIDE, [UUID(workspace_id)], binary=True)
            row = await connection.cur.fetchone()
            return NO_WORKSPACE if row is None else StoredOverride(_text(row[0]))

        return await self._pool.run(work, budget=budget, repeatable=True)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        """As `Repository` says."""

        async def work(connection: Connection) -> Mapping[str, StoredOverride | ResolutionError]:
            await connection.cur.execute(LOAD_OVERRIDES, [[UUID(each) for each in workspace_ids]], binary=True)
            return {str(row[0]): _override_or_error(str(row[0]), row[1]) for row in await connection.cur.fetchall()}

        return await self._pool.run(work, budget=budget, repeatable=True)

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        """As `Repository` says."""

        async def work(connection: Connection) -> WorkspaceRecord:
            await connection.cur.execute(LOAD_RECORD, [UUID(workspace_id)], binary=True)
            return _record(await connection.cur.fetchone())

        return await self._pool.run(work, budget=budget, repeatable=True)

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: Announcement, etag: str = "", budget: float
    ) -> OverrideChange:
        """As `Repository` says."""
        key, text = UUID(workspace_id), None if mode is None else mode.value
        loop = asyncio.get_running_loop()
        asked = loop.time()

        async def work(connection: Connection) -> OverrideChange:
            # Outside of a transaction, what a pipeline sends before its end is one.
            # None is prepared: psycopg takes what it sent for prepared, also where an earlier failure kept the server from
            # doing so, and every later write on that connection would fail.
            async with connection.pipeline():
                # Waiting for the row ends with this call's time, not with the longest call's: a write that its caller has
                # given up must not happen long after.
                texts = [connection.storable(each) for each in (by.principal, by.reason, by.request_id)]
                announced = [*texts, server_timeout(budget, loop.time() - asked)]
                await connection.execute(ANNOUNCE, announced, prepare=False)
                locked = await connection.execute(LOCK, [key], prepare=False)
                before = await connection.execute(LOAD_RECORD, [key], prepare=False, binary=True)
                await connection.execute(WRITE, [key, text, etag], prepare=False)
                after = await connection.execute(LOAD_RECORD, [key], prepare=False, binary=True)
                await connection.execute(CHECK_NOW, prepare=False)
            if not locked.rowcount:
                return OverrideChange(WorkspaceRecord(NO_WORKSPACE), WorkspaceRecord(NO_WORKSPACE))
            previous, current = _record(await before.fetchone()), _record(await after.fetchone())
            stale = previous.makes_stale(etag)
            return OverrideChange(previous, current, stale)

        return await self._pool.run(work, budget=budget, repeatable=False)

    async def list_changes(
        self, workspace_id: str | None, *, before: int | None, limit: int, budget: float
    ) -> Sequence[RecordedChange]:
        """As `Repository` says."""
        parameters: list[object] = [_AFTER_THE_LAST if before is None else before, limit]
        query = LIST_CHANGES
        if workspace_id is not None:
            query, parameters = LIST_CHANGES_OF, [*parameters, UUID(workspace_id)]

        async def work(connection: Connection) -> Sequence[RecordedChange]:
            await connection.cur.execute(query, parameters, binary=True)
            return [_change(row) for row in await connection.cur.fetchall()]

        return await self._pool.run(work, budget=budget, repeatable=True, proves=False)

    async def check_administration(self, *, budget: float) -> None:
        """As `Repository` says."""

        async def work(connection: Connection) -> None:
            await connection.cur.execute(CHECK_ADMINISTRATION)
            complete, allowed, read_only = await connection.cur.fetchone() or (False, False, False)
            if not complete:
                raise SchemaNotReady
            if not allowed:
                raise DatabaseDenied
            if read_only:
                raise DatabaseUnreachable
            await connection.cur.execute(LOAD_RECORD, [_NOBODY], binary=True)

        await self._pool.run(work, budget=budget, repeatable=True)


async def _read_nothing(connection: Connection) -> None:
    """Takes the way of every decision, to a workspace that does not exist."""
    await connection.cur.execute(LOAD_OVERRIDE, [_NOBODY], binary=True)


def _record(row: tuple[Any, ...] | None) -> WorkspaceRecord:
    if row is None:
        return WorkspaceRecord(NO_WORKSPACE)
    override, change_id, change_time, principal, database_user = row
    changed_by = "" if change_id is None else _shown(principal or database_user)
    return WorkspaceRecord(StoredOverride(_text(override)), change_id or 0, change_time, changed_by)


def _change(row: tuple[Any, ...]) -> RecordedChange:
    change_id, workspace_id, change_time, previous, new, *texts = row
    principal, database_user, reason, request_id = map(_shown, texts)
    return RecordedChange(
        change_id=change_id,
        workspace_id=str(workspace_id),
        change_time=change_time,
        previous_override=None if previous is None else _shown(previous),
        new_override=None if new is None else _shown(new),
        principal=principal,
        database_user=database_user,
        reason=reason,
        request_id=request_id,
    )


def _shown(value: bytes | str) -> str:
    """A text that nothing is decided by: one that is not UTF-8 must not hide the rest of the log."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _override_or_error(workspace_id: str, value: bytes | str | None) -> StoredOverride | ResolutionError:
    try:
        return StoredOverride(_text(value))
    except UnicodeDecodeError:
        log.warning("stored override is not UTF-8", workspace=workspace_id)
        return ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)
