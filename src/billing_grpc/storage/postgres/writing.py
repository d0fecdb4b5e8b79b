"""Write the override of a workspace, in one transaction whose result is checked before the commit.

The result is checked because rules and triggers of the tenant may undo the write. The commit is a round trip of its own, so
that no write happens after its caller has given up.
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
"""Classes of errors by which a table refuses a write: because of a column's type, a constraint or a trigger."""
_MORE_REFUSALS: Final = frozenset({"428C9", "55000"})
"""More such errors: the column is generated, or the table is published and has no replica identity."""
_IN_A_TRIGGER: Final = frozenset({"08", "25", "42", "57"})
"""Classes of errors that tell of a fault of the database or the statement, unless a function of the tenant raised them."""
_OUR_TRIGGER: Final = "record_workspace_billing_mode_change"
_MOST_STUCK: Final = 4
"""How many commits of the role may wait for a standby for more than a second. Each holds a session of the server."""


@dataclass(slots=True)
class OverrideWrite:
    """A write to be made.

    Attributes:
        key: the id of the workspace.
        mode: the mode to store; None to inherit.
        by: the author, the reason and the request id.
        etag: the etag that the caller knows; empty for an unconditional write.
        deadline: when the caller gives up, in the clock of the event loop.
        commit_sent: whether the write may have happened. Until then it may be repeated on another connection.
    """

    key: UUID
    mode: BillingMode | None
    by: ChangeNote
    etag: str
    deadline: float
    commit_sent: bool = False


async def save_override(connection: Connection, write: OverrideWrite, limit: str) -> OverrideChange:
    """Make the write and return the state before and after it. Commit only if the state after it is the requested one.

    Args:
        connection: a connection that is in no transaction.
        write: the write.
        limit: the time that the server may spend on a statement, or wait for the next one, as Postgres takes it.

    Raises:
        WriteUndone: the database did not do what was requested. The transaction was rolled back.
        DatabaseTimeout: the transaction was not committed, because the caller has given up.
        psycopg.Error: the database failed. After the commit was sent, the outcome is unknown.
        UnexpectedAnswer, StaleSession, StorageError: as `reading.load_record`.
    """
    async with _rolled_back_unless_committed(connection):
        previous, moment = await _begin(connection, write, limit)
        change = OverrideChange.planned(previous, write.mode, write.etag)
        if change.stale or not previous.override.exists:
            return change
        if change.writes:
            current, moment = await _write(connection, write, change)
            change = OverrideChange(previous, current)
        # Commit also if nothing changes: the state may be another writer's, which is committed but not yet durable.
        left = write.deadline - asyncio.get_running_loop().time()
        await _commit(connection, write, moment_after(moment, left))
        return change


def moment_after(moment: datetime, seconds: float) -> datetime:
    """Return the moment so many seconds after another, in UTC.

    The server read its clock before it answered, so the result is not later than the deadline of the caller. The sum is
    computed in UTC, because local time jumps by an hour when summer time ends.
    """
    return moment.astimezone(UTC) + timedelta(seconds=seconds)


@asynccontextmanager
async def _rolled_back_unless_committed(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if connection.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            with suppress(psycopg.Error):  # if the connection is lost, the server rolls back
                await connection.execute("ROLLBACK")


async def _begin(connection: Connection, write: OverrideWrite, limit: str) -> tuple[WorkspaceRecord, datetime]:
    """Lock the row and return its record, and the moment of the read. Each statement sees what was committed before it."""
    texts = [connection.storable(each) for each in (write.by.principal, write.by.reason, write.by.request_id)]
    actor = connection.storable(write.by.actor)
    async with connection.pipeline():
        await connection.execute(BEGIN)
        session = await connection.send_session_check()
        await connection.execute(ANNOUNCE, [*texts, limit, actor])
        stuck = await connection.execute(STUCK_COMMITS)
        locked = await connection.execute(LOCK, [write.key])
        loaded = await connection.execute(LOAD_RECORD, [write.key], binary=True)
    await connection.require_own_session(session)
    ((count,),) = await stuck.fetchall()
    if count >= _MOST_STUCK:
        log.warning("storage failed", reason=DatabaseTimeout.reason, text="commits wait for a synchronous standby")
        raise DatabaseTimeout
    rows = await loaded.fetchall()
    await require_current_rows(connection.rows, rows, WORKSPACES, LOG)
    record, moment = record_in(rows, write.key, errors="replace")
    # A row that was inserted after the lock statement is not locked, so it does not count.
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
    """Return whether the table refused the write, while connection and server are in order."""
    state, context = error.sqlstate or "", error.diag.context or ""
    if error.diag.severity_nonlocalized != "ERROR":
        return False  # the session ends
    if state[:2] in _REFUSALS or state in _MORE_REFUSALS:
        return True
    # Only an error that a function raised has a context. The exception is a cancelled wait for a lock: it names the row.
    return state != "57014" and state[:2] in _IN_A_TRIGGER and context != "" and _OUR_TRIGGER not in context


async def _commit(connection: Connection, write: OverrideWrite, until: datetime) -> None:
    try:
        async with connection.pipeline():
            await connection.execute(STILL_IN_TIME, [until])
            # The caller may have given up since `until` was computed. Nothing is raised in here: psycopg would log the error
            # by which the server refuses.
            write.commit_sent = write.deadline > asyncio.get_running_loop().time()
            committed = await connection.execute(COMMIT) if write.commit_sent else None
    except psycopg.errors.InvalidTextRepresentation as error:
        raise DatabaseTimeout from error
    if committed is None:
        raise DatabaseTimeout
    if committed.statusmessage != COMMIT:
        raise UnexpectedAnswer
