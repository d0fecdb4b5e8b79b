"""Unsafe shapes of the `workspaces` table: an id may have two rows, or rows may be lost or out of date."""

from collections.abc import Iterable
from typing import Final

# Needs no right but CONNECT, because every role may read the catalogs. Returns a row for each fault, and no row if there is
# no table.
FIND_FAULTS: Final = """
WITH RECURSIVE part (relid) AS (
    SELECT to_regclass('workspaces')::oid
    UNION SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = relid
), parts AS (
    SELECT bool_or(relkind = 'f') AS foreign_one, bool_or(relpersistence = 'u') AS unlogged_one,
           bool_or(EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = relid)) AS subscribed_one
    FROM part JOIN pg_class ON pg_class.oid = relid
)
SELECT fault FROM pg_class CROSS JOIN parts, LATERAL (VALUES
    ('view', relkind = 'v'),
    ('materialized view', relkind = 'm'),
    ('foreign table', foreign_one),
    ('unlogged', unlogged_one),
    ('temporary', relpersistence = 't'),
    ('subscriber', subscribed_one),
    ('inherited from', EXISTS (
        SELECT FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
        WHERE inhparent = pg_class.oid AND NOT child.relispartition)),
    ('not unique', relkind IN ('r', 'p') AND NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid = pg_class.oid AND indisunique AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL
            AND attname = 'id'))
) AS looked (fault, found)
WHERE pg_class.oid = to_regclass('workspaces') AND found
"""

_NO_TABLE: Final = {
    "view": "workspaces is a view, to which neither a column nor the log's triggers can be added",
    "materialized view": "workspaces is a materialized view, which shows old modes and accepts no change",
    "foreign table": "workspaces, or a partition of it, is a foreign table: the data of"
    " another server is neither checked nor recorded here",
    "temporary": "workspaces is a temporary table, which ends with its session",
}
"""Shapes that cannot be migrated."""

_DANGERS: Final = {
    "unlogged": "workspaces, or a partition of it, is unlogged: a crash of the database empties it; decisions are closed"
    " with DATABASE_STALE (remedy: ALTER TABLE ... SET LOGGED)",
    "subscriber": "a logical subscription fills workspaces, so that its rows may be old; decisions are closed with"
    " DATABASE_STALE (remedy: use the database that publishes)",
    "inherited from": "other tables inherit from workspaces, so that one id may be in two of them; decisions for such an id"
    " are closed with VALUE_UNREADABLE (remedy: ALTER TABLE ... NO INHERIT workspaces)",
    "not unique": "workspaces has no valid unique index on id alone, so that one id may have two rows; decisions for such an"
    " id are closed with VALUE_UNREADABLE (remedy: a primary key or unique index on id alone)",
}
"""Shapes that can be migrated with `allow_unsafe`."""


def reasons_against(faults: Iterable[str], *, allow_unsafe: bool = False) -> list[str]:
    """Return a sentence for each fault that `FIND_FAULTS` found, with its consequence and, if there is one, its remedy.

    Args:
        faults: the first column of the rows of `FIND_FAULTS`.
        allow_unsafe: leave out the shapes that can be migrated.
    """
    sentences = _NO_TABLE if allow_unsafe else {**_NO_TABLE, **_DANGERS}
    return [sentences[fault] for fault in faults if fault in sentences]
