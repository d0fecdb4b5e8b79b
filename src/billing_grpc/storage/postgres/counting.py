"""Count workspaces by override: check the rows against the question, and turn them into values of the model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import structlog

from billing_grpc.errors import ValueUnreadable
from billing_grpc.model import BillingMode, OverrideCounts, ResolutionError, StoredOverride
from billing_grpc.selection import UNREADABLE
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.reading import DOUBLED, Row, UnexpectedAnswer, require_current_rows
from billing_grpc.storage.postgres.statements import COUNT_OVERRIDES, WORKSPACES
from billing_grpc.storage.postgres.texts import as_text

log = structlog.stdlib.get_logger(__name__)

_MOST_TEXTS: Final = 1000
"""The most different texts to count. Only a database that takes any bytes can have more."""
_TOO_MANY: Final = "the table holds too many different overrides outside ASCII to count them: repair them"


async def count_overrides(connection: Connection) -> OverrideCounts:
    """Return how many workspaces have which override; raise as `reading.load_record`."""
    rows = await connection.read(COUNT_OVERRIDES, [[mode.value for mode in BillingMode], _MOST_TEXTS + 1])
    await require_current_rows(connection.read, rows, WORKSPACES)
    return counts_in(rows)


def counts_in(rows: Sequence[Row]) -> OverrideCounts:
    """Return the counts in the rows of `COUNT_OVERRIDES`.

    Raises:
        ValueUnreadable: there are too many different texts.
        UnexpectedAnswer: the rows do not answer the question.
    """
    if len(rows) > _MOST_TEXTS:
        log.warning("storage failed", reason=ValueUnreadable.reason, text=_TOO_MANY)
        raise ValueUnreadable
    counted: Counter[StoredOverride | ResolutionError] = Counter()
    for _, _, copies, text, workspaces in rows:
        if workspaces is None:
            continue  # the table is empty
        if workspaces < 1 or copies < 1:
            raise UnexpectedAnswer
        counted[_override(copies, text)] += workspaces
    return OverrideCounts(counted, rows[0][1])


def _override(copies: int, text: Any) -> StoredOverride | ResolutionError:
    if copies > 1:
        log.warning("storage failed", reason=ValueUnreadable.reason, text=DOUBLED)
        return UNREADABLE
    try:
        return StoredOverride(None if text is None else as_text(text))
    except UnicodeDecodeError:
        log.warning("stored override is not UTF-8")
        return UNREADABLE
