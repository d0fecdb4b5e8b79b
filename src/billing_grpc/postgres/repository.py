"""The `Repository` on PostgreSQL: the SQL, and rows into the model."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self
from uuid import UUID

import structlog

from billing_grpc.errors import ValueUnreadable
from billing_grpc.model import NO_WORKSPACE, BillingMode, OverrideChange, ResolutionError, StoredOverride
from billing_grpc.postgres.connection import Connection
from billing_grpc.postgres.pool import BoundedPool

log = structlog.stdlib.get_logger(__name__)

POOL_SIZE: Final = 8

# Decisions need `id` and the one column, and nothing else of the schema. The text is cut here: nobody stores a mode of a
# megabyte on purpose. The casts keep these queries true where the workspace server chose another text type.
LOAD_OVERRIDE: Final = "SELECT left(llm_billing_mode::text, 256) FROM workspaces WHERE id = $1"

LOAD_OVERRIDES: Final = "SELECT id, left(llm_billing_mode::text, 256) FROM workspaces WHERE id = ANY($1)"

# One statement: the row is locked, read, and written only when that changes it. A concurrent writer waits at the lock and
# then sees what the first one wrote.
SAVE_OVERRIDE: Final = """
WITH found AS (
    SELECT id, llm_billing_mode FROM workspaces WHERE id = $1 FOR NO KEY UPDATE
), written AS (
    UPDATE workspaces SET llm_billing_mode = $2::text
    FROM found
    WHERE workspaces.id = found.id AND found.llm_billing_mode IS DISTINCT FROM $2::text
)
SELECT left(found.llm_billing_mode::text, 256) FROM found
"""


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
        pool = BoundedPool(database_url, size=size, longest_budget=longest_budget)
        async with pool.opened():
            yield cls(pool)

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

    async def save_override(self, workspace_id: str, mode: BillingMode | None, *, budget: float) -> OverrideChange:
        """As `Repository` says."""
        text = None if mode is None else mode.value

        async def work(connection: Connection) -> OverrideChange:
            await connection.cur.execute(SAVE_OVERRIDE, [UUID(workspace_id), text], binary=True)
            row = await connection.cur.fetchone()
            if row is None:
                return OverrideChange(NO_WORKSPACE, NO_WORKSPACE)
            return OverrideChange(StoredOverride(_text(row[0])), StoredOverride(text))

        return await self._pool.run(work, budget=budget, repeatable=False)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _override_or_error(workspace_id: str, value: bytes | None) -> StoredOverride | ResolutionError:
    try:
        return StoredOverride(_text(value))
    except UnicodeDecodeError:
        log.warning("stored override is not UTF-8", workspace=workspace_id)
        return ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)
