"""A write of one workspace's override: a transaction whose outcome is looked at before it is committed.

What the database did is compared with what was asked for, because rules and triggers of others may undo it. The commit is a
round trip of its own, so a caller that has given up is never followed by a late write.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from billing_grpc.errors import ChangeNotRecorded, DatabaseTimeout, WriteNotApplied
from billing_grpc.model import NO_WORKSPACE, BillingMode, ChangeNote, OverrideChange, WorkspaceRecord
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.reading import UnexpectedAnswer, record_in, require_current_rows
from billing_grpc.storage.postgres.statements import (
    ANNOUNCE,
    BEGIN,
    CHECK_NOW,
    COMMIT,
    LOAD_RECORD,
    LOCK,
    LOG,
    STILL_IN_TIME,
    STUCK_COMMITS,
    WORKSPACES,
    WRITE,
)

log = structlog.stdlib.get_logger(__name__)

_REFUSALS: Final = frozenset({"09", "21", "22", "23", "27", "38", "39", "44", "45", "P0"})
"""Classes of errors by which a table says no: its column's type, a constraint, a trigger."""
_MORE_REFUSALS: Final = frozenset({"428C9", "55000"})
"""The column is generated; the table is published and has no key to publish its changes by."""
_IN_A_TRIGGER: Final = frozenset({"08", "25", "42", "57"})
"""What says something of the database, or of the statement, unless a function of somebody else raised it."""
_OUR_TRIGGER: Final = "record_workspace_billing_mode_change"
_MOST_STUCK: Final = 4
"""How many commits of the role may wait for a standby for longer than a second; each holds one of the server's places."""


@dataclass(slots=True)
class OverrideWrite:
    """A write to be made.

    Attributes:
        key: the workspace.
        mode: None to inherit.
        by: who writes, and why.
        etag: of the workspace as its caller knows it; empty writes unconditionally.
        deadline: when its caller gives up, in the clock of the event loop.
        commit_sent: whether it may have happened; until then it can be made again on another connection.
    """

    key: UUID
    mode: BillingMode | None
    by: ChangeNote
    etag: str
    deadline: float
    commit_sent: bool = False


async def save_override(connection: Connection, write: OverrideWrite, limit: str) -> OverrideChange:
    """Make the write and return what it found and left; nothing is committed unless it left what was asked for.

    Args:
        connection: in no transaction.
        write: what to write.
        limit: how long the server may work on a statement, or wait for the next one, as Postgres takes it.

    Raises:
        WriteUndone: the database did something else; rolled back.
        DatabaseTimeout: it was not committed, because its caller has given up.
        psycopg.Error: the database failed; after the commit was sent, its outcome is unknown.
        UnexpectedAnswer: as `reading.load_record`, like StaleSession and StorageError.
    """
    async with _rolled_back_unless_committed(connection):
        previous, moment = await _begin(connection, write, limit)
        change = OverrideChange.planned(previous, write.mode, write.etag)
        if change.stale or not previous.override.exists:
            return change
        if change.writes:
            current, moment = await _write(connection, write, change)
            change = OverrideChange(previous, current)
        # Also where nothing changes: the state that is acknowledged may be another writer's, committed and not yet durable.
        left = write.deadline - asyncio.get_running_loop().time()
        await _commit(connection, write, moment_after(moment, left))
        return change


def moment_after(moment: datetime, seconds: float) -> datetime:
    """Return the moment that comes so long after another.

    In the server's clock: it said the time before it answered, so the moment comes no later than the caller's deadline. In
    UTC: sums in the session's time zone are an hour off in the night in which summer time ends.
    """
    return moment.astimezone(UTC) + timedelta(seconds=seconds)


@asynccontextmanager
async def _rolled_back_unless_committed(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if connection.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            with suppress(psycopg.Error):  # a lost connection rolls back by itself
                await connection.execute("ROLLBACK")


async def _begin(connection: Connection, write: OverrideWrite, limit: str) -> tuple[WorkspaceRecord, datetime]:
    """Lock the row and return what it says, and when: each statement sees what was committed when it began."""
    texts = [connection.storable(each) for each in (write.by.principal, write.by.reason, write.by.request_id)]
    async with connection.pipeline():
        await connection.execute(BEGIN)
        own = await connection.begin_own()
        await connection.execute(ANNOUNCE, [*texts, limit])
        stuck = await connection.execute(STUCK_COMMITS)
        locked = await connection.execute(LOCK, [write.key])
        loaded = await connection.execute(LOAD_RECORD, [write.key], binary=True)
    await connection.require_own(own)
    ((count,),) = await stuck.fetchall()
    if count >= _MOST_STUCK:
        log.warning("storage failed", reason=DatabaseTimeout.reason, text="commits wait for a synchronous standby")
        raise DatabaseTimeout
    rows = await loaded.fetchall()
    await require_current_rows(connection.rows, rows, WORKSPACES, LOG)
    record, moment = record_in(rows, write.key, errors="replace")
    # A row that appeared after the lock found none was not locked.
    return (record if locked.rowcount else WorkspaceRecord(NO_WORKSPACE)), moment


async def _write(
    connection: Connection, write: OverrideWrite, change: OverrideChange
) -> tuple[WorkspaceRecord, datetime]:
    try:
        async with connection.pipeline():
            await connection.execute(WRITE, [write.key, change.current.override.text])
            await connection.execute(CHECK_NOW)
            loaded = await connection.execute(LOAD_RECORD, [write.key], binary=True)
    except psycopg.Error as error:
        if not _is_refusal(error):
            raise
        log.warning("storage failed", reason=WriteNotApplied.reason, text=error.diag.message_primary)
        raise WriteNotApplied from error
    rows = await loaded.fetchall()
    await require_current_rows(connection.rows, rows, WORKSPACES, LOG)
    current, moment = record_in(rows, write.key)
    if current.override != change.current.override:
        raise WriteNotApplied
    if current.change_id == change.previous.change_id or current.unrecorded:
        raise ChangeNotRecorded
    return current, moment


def _is_refusal(error: psycopg.Error) -> bool:
    """Return whether the table refused the write, so that nothing is wrong with the connection or the server."""
    state, context = error.sqlstate or "", error.diag.context or ""
    if error.diag.severity_nonlocalized != "ERROR":
        return False  # the session ends
    if state[:2] in _REFUSALS or state in _MORE_REFUSALS:
        return True
    # Only what a function raised has a context, in whatever language; but for a cancelled wait, which names the row.
    return state != "57014" and state[:2] in _IN_A_TRIGGER and context != "" and _OUR_TRIGGER not in context


async def _commit(connection: Connection, write: OverrideWrite, until: datetime) -> None:
    try:
        async with connection.pipeline():
            await connection.execute(STILL_IN_TIME, [until])
            write.commit_sent = True
            committed = await connection.execute(COMMIT)
    except psycopg.errors.InvalidTextRepresentation as error:
        raise DatabaseTimeout from error
    if committed.statusmessage != COMMIT:
        raise UnexpectedAnswer
