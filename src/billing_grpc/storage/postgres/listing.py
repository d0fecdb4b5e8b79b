"""List workspaces: check the rows against the question, and turn them into values of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog

from billing_grpc.errors import ValueUnreadable
from billing_grpc.model import (
    BillingMode,
    ListedWorkspace,
    OverrideKinds,
    StoredOverride,
    WorkspacePage,
    WorkspaceRecord,
    author,
    unrecorded,
)
from billing_grpc.selection import UNREADABLE
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.reading import DOUBLED, Row, UnexpectedAnswer, require_current_rows, shown
from billing_grpc.storage.postgres.statements import (
    HAVE_NAMES,
    LIST_NAMED_WORKSPACES,
    LIST_WORKSPACES,
    LOG,
    WORKSPACES,
)
from billing_grpc.storage.postgres.texts import as_text

log = structlog.stdlib.get_logger(__name__)

_MOST_SEEN: Final = 10_000
"""The most workspaces that one call looks at in search of those that are wanted."""


@dataclass(frozen=True, slots=True)
class WorkspacesQuery:
    """Which workspaces to list.

    Attributes:
        kinds: the kinds of overrides that are wanted.
        after: only workspaces after this id; None for all.
        limit: the most workspaces to return.
    """

    kinds: OverrideKinds
    after: UUID | None
    limit: int

    @property
    def most_seen(self) -> int:
        """Return how many workspaces to look at. One beyond the page tells whether another page follows."""
        return self.limit + 1 if self.kinds.everything else max(self.limit + 1, _MOST_SEEN)

    @property
    def parameters(self) -> list[object]:
        """Return the parameters of the statement."""
        wanted = [mode.value for mode in self.kinds.modes]
        modes = [mode.value for mode in BillingMode]
        return [
            self.after,
            self.most_seen,
            self.limit + 1,
            self.kinds.inheriting,
            modes,
            wanted,
            self.kinds.unrecognised,
        ]


async def list_workspaces(connection: Connection, query: WorkspacesQuery) -> WorkspacePage:
    """Return a page of workspaces; raise as `reading.load_record`."""
    ((named,),) = await connection.read(HAVE_NAMES, [])
    rows = await connection.read(LIST_NAMED_WORKSPACES if named else LIST_WORKSPACES, query.parameters)
    await require_current_rows(connection.read, rows, WORKSPACES, LOG)
    return page_in(rows, query)


def page_in(rows: Sequence[Row], query: WorkspacesQuery) -> WorkspacePage:
    """Return the page in the rows of `LIST_WORKSPACES`.

    Raises:
        UnexpectedAnswer: the rows do not answer the question.
    """
    _, _, seen, last_seen, *_ = rows[0]
    found = [_workspace(row[4:]) for row in rows if row[4] is not None]
    ids = [each.workspace_id for each in found]
    if ids != sorted(set(ids)) or (ids and query.after is not None and ids[0] <= str(query.after)):
        raise UnexpectedAnswer
    if len(found) > query.limit:
        return WorkspacePage(found[: query.limit], ids[query.limit - 1])
    return WorkspacePage(found, str(last_seen) if seen == query.most_seen else None)


def _workspace(row: Sequence[Any]) -> ListedWorkspace:
    key, copies, override, name, change_id, change_time, principal, database_user, recorded = row
    workspace = str(key)
    error = None
    if copies > 1:
        log.warning("storage failed", reason=ValueUnreadable.reason, text=DOUBLED, workspace=workspace)
        error = UNREADABLE
    elif override is not None and not _is_text(override):
        log.warning("stored override is not UTF-8", workspace=workspace)
        error = UNREADABLE
    text = None if override is None else shown(override)
    last = None if recorded is None else shown(recorded)
    changed_by = "" if change_id is None else author(shown(principal), shown(database_user))
    record = WorkspaceRecord(StoredOverride(text), change_id or 0, change_time, changed_by, unrecorded(text, last))
    return ListedWorkspace(workspace, record, "" if name is None else shown(name), error)


def _is_text(value: bytes | str) -> bool:
    try:
        as_text(value)
    except UnicodeDecodeError:
        return False
    return True
