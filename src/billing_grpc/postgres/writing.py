"""A write of one workspace's override: a transaction whose outcome is looked at before it is committed.

What the database did is compared with what was asked for, because rules and triggers of others may undo it. The commit is a
round trip of its own, so a caller that has given up is never followed by a late write.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from billing_grpc.errors import ChangeNotRecorded, DatabaseTimeout, WriteNotApplied
from billing_grpc.model import NO_WORKSPACE, Announcement, BillingMode, OverrideChange, WorkspaceRecord
from billing_grpc.postgres.connection import Connection
from billing_grpc.postgres.reading import UnexpectedAnswer, record_in, require_current_rows
from billing_grpc.postgres.statements import (
    ANNOUNCE,
    BEGIN,
    CHECK_NOW,
    COMMIT,
    LOAD_RECORD,
    LOCK,
    STILL_IN_TIME,
    WRITE,
)

log = structlog.stdlib.get_logger(__name__)

_REFUSED_BY_THE_TABLE: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""The column's type has no room for the mode, a constraint does not know it, or a trigger says no."""


@dataclass(frozen=True, slots=True)
class OverrideWrite:
    """A write to be made.

    Attributes:
        key: the workspace.
        mode: None to inherit.
        by: who writes, and why.
        etag: of the workspace as its caller knows it; empty writes unconditionally.
        timeout: how long the server may work on a statement, or wait for the next one, as Postgres takes it.
        deadline: when its caller gives up, in the clock of the event loop.
    """

    key: UUID
    mode: BillingMode | None
    by: Announcement
    etag: str
    timeout: str
    deadline: float


async def save_override(connection: Connection, write: OverrideWrite) -> OverrideChange:
    """Make the write and return what it found and left; nothing is committed unless it left what was asked for.

    Raises:
        WriteUndone: the database did something else; rolled back.
        DatabaseTimeout: it was not committed, because its caller has given up.
        psycopg.Error: the database failed; after the commit was sent, its outcome is unknown.
        UnexpectedAnswer: as `reading.load_record`, like StaleSession and StorageError.
    """
    async with _rolled_back_unless_committed(connection):
        previous = await _begin(connection, write)
        change = OverrideChange.planned(previous, write.mode, write.etag)
        if not change.writes:
            return change
        current, moment = await _write(connection, write, change)
        # In the server's clock: it said the time before it answered, so the moment comes no later than the caller's.
        left = write.deadline - asyncio.get_running_loop().time()
        await _commit(connection, moment + timedelta(seconds=left))
        return OverrideChange(previous, current)


@asynccontextmanager
async def _rolled_back_unless_committed(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if connection.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            with suppress(psycopg.Error):  # a lost connection rolls back by itself
                await connection.execute("ROLLBACK")


async def _begin(connection: Connection, write: OverrideWrite) -> WorkspaceRecord:
    """Lock the row and return what it says: each statement sees what was committed when it began."""
    texts = [connection.storable(each) for each in (write.by.principal, write.by.reason, write.by.request_id)]
    async with connection.pipeline():
        await connection.execute(BEGIN)
        await connection.begin_own()
        await connection.execute(ANNOUNCE, [*texts, write.timeout])
        locked = await connection.execute(LOCK, [write.key])
        loaded = await connection.execute(LOAD_RECORD, [write.key], binary=True)
    rows = await loaded.fetchall()
    await require_current_rows(connection, rows)
    record, _ = record_in(rows, write.key, errors="replace")
    # A row that appeared after the lock found none was not locked.
    return record if locked.rowcount else WorkspaceRecord(NO_WORKSPACE)


async def _write(
    connection: Connection, write: OverrideWrite, change: OverrideChange
) -> tuple[WorkspaceRecord, datetime]:
    try:
        async with connection.pipeline():
            await connection.execute(WRITE, [write.key, change.current.override.text])
            await connection.execute(CHECK_NOW)
            loaded = await connection.execute(LOAD_RECORD, [write.key], binary=True)
    except _REFUSED_BY_THE_TABLE as error:
        log.warning("storage failed", reason=WriteNotApplied.reason, text=str(error).strip())
        raise WriteNotApplied from error
    rows = await loaded.fetchall()
    await require_current_rows(connection, rows)
    current, moment = record_in(rows, write.key)
    if current.override != change.current.override:
        raise WriteNotApplied
    if current.change_id == change.previous.change_id:
        raise ChangeNotRecorded
    return current, moment


async def _commit(connection: Connection, until: datetime) -> None:
    try:
        async with connection.pipeline():
            await connection.execute(STILL_IN_TIME, [until])
            committed = await connection.execute(COMMIT)
    except psycopg.errors.InvalidTextRepresentation as error:
        raise DatabaseTimeout from error
    if committed.statusmessage != COMMIT:
        raise UnexpectedAnswer
