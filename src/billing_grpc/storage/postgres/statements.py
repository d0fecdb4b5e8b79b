"""Every statement that the service sends to its tables, each named for what it does.

Each read answers at least one row, which tells where it read (`standing`): no row at all is no answer, and never "no such
workspace".
"""

from typing import Final

from billing_grpc.storage.postgres.standing import STANDING

WORKSPACES: Final = "workspaces"
LOG: Final = "workspace_billing_mode_changes"

_OF_WORKSPACES: Final = STANDING.format(relation="workspaces_class")
_OF_LOG: Final = STANDING.format(relation="log_class")

# Decisions need `id` and the one column, and nothing else of the schema. The text is cut here: nobody stores a mode of a
# megabyte on purpose. The casts keep these queries true where the workspace server chose another text type. One row for all
# ids: their count is bounded even where a broken table holds one id a million times.
LOAD_OVERRIDES: Final = f"""
SELECT {_OF_WORKSPACES}, found.ids, found.overrides
FROM pg_catalog.pg_class AS workspaces_class
CROSS JOIN (
    SELECT pg_catalog.array_agg(id::pg_catalog.uuid) AS ids,
           pg_catalog.array_agg(pg_catalog.left(llm_billing_mode::pg_catalog.text, 256)) AS overrides
    FROM (SELECT id, llm_billing_mode FROM workspaces WHERE id = ANY($1) LIMIT $2) AS asked
) AS found
WHERE workspaces_class.oid = 'workspaces'::pg_catalog.regclass
"""

LOAD_RECORD: Final = f"""
SELECT {_OF_WORKSPACES}, {_OF_LOG}, pg_catalog.clock_timestamp(), found.*
FROM pg_catalog.pg_class AS workspaces_class
CROSS JOIN pg_catalog.pg_class AS log_class
LEFT JOIN (
    SELECT id::pg_catalog.uuid, pg_catalog.left(llm_billing_mode::pg_catalog.text, 256),
           last.change_id::pg_catalog.int8, last.change_time::pg_catalog.timestamptz,
           last.principal::pg_catalog.text, last.database_user::pg_catalog.text,
           pg_catalog.left(last.new_override::pg_catalog.text, 256)
    FROM workspaces
    LEFT JOIN LATERAL (
        SELECT change_id, change_time, principal, database_user, new_override FROM workspace_billing_mode_changes
        WHERE workspace_id = workspaces.id ORDER BY change_id DESC LIMIT 1
    ) AS last ON true
    WHERE id = $1 LIMIT 2
) AS found ON true
WHERE workspaces_class.oid = 'workspaces'::pg_catalog.regclass
    AND log_class.oid = 'workspace_billing_mode_changes'::pg_catalog.regclass
"""

# Reads after it has got its lock, as only this level does, whatever the role's default is. Under another level everything
# would be read as of the first statement, and a table that is rewritten meanwhile would look empty.
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

# For this transaction alone. The timeouts end it on the server when the service is gone or frozen. An acknowledged write
# must survive a crash, also where the role prefers speed.
ANNOUNCE: Final = """
SELECT pg_catalog.set_config('billing_grpc.principal', $1, true), pg_catalog.set_config('billing_grpc.reason', $2, true),
       pg_catalog.set_config('billing_grpc.request_id', $3, true), pg_catalog.set_config('statement_timeout', $4, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', $4, true),
       CASE WHEN pg_catalog.current_setting('synchronous_commit') <> 'remote_apply'
           THEN pg_catalog.set_config('synchronous_commit', 'on', true) END
"""
# A commit that waits for a standby that is away ends with no timeout, and keeps its session and its lock.
STUCK_COMMITS: Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE usename = session_user AND wait_event = 'SyncRep'
    AND query_start < pg_catalog.clock_timestamp() - INTERVAL '1 second'
"""
LOCK: Final = "SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE"

# No cast of the new mode: the column may be an enum.
WRITE: Final = "UPDATE workspaces SET llm_billing_mode = $2 WHERE id = $1"

# What was put off until the commit happens now, where its outcome can still be seen and its failure explained.
CHECK_NOW: Final = "SET CONSTRAINTS ALL IMMEDIATE"

# Fails once the moment has passed, in the server's clock, and the commit that follows in the same round trip is not even
# looked at: a write that its caller has given up must not happen later. No constant, which would be computed beforehand.
STILL_IN_TIME: Final = """
SELECT CASE WHEN pg_catalog.clock_timestamp() < $1::pg_catalog.timestamptz THEN 0
    ELSE pg_catalog.concat('billing_grpc gave this write up before ', pg_catalog.clock_timestamp())::pg_catalog.int4 END
