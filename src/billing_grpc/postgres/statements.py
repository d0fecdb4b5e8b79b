"""Every statement that the service sends to its tables, each named for what it does.

Each read answers at least one row, which tells where it read (`standing`): no row at all is no answer, and never "no such
workspace".
"""

from typing import Final

from billing_grpc.postgres.standing import STANDING

# Decisions need `id` and the one column, and nothing else of the schema. The text is cut here: nobody stores a mode of a
# megabyte on purpose. The casts keep these queries true where the workspace server chose another text type. One row for all
# ids: their count is bounded even where a broken table holds one id a million times.
LOAD_OVERRIDES: Final = f"""
SELECT {STANDING}, found.ids, found.overrides
FROM pg_class AS relation
CROSS JOIN (
    SELECT array_agg(id) AS ids, array_agg(left(llm_billing_mode::text, 256)) AS overrides
    FROM (SELECT id, llm_billing_mode FROM workspaces WHERE id = ANY($1) LIMIT $2) AS asked
) AS found
WHERE relation.oid = 'workspaces'::regclass
"""

LOAD_RECORD: Final = f"""
SELECT {STANDING}, clock_timestamp(), found.*
FROM pg_class AS relation
LEFT JOIN (
    SELECT id, left(llm_billing_mode::text, 256), last.change_id::bigint, last.change_time::timestamptz,
           last.principal::text, last.database_user::text, left(last.new_override::text, 256)
    FROM workspaces
    LEFT JOIN LATERAL (
        SELECT change_id, change_time, principal, database_user, new_override FROM workspace_billing_mode_changes
        WHERE workspace_id = workspaces.id ORDER BY change_id DESC LIMIT 1
    ) AS last ON true
    WHERE id = $1 LIMIT 2
) AS found ON true
WHERE relation.oid = 'workspaces'::regclass
"""

# Reads after it has got its lock, as only this level does, whatever the role's default is.
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

# For this transaction alone. The timeouts end it on the server when the service is gone or frozen. An acknowledged write
# must survive a crash, also where the role prefers speed.
ANNOUNCE: Final = """
SELECT set_config('billing_grpc.principal', $1, true), set_config('billing_grpc.reason', $2, true),
       set_config('billing_grpc.request_id', $3, true), set_config('statement_timeout', $4, true),
       set_config('idle_in_transaction_session_timeout', $4, true),
       CASE WHEN current_setting('synchronous_commit') <> 'remote_apply'
           THEN set_config('synchronous_commit', 'on', true) END
"""
LOCK: Final = "SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE"

# No cast of the new mode: the column may be an enum.
WRITE: Final = "UPDATE workspaces SET llm_billing_mode = $2 WHERE id = $1"

# What was put off until the commit happens now, where its outcome can still be seen and its failure explained.
CHECK_NOW: Final = "SET CONSTRAINTS ALL IMMEDIATE"

# Fails once the moment has passed, in the server's clock, and the commit that follows in the same round trip is not even
# looked at: a write that its caller has given up must not happen later. No constant, which would be computed beforehand.
STILL_IN_TIME: Final = """
SELECT CASE WHEN clock_timestamp() < $1::timestamptz THEN 0
    ELSE ('billing_grpc gave this write up before ' || clock_timestamp())::integer END
"""
COMMIT: Final = "COMMIT"

_CHANGES: Final = f"""
SELECT {STANDING}, entry.*
FROM pg_class AS relation
LEFT JOIN (
    SELECT change_id::bigint, workspace_id::uuid, change_time::timestamptz, left(previous_override::text, 256),
           left(new_override::text, 256), principal::text, database_user::text, reason::text, request_id::text
    FROM workspace_billing_mode_changes
    WHERE change_id < $1{{of_one}} ORDER BY change_id DESC LIMIT $2
) AS entry ON true
WHERE relation.oid = 'workspace_billing_mode_changes'::regclass
ORDER BY entry.change_id DESC
"""
LIST_CHANGES: Final = _CHANGES.format(of_one="")
LIST_CHANGES_OF: Final = _CHANGES.format(of_one=" AND workspace_id = $3")

# What administration needs, from the catalogs: a question that fails as long as the schema is missing would be logged with
# every look. The triggers of every table that holds workspaces count: without them a change leaves no trail and no etag.
# Postgres copies no TRUNCATE trigger to a partition that comes later; `billing-grpc migrate up` adds it. Numbers of a
# sequence count as not migrated: one that lies behind the log refuses every change. So does the column's type: an enum has
# to know the three modes, and a bounded text to have room for them. A look at a row notices the rest: a table that is
# locked, a policy that hides rows, a server that is read-only.
CHECK_ADMINISTRATION: Final = """
WITH RECURSIVE part (relid) AS (
    SELECT to_regclass('workspaces')::oid
    UNION SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = relid
)
SELECT bool_and(attnum IS NOT NULL)
           AND bool_and(name <> 'change_id' OR attidentity = '')
           AND NOT EXISTS (
               SELECT FROM part CROSS JOIN unnest(ARRAY['updated', 'inserted', 'deleted', 'truncated']) AS fires
               WHERE NOT EXISTS (
                   SELECT FROM pg_trigger WHERE tgrelid = relid AND tgname = 'workspace_billing_mode_' || fires
                       AND (tgenabled = 'A'
                            OR tgenabled = 'O' AND current_setting('session_replication_role') <> 'replica'))),
       bool_and(has_column_privilege(attrelid, attnum, privilege)),
       coalesce(bool_and(
           CASE WHEN relation = 'workspaces' AND name = 'llm_billing_mode' THEN
               (atttypid NOT IN ('varchar'::regtype, 'bpchar'::regtype) OR atttypmod = -1
                   OR atttypmod - 4 >= length('platform_managed'))
               AND (NOT EXISTS (SELECT FROM pg_enum WHERE enumtypid = atttypid)
                   OR 3 = (SELECT count(*) FROM pg_enum WHERE enumtypid = atttypid
                           AND enumlabel IN ('platform_managed', 'byok', 'disabled')))
           END), false)
FROM (VALUES
    ('workspaces', 'SELECT', ARRAY['id', 'llm_billing_mode']),
    ('workspaces', 'UPDATE', ARRAY['llm_billing_mode']),
    ('workspace_billing_mode_changes', 'SELECT',
     ARRAY['change_id', 'workspace_id', 'change_time', 'previous_override', 'new_override', 'principal', 'database_user',
           'reason', 'request_id'])
) AS needed (relation, privilege, names)
CROSS JOIN unnest(names) AS name
LEFT JOIN pg_attribute ON attrelid = to_regclass(relation) AND attname = name AND NOT attisdropped
"""
