"""Read overrides and records: check the rows against the question, and turn them into values of the model.

The check is needed. Behind a pooler, the rows of another statement once came back, and looked like a workspace that does not
exist.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

import structlog

from billing_grpc.errors import ValueUnreadable
from billing_grpc.model import (
    NO_WORKSPACE,
    Change,
    ResolutionError,
    StoredOverride,
    WorkspaceRecord,
    author,
    unrecorded,
)
from billing_grpc.storage.postgres.connection import Connection, as_text
from billing_grpc.storage.postgres.standing import CHILDREN_STANDING, HAS_CHILDREN, require_current
from billing_grpc.storage.postgres.statements import LOAD_OVERRIDES, LOAD_RECORD, LOG, WORKSPACES

log = structlog.stdlib.get_logger(__name__)

Row = tuple[Any, ...]
Ask = Callable[[LiteralString, Sequence[object]], Awaitable[list[Row]]]
_UNREADABLE: Final = ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)


class UnexpectedAnswer(Exception):
    """The rows do not answer the question."""


async def load_overrides(
    connection: Connection, asked: Collection[UUID]
) -> dict[UUID, StoredOverride | ResolutionError]:
    """Return the override of each id that exists.

    Raises:
        UnexpectedAnswer: the rows do not answer the question.
        StaleSession: the server of this connection may hold old values.
        StorageError: the table may hold old values, or hide rows.
    """
    rows = await connection.read(LOAD_OVERRIDES, [list(asked), _limit(asked)])
    await require_current_rows(connection.read, rows, WORKSPACES)
    return overrides_in(rows, asked)


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


def overrides_in(rows: Sequence[Row], asked: Collection[UUID]) -> dict[UUID, StoredOverride | ResolutionError]:
    """Return the overrides in the one row of `LOAD_OVERRIDES`.

    Raises:
        UnexpectedAnswer: the row does not answer the question.
        ValueUnreadable: one id has so many rows that the rows of others may be missing.
    """
    ((_, ids, texts),) = rows
    ids, texts = ids or [], texts or []
    counted = Counter(ids)
    if len(ids) != len(texts) or not counted.keys() <= set(asked):
        raise UnexpectedAnswer
    if len(ids) >= _limit(asked) and any(counted[key] <= 1 for key in asked):
        raise ValueUnreadable
    return {
        key: _override(key, text) if counted[key] == 1 else _doubled(key) for key, text in zip(ids, texts, strict=True)
    }


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
        _doubled(key)
        raise ValueUnreadable
    if found is None:
        return WorkspaceRecord(NO_WORKSPACE), now
    if found != key:
        raise UnexpectedAnswer
    changed_by = "" if change_id is None else author(_shown(principal), _shown(database_user))
    text = None if override is None else as_text(override, errors)
    last = None if recorded is None else as_text(recorded, errors)
    return WorkspaceRecord(StoredOverride(text), change_id or 0, change_time, changed_by, unrecorded(text, last)), now


def changes_in(rows: Sequence[Row]) -> list[Change[int]]:
    """Return the entries in the rows of `LIST_CHANGES`."""
    return [_change(entry) for _, *entry in rows if entry[0] is not None]


def _limit(asked: Collection[UUID]) -> int:
    """Return how many rows may come back: two for each id, so that a second row is noticed."""
    return 2 * len(asked)


def _doubled(key: UUID) -> ResolutionError:
    log.warning("storage failed", reason=ValueUnreadable.reason, text="several rows have this id", workspace=str(key))
    return _UNREADABLE


def _override(key: UUID, value: bytes | str | None) -> StoredOverride | ResolutionError:
    try:
        return StoredOverride(None if value is None else as_text(value))
    except UnicodeDecodeError:
        log.warning("stored override is not UTF-8", workspace=str(key))
        return _UNREADABLE


def _change(entry: Sequence[Any]) -> Change[int]:
    change_id, workspace_id, change_time, previous, new, *texts = entry
    principal, database_user, reason, request_id = map(_shown, texts)
    return Change(
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
    """Return a text of the log for display. A text that is not UTF-8 must not hide the other entries."""
    return as_text(value, "replace")