"""
COMMIT: Final = "COMMIT"

_CHANGES: Final = f"""
SELECT {_OF_LOG}, entry.*
FROM pg_catalog.pg_class AS log_class
LEFT JOIN (
    SELECT change_id::pg_catalog.int8, workspace_id::pg_catalog.uuid, change_time::pg_catalog.timestamptz,
           pg_catalog.left(previous_override::pg_catalog.text, 256), pg_catalog.left(new_override::pg_catalog.text, 256),
           principal::pg_catalog.text, database_user::pg_catalog.text, reason::pg_catalog.text,
           request_id::pg_catalog.text
    FROM workspace_billing_mode_changes
    WHERE change_id < $1{{of_one}} ORDER BY change_id DESC LIMIT $2
) AS entry ON true
WHERE log_class.oid = 'workspace_billing_mode_changes'::pg_catalog.regclass
ORDER BY entry.change_id DESC
"""
LIST_CHANGES: Final = _CHANGES.format(of_one="")
LIST_CHANGES_OF: Final = _CHANGES.format(of_one=" AND workspace_id = $3")

# What administration needs, from the catalogs: a question that fails as long as the schema is missing would be logged with
# every look. The triggers of every table that holds workspaces count: without them a change leaves no trail and no etag.
# Postgres copies no TRUNCATE trigger to a partition that comes later; `billing-grpc migrate up` adds it. Numbers of a
# sequence count as not migrated: one that lies behind the log refuses every change. So does the column: it takes NULL and
# every mode, so an enum has to know the three, and a bounded text to have room for them. A look at a row notices the rest: a
# table that is locked, a policy that hides rows, a server that is read-only.
CHECK_ADMINISTRATION: Final = """
WITH RECURSIVE part (relid) AS (
    SELECT pg_catalog.to_regclass('workspaces')::pg_catalog.oid
    UNION SELECT inhrelid FROM pg_catalog.pg_inherits JOIN part ON inhparent = relid
)
SELECT pg_catalog.bool_and(attnum IS NOT NULL)
           AND pg_catalog.bool_and(name <> 'change_id' OR attidentity = '')
           AND NOT EXISTS (
               SELECT FROM part CROSS JOIN pg_catalog.unnest(ARRAY['updated', 'inserted', 'deleted', 'truncated']) AS fires
               WHERE NOT EXISTS (
                   SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = relid AND tgname = 'workspace_billing_mode_' || fires
                       AND (tgenabled = 'A'
                            OR tgenabled = 'O' AND pg_catalog.current_setting('session_replication_role') <> 'replica'))),
       pg_catalog.bool_and(pg_catalog.has_column_privilege(attrelid, attnum, privilege)),
       coalesce(pg_catalog.bool_and(
           CASE WHEN relation = 'workspaces' AND name = 'llm_billing_mode' THEN
               attgenerated = '' AND NOT attnotnull AND (
                   SELECT base.typcategory IN ('S', 'E')
                       AND (base.typname NOT IN ('varchar', 'bpchar') OR length = -1
                           OR length - 4 >= pg_catalog.length('platform_managed'))
                       AND (base.typtype <> 'e' OR 3 = (
                           SELECT pg_catalog.count(*) FROM pg_catalog.pg_enum
                           WHERE enumtypid = base.oid AND enumlabel IN ('platform_managed', 'byok', 'disabled')))
                   FROM pg_catalog.pg_type AS own
                   JOIN pg_catalog.pg_type AS base
                       ON base.oid = CASE own.typtype WHEN 'd' THEN own.typbasetype ELSE own.oid END
                   CROSS JOIN LATERAL (
                       SELECT CASE own.typtype WHEN 'd' THEN own.typtypmod ELSE atttypmod END) AS of_type (length)
                   WHERE own.oid = atttypid)
           END), false)
FROM (VALUES
    ('workspaces', 'SELECT', ARRAY['id', 'llm_billing_mode']),
    ('workspaces', 'UPDATE', ARRAY['llm_billing_mode']),
    ('workspace_billing_mode_changes', 'SELECT',
     ARRAY['change_id', 'workspace_id', 'change_time', 'previous_override', 'new_override', 'principal', 'database_user',
           'reason', 'request_id'])
) AS needed (relation, privilege, names)
CROSS JOIN pg_catalog.unnest(names) AS name
LEFT JOIN pg_catalog.pg_attribute ON attrelid = pg_catalog.to_regclass(relation) AND attname = name AND NOT attisdropped
"""
