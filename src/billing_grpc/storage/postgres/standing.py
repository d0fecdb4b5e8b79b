"""Decide whether the answer of a read is current: each read also reports the state of its server, session and table."""

from typing import Final

import structlog

from billing_grpc.errors import DatabaseDenied, DatabaseStale, StorageError

log = structlog.stdlib.get_logger(__name__)

# A template: `{relation}` is the alias of pg_class in the query that reads. It is part of that statement, because only that
# statement describes the same session at the same moment: behind a pooler the next statement may run in another session, and
# after a failover on another server. Catalog names are qualified, so that the search path cannot lead to another object.
STANDING: Final = """CASE
    WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
    WHEN pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool THEN 'read-only'
    WHEN pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN 'old snapshot'
    WHEN pg_catalog.row_security_active({relation}.oid) THEN 'rows hidden'
    WHEN {relation}.relkind NOT IN ('r', 'p') THEN 'not a table'
    WHEN {relation}.relpersistence <> 'p' THEN 'not durable'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_subscription_rel WHERE srrelid = {relation}.oid) THEN 'subscribed'
    WHEN {relation}.relhassubclass THEN 'has children'
    ELSE 'current'
END"""

# The same for the partitions and children of a table. Most tables have none, so this is not a part of every read.
CHILDREN_STANDING: Final = """
WITH RECURSIVE child (oid) AS (
    SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = $1::pg_catalog.regclass
    UNION
    SELECT inhrelid FROM pg_catalog.pg_inherits JOIN child ON inhparent = child.oid
)
SELECT coalesce(pg_catalog.max(CASE
    WHEN relkind NOT IN ('r', 'p') THEN 'not a table'
    WHEN relpersistence <> 'p' THEN 'not durable'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_subscription_rel WHERE srrelid = oid) THEN 'subscribed'
END), 'current')
FROM child JOIN pg_catalog.pg_class USING (oid)
"""

HAS_CHILDREN: Final = "has children"
_SESSION: Final = {
    "standby": "the server is a standby, which may not have replayed the last changes yet",
    "old snapshot": "the isolation level of the session shows the values of an earlier moment",
    "read-only": "the session is read-only, as on a server that was demoted",
}
_TABLE: Final[dict[str, tuple[type[StorageError], str]]] = {
    "rows hidden": (DatabaseDenied, "row-level security may hide rows from the service's role: grant it BYPASSRLS"),
    "not a table": (
        DatabaseStale,
        "the table, or a partition of it, is a view, a materialized view or a foreign table",
    ),
    "not durable": (DatabaseStale, "the table, or a partition of it, is an unlogged or a temporary table"),
    "subscribed": (DatabaseStale, "the table, or a partition of it, is filled by a logical replication subscription"),
}


class StaleSession(Exception):
    """The server of this connection may hold old values. Another connection may lead to another server."""


def require_current(standing: str, table: str) -> None:
    """Return if the rows that the same statement read from a table are current and complete.

    Args:
        standing: the value of `STANDING` or `CHILDREN_STANDING`.
        table: the name of the table, for the log.

    Raises:
        StaleSession: this connection may show old values.
        StorageError: this table may hold old values, or hide rows.
    """
    if standing in {"current", HAS_CHILDREN}:
        return
    if standing in _SESSION:
        log.warning("storage failed", reason=DatabaseStale.reason, text=_SESSION[standing])
        raise StaleSession
    kind, text = _TABLE[standing]
    log.warning("storage failed", reason=kind.reason, text=text, table=table)
    raise kind
