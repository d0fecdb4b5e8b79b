"""Read records and changes: check the rows against the question, and turn them into values of the model.

The check is needed. Behind a pooler, the rows of another statement once came back, and looked like a workspace that does not
exist.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

import structlog

from billing_grpc.errors import SchemaNotReady, ValueUnreadable
from billing_grpc.model import (
    NO_WORKSPACE,
    Change,
    ChangeKind,
    ChangesPage,
    StoredOverride,
    WorkspaceRecord,
    author,
    unrecorded,
)
from billing_grpc.page_token import LogPosition, foreign_database
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.standing import CHILDREN_STANDING, HAS_CHILDREN, require_current
from billing_grpc.storage.postgres.statements import (
    HAVE_ACTORS,
    LIST_ACTORS_CHANGES,
    LIST_CHANGES,
    LIST_NEWER_CHANGES,
    LOAD_RECORD,
    LOG,
    WORKSPACES,
)
from billing_grpc.storage.postgres.texts import as_text

log = structlog.stdlib.get_logger(__name__)

Row = tuple[Any, ...]
Ask = Callable[[LiteralString, Sequence[object]], Awaitable[list[Row]]]
_MAX_CHANGE_ID: Final = 2**63 - 1
DOUBLED: Final = "several rows have this id"


class UnexpectedAnswer(Exception):
    """The rows do not answer the question."""


async def load_record(connection: Connection, key: UUID) -> WorkspaceRecord:
    """Return the override of a workspace and its last change.

    Raises:
        UnexpectedAnswer: the rows do not answer the question.
        StaleSession: the server of this connection may hold old values.
        StorageError: the table may hold old values, hide rows, or hold the id more than once.
    """
    rows = await connection.read(LOAD_RECORD, [key])
    await require_current_rows(connection.read, rows, WORKSPACES, LOG)
    record, _ = record_in(rows, key)
    return record


async def require_current_rows(ask: Ask, rows: Sequence[Row], *tables: str) -> None:
    """Return if the rows of a statement are current and complete; raise as `load_record`.

    Args:
        ask: runs another statement on the same connection: `Connection.read`, or `Connection.rows` in a transaction.
        rows: the rows, whose first columns are the standings of the tables.
        tables: the tables that the statement read, in the order of these columns.
    """
    if not rows:
        raise UnexpectedAnswer
    for table, value in zip(tables, rows[0], strict=False):
        standing = as_text(value)
        require_current(standing, table)
        if standing == HAS_CHILDREN:
            ((children,),) = await ask(CHILDREN_STANDING, [table])
            require_current(as_text(children), table)


def record_in(rows: Sequence[Row], key: UUID, *, errors: str = "strict") -> tuple[WorkspaceRecord, datetime]:
    """Return the record in the rows of `LOAD_RECORD`, and the time by the clock of the database.

    Args:
        rows: current rows of one statement.
        key: the id of the workspace.
        errors: as `bytes.decode` takes it; "replace" for a text that is about to be overwritten.

    Raises:
        UnexpectedAnswer: the rows do not answer the question.
        ValueUnreadable: several rows have this id.
        UnicodeDecodeError: the stored text is not UTF-8.
    """
    _, _, now, found, override, change_id, change_time, principal, database_user, recorded = rows[0]
    if len(rows) > 1:
        log.warning("storage failed", reason=ValueUnreadable.reason, text=DOUBLED, workspace=str(key))
        raise ValueUnreadable
    if found is None:
        return WorkspaceRecord(NO_WORKSPACE), now
    if found != key:
        raise UnexpectedAnswer
    changed_by = "" if change_id is None else author(shown(principal), shown(database_user))
    text = None if override is None else as_text(override, errors)
    last = None if recorded is None else as_text(recorded, errors)
    return WorkspaceRecord(StoredOverride(text), change_id or 0, change_time, changed_by, unrecorded(text, last)), now


async def list_changes(
    connection: Connection, workspace_id: str | None, position: LogPosition, limit: int, kind: ChangeKind | None
) -> ChangesPage:
    """Return entries of the change log, newest first; raise as `load_record`.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID if the position is of another database.
        SchemaNotReady: the log does not know the transactions of its entries, and so not what is newer.
    """
    key = None if workspace_id is None else UUID(workspace_id)
    parameters: list[object] = [_MAX_CHANGE_ID if position.before is None else position.before, limit, key]
    parameters.append(None if kind is None else kind is ChangeKind.ORG_DEFAULT)
    query = LIST_CHANGES
    ((complete,),) = await connection.read(HAVE_ACTORS, [])
    if complete:
        query = LIST_NEWER_CHANGES if position.since else LIST_ACTORS_CHANGES
        parameters += [position.until or None, position.since or None]
    elif position.since:
        raise SchemaNotReady
    rows = await connection.read(query, parameters)
    await require_current_rows(connection.read, rows, LOG)
    _, snapshot, foreign, *_ = rows[0]
    if foreign:
        raise foreign_database()
    changes = [_change(entry) for _, _, _, *entry in rows if entry[0] is not None]
    return ChangesPage(changes, "" if snapshot is None else as_text(snapshot))


def _change(entry: Sequence[Any]) -> Change[int]:
    change_id, workspace_id, change_time, previous, new, *texts = entry
    principal, database_user, reason, request_id, actor, server, origin = map(shown, texts)
    return Change(
        change_id=change_id,
        workspace_id="" if workspace_id is None else str(workspace_id),
        change_time=change_time,
        previous_override=None if previous is None else shown(previous),
        new_override=None if new is None else shown(new),
        principal=principal,
        database_user=database_user,
        reason=reason,
        request_id=request_id,
        actor=actor,
        kind=ChangeKind.ORG_DEFAULT if workspace_id is None else ChangeKind.WORKSPACE,
        server=server,
        origin=origin,
    )


def shown(value: bytes | str) -> str:
    """Return a text of the log for display. A text that is not UTF-8 must not hide the other entries."""
    return as_text(value, "replace")
