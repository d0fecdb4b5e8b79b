"""Translate errors of the driver into `StorageError`s."""

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
from billing_grpc.storage.postgres.connecting import says_read_only
from billing_grpc.storage.postgres.standing import StaleSession

log = structlog.stdlib.get_logger(__name__)

_BY_SQLSTATE: Final[dict[str, type[StorageError]]] = {
    "57014": DatabaseTimeout,  # query canceled, by statement_timeout or by an administrator
    "55P03": DatabaseTimeout,  # lock not available
    "40P01": DatabaseTimeout,  # deadlock
    "40001": DatabaseTimeout,  # serialization failure
    "25006": DatabaseStale,  # read-only transaction
    "25P03": DatabaseTimeout,  # idle in a transaction for longer than a write may take
    "26000": DatabaseUnreachable,  # the prepared statement does not exist
    "42P05": DatabaseUnreachable,  # the prepared statement exists already
    "42501": DatabaseDenied,  # insufficient privilege
    "XX001": ValueUnreadable,  # data corrupted
    "XX002": ValueUnreadable,  # index corrupted
}
_BY_CLASS: Final[dict[str, type[StorageError]]] = {
    "22": ValueUnreadable,  # data exception, for example bytes that are not text
    "23": SchemaNotReady,  # integrity constraint, for example a CHECK that rejects one of the modes
    "28": DatabaseDenied,  # invalid authorization
    "3F": SchemaNotReady,  # no such schema
    "42": SchemaNotReady,  # no such table, column or operator
}
# The error of a failed connect has no SQLSTATE. Its text may be in another language, so these hints may miss some.
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
    """Return the class of storage error for an error of the driver, or for an error while decoding its result."""
    if isinstance(error, StorageError):
        return type(error)
    if isinstance(error, StaleSession):
        return DatabaseStale
    if not isinstance(error, psycopg.Error):
        # The driver returned a result that could not be decoded. The call gets the fallback, never an unexpected error.
        return DatabaseUnreachable if isinstance(error, OSError) else ValueUnreadable
    if error.sqlstate is None:
        return ValueUnreadable if isinstance(error, psycopg.DataError) else DatabaseUnreachable
    return _BY_SQLSTATE.get(error.sqlstate) or _BY_CLASS.get(error.sqlstate[:2]) or DatabaseUnreachable


def storage_error(error: Exception) -> StorageError:
    """Log an error of the driver and return the storage error for it. The driver's text is only in the log."""
    kind = error_kind(error)
    # Only the text, because the repr of a failed connection holds the password. The traceback only if the error is not the
    # driver's.
    log.warning(
        "storage failed",
        reason=kind.reason,
        error=type(error).__name__,
        text=_CAUSES.get(getattr(error, "sqlstate", None) or "", _text(error)),
        exc_info=not isinstance(error, psycopg.Error),
    )
    return kind()


def _text(error: Exception) -> str:
    """Return the server's message without its details, which may repeat a row with columns that must not be logged."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or str(error).strip()


def connect_error_kind(text: str) -> type[StorageError]:
    """Return the class of storage error for the text of a failed connect."""
    if says_read_only(text):
        return DatabaseStale
    denied = any(hint in text for hint in _DENIED_HINTS) or ('role "' in text and "does not exist" in text)
    return DatabaseDenied if denied else DatabaseUnreachable
