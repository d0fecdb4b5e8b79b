"""Whether an answer of the database may be believed: the statement that reads also says where it read, and from what."""

from typing import Final

import structlog

from billing_grpc.errors import DatabaseDenied, DatabaseStale, StorageError

log = structlog.stdlib.get_logger(__name__)

# For a query over pg_class, under the name of `relation`. Part of the statement that reads, because nothing else speaks of
# the same session and the same moment: behind a pooler the next statement may reach another session, and a failover another
# server. Catalog names are written in full: what has such a name elsewhere on the search path must not answer.
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

# The same of a table's partitions and children, which most tables have not: not worth its planning in every read.
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
    "standby": "the server is a standby, and may not have replayed the last changes yet",
    "old snapshot": "the session's isolation level shows values as of an earlier moment",
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
    """This connection's server may hold old values; another connection may reach another server."""


def require_current(standing: str, table: str) -> None:
    """Return if what was read from a table in the same statement is current and complete.

    Raises:
        StaleSession: not from this connection.
        StorageError: not from this table.
    """
    if standing in {"current", HAS_CHILDREN}:
        return
    if standing in _SESSION:
        log.warning("storage failed", reason=DatabaseStale.reason, text=_SESSION[standing])
        raise StaleSession
    kind, text = _TABLE[standing]
    log.warning("storage failed", reason=kind.reason, text=text, table=table)
    raise kind
