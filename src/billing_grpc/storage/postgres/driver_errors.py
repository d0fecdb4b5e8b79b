"""What a failure of the driver means to the service: one table, one place."""

from typing import Final

import psycopg
import structlog

from billing_grpc.errors import (
    DatabaseDenied,
    DatabaseStale,
    DatabaseTimeout,
    DatabaseUnreachable,
    SchemaNotReady,
    StorageError,
    ValueUnreadable,
)
from billing_grpc.storage.postgres.connection import is_stale
from billing_grpc.storage.postgres.standing import StaleSession

log = structlog.stdlib.get_logger(__name__)

_BY_SQLSTATE: Final[dict[str, type[StorageError]]] = {
    "57014": DatabaseTimeout,  # query canceled, by statement_timeout or by an administrator
    "55P03": DatabaseTimeout,  # lock not available
    "40P01": DatabaseTimeout,  # deadlock
    "40001": DatabaseTimeout,  # serialization failure
    "25006": DatabaseStale,  # read-only transaction
    "25P03": DatabaseTimeout,  # idle in a transaction for longer than its write may take
    "26000": DatabaseUnreachable,  # no such prepared statement
    "42P05": DatabaseUnreachable,  # such a prepared statement exists already
    "42501": DatabaseDenied,  # insufficient privilege
    "XX001": ValueUnreadable,  # data corrupted
    "XX002": ValueUnreadable,  # index corrupted
}
_BY_CLASS: Final[dict[str, type[StorageError]]] = {
    "22": ValueUnreadable,  # data exception: bytes that are no text, an encoding without our characters
    "23": SchemaNotReady,  # integrity constraint: a CHECK that does not know one of the modes
    "28": DatabaseDenied,  # invalid authorization
    "3F": SchemaNotReady,  # no such schema
    "42": SchemaNotReady,  # no such table, column or operator
}
# A failed connect carries no SQLSTATE. The server may speak another language, so these are hints, not a contract.
_DENIED_HINTS: Final = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "peer authentication failed",
    "ident authentication failed",
    "is not permitted to log in",
    "permission denied for database",
    "no such user",  # a pooler
)


_FOREIGN_STATEMENTS: Final = (
    "a pooler shares sessions between clients, and another client of it prepares statements under names"
)
_CAUSES: Final = {"26000": _FOREIGN_STATEMENTS, "42P05": _FOREIGN_STATEMENTS}


def error_kind(error: Exception) -> type[StorageError]:
    """Return what an error of the driver, or of reading what it answered, means."""
    if isinstance(error, StorageError):
        return type(error)
    if isinstance(error, StaleSession):
        return DatabaseStale
    if not isinstance(error, psycopg.Error):
        # The driver answered and what came could not be understood: closed, never an unexpected error.
        return DatabaseUnreachable if isinstance(error, OSError) else ValueUnreadable
    if error.sqlstate is None:
        return ValueUnreadable if isinstance(error, psycopg.DataError) else DatabaseUnreachable
    return _BY_SQLSTATE.get(error.sqlstate) or _BY_CLASS.get(error.sqlstate[:2]) or DatabaseUnreachable


def storage_error(error: Exception) -> StorageError:
    """Our error for one of the driver's, whose text goes to the server's log and no further."""
    kind = error_kind(error)
    # The text only: a failed connection's repr holds the password. A traceback where the driver is not the one to blame.
    log.warning(
        "storage failed",
        reason=kind.reason,
        error=type(error).__name__,
        text=_CAUSES.get(getattr(error, "sqlstate", None) or "", _text(error)),
        exc_info=not isinstance(error, psycopg.Error),
    )
    return kind()


def _text(error: Exception) -> str:
    """Return what the server said, without the row that its details repeat: other columns are no business of our log."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or str(error).strip()


def connect_error_kind(text: str) -> type[StorageError]:
    """Return what a failed connect means, by its text."""
    if is_stale(text):
        return DatabaseStale
    denied = any(hint in text for hint in _DENIED_HINTS) or ('role "' in text and "does not exist" in text)
    return DatabaseDenied if denied else DatabaseUnreachable
