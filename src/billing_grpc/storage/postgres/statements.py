"""The SQL of the service, each statement named for what it does.

A read always returns at least one row, which holds the standing of its tables (`standing`). No row means that the read has
failed. It never means that the workspace does not exist.
"""

from typing import Final

from billing_grpc.storage.postgres.standing import STANDING

# A new connection asks the server itself. A pooler tells a new client what its first session was told, also long after a
# failover, and it invents the process id that it announces: the server's own process id shows whether there is a pooler.
# The columns: read-only, process id, search path and role as a new session would have them.
INSPECT_SESSION: Final = """
SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool,
       pg_catalog.pg_backend_pid(),
       (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'),
       coalesce((
           SELECT pg_catalog.substr(setting, 6)
           FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS setting
           WHERE setting LIKE 'role=%'
               AND (setrole = 0 OR setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
               AND (setdatabase = 0 OR setdatabase = (
                   SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
           ORDER BY setrole = 0, setdatabase = 0 LIMIT 1), 'none')
"""

# A timeout of transactions, which PostgreSQL 17 and later have, would end the session and not only the statement: a lock on
# the table would look like a database that is down. The statement timeout is enough.
_NO_TRANSACTION_TIMEOUT: Final = """
CASE WHEN pg_catalog.current_setting('transaction_timeout', true) <> '0'
    THEN pg_catalog.set_config('transaction_timeout', '0', {local}) END
"""

# For a connection that has its session for itself. No answer relies on these settings: each read proves its own.
SET_UP_SESSION: Final = (
    "SET statement_timeout = '{statement_timeout}'; SET default_transaction_isolation = 'read committed'; SELECT "
    + _NO_TRANSACTION_TIMEOUT.format(local="false")
)

# The session of a connection that was severed ends soon, and frees its place in the server.
NOTICE_LOST_CLIENT: Final = "SET client_connection_check_interval = 100"

# For a connection through a transaction pooler, at the beginning of each transaction: any client may have changed the
# settings of the session that the pooler happens to use.
CHECK_SESSION: Final = f"""
SELECT pg_catalog.set_config('statement_timeout', $1, true), {_NO_TRANSACTION_TIMEOUT.format(local="true")},
       pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role')
"""

WORKSPACES: Final = "workspaces"
LOG: Final = "workspace_billing_mode_changes"

_OF_WORKSPACES: Final = STANDING.format(relation="workspaces_class")
_OF_LOG: Final = STANDING.format(relation="log_class")

# A decision needs the columns `id` and `llm_billing_mode` alone. The text is cut here, because a mode of a megabyte is a
# mistake. The casts keep the query correct if the workspace server chose another text type. LIMIT bounds the answer also
# if a broken table holds one id a million times. The rows come back as texts in one array, each the id, and then = and the
# override unless it is NULL. That is cheaper to plan and to send than arrays of ids and of overrides.
LOAD_OVERRIDES: Final = f"""
SELECT {_OF_WORKSPACES}, ARRAY(
    SELECT pg_catalog.concat(id::pg_catalog.uuid, CASE WHEN llm_billing_mode IS NOT NULL THEN '=' END,
                             pg_catalog.left(llm_billing_mode::pg_catalog.text, 256))
    FROM workspaces WHERE id = ANY($1::pg_catalog.uuid[]) LIMIT $2::pg_catalog.int8)
FROM pg_catalog.pg_class AS workspaces_class
WHERE workspaces_class.oid = 'workspaces'::pg_catalog.regclass
"""

# The same, for a server that keeps it. Two changes do not make Postgres look at a kept statement again: another table hides
# this one, or a role becomes free of row-level security, as by `ALTER ROLE ... BYPASSRLS`. The statement would go on hiding
# rows then, although `row_security_active` denies that. So no row comes back if the name means another table, or if
# its table has row-level security.
KEPT_LOAD_OVERRIDES: Final = f"""{LOAD_OVERRIDES}
    AND workspaces_class.oid = pg_catalog.to_regclass('workspaces')
    AND NOT workspaces_class.relrowsecurity
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

# Whether workspaces have a name that the role may read. The table belongs to another server and need not have the column.
HAVE_NAMES: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_attribute
    WHERE attrelid = 'workspaces'::pg_catalog.regclass AND attname = 'name' AND NOT attisdropped
        AND pg_catalog.has_column_privilege(attrelid, attnum, 'SELECT'))
"""

# One call looks at $2 ids, so that it ends in time however few workspaces are wanted. An id that a broken table holds more
# than once is one row here, as in a decision. Texts are compared byte by byte: the column may ignore the case.
_WORKSPACES: Final = f"""
WITH seen AS MATERIALIZED (
    SELECT id, pg_catalog.count(*) AS copies,
           pg_catalog.min(pg_catalog.left(llm_billing_mode::pg_catalog.text, 256) COLLATE pg_catalog."C") AS override,
           {{name}} AS name
    FROM workspaces WHERE id IS NOT NULL AND ($1::pg_catalog.uuid IS NULL OR id > $1::pg_catalog.uuid)
    GROUP BY id ORDER BY id LIMIT $2::pg_catalog.int8
), wanted AS (
    SELECT id, copies, override, name FROM seen
    WHERE copies > 1 OR CASE WHEN override IS NULL THEN $4::pg_catalog.bool
        WHEN override = ANY($5::pg_catalog.text[]) THEN override = ANY($6::pg_catalog.text[])
        ELSE $7::pg_catalog.bool END
    ORDER BY id LIMIT $3::pg_catalog.int8
)
SELECT {_OF_WORKSPACES}, {_OF_LOG}, (SELECT pg_catalog.count(*) FROM seen),
       (SELECT id::pg_catalog.uuid FROM seen ORDER BY id DESC LIMIT 1), found.*
FROM pg_catalog.pg_class AS workspaces_class
CROSS JOIN pg_catalog.pg_class AS log_class
LEFT JOIN (
    SELECT id::pg_catalog.uuid AS id, copies, override, pg_catalog.left(name::pg_catalog.text, 256),
           last.change_id::pg_catalog.int8, last.change_time::pg_catalog.timestamptz,
           last.principal::pg_catalog.text, last.database_user::pg_catalog.text,
           pg_catalog.left(last.new_override::pg_catalog.text, 256)
    FROM wanted
    LEFT JOIN LATERAL (
        SELECT change_id, change_time, principal, database_user, new_override FROM workspace_billing_mode_changes
        WHERE workspace_id = wanted.id ORDER BY change_id DESC LIMIT 1
    ) AS last ON true
) AS found ON true
WHERE workspaces_class.oid = 'workspaces'::pg_catalog.regclass
    AND log_class.oid = 'workspace_billing_mode_changes'::pg_catalog.regclass
ORDER BY found.id
"""
LIST_WORKSPACES: Final = _WORKSPACES.format(name="NULL::pg_catalog.text")
LIST_NAMED_WORKSPACES: Final = _WORKSPACES.format(name="pg_catalog.min(pg_catalog.left(name::pg_catalog.text, 256))")

# Counts by override. An unrecognised text counts as the empty one, so that a million different ones are one row. Only in a
# database that takes any bytes those outside ASCII stay apart, because Python finds out whether they are text. Ids that are
# certainly unique need no grouping by id, which takes several times as long.
COUNT_OVERRIDES: Final = f"""
WITH ids (are_unique) AS MATERIALIZED (
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_class ON pg_class.oid = indrelid
        JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[0] AND attname = 'id'
        WHERE indrelid = 'workspaces'::pg_catalog.regclass AND indisunique AND indisvalid AND indnkeyatts = 1
            AND indpred IS NULL AND (relkind = 'p' OR NOT relhassubclass))
), bytes (are_possible) AS MATERIALIZED (
    SELECT pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'
), kinds (id, override) AS NOT MATERIALIZED (
    SELECT id, CASE
        WHEN llm_billing_mode IS NULL THEN NULL
        WHEN llm_billing_mode::pg_catalog.text COLLATE pg_catalog."C" = ANY($1::pg_catalog.text[])
            THEN llm_billing_mode::pg_catalog.text COLLATE pg_catalog."C"
        WHEN (SELECT are_possible FROM bytes)
            AND llm_billing_mode::pg_catalog.text COLLATE pg_catalog."C" ~ '[^\\x01-\\x7f]'
            THEN pg_catalog.left(llm_billing_mode::pg_catalog.text, 256) COLLATE pg_catalog."C"
        ELSE '' END
    FROM workspaces WHERE id IS NOT NULL
)
SELECT {_OF_WORKSPACES}, pg_catalog.statement_timestamp(), counted.*
FROM pg_catalog.pg_class AS workspaces_class
LEFT JOIN (
    SELECT 1::pg_catalog.int8 AS copies, override, pg_catalog.count(*) AS workspaces
    FROM kinds WHERE (SELECT are_unique FROM ids) GROUP BY override
    UNION ALL
    SELECT least(copies, 2), override, pg_catalog.count(*) FROM (
        SELECT pg_catalog.count(*) AS copies, pg_catalog.min(override) AS override
        FROM kinds WHERE NOT (SELECT are_unique FROM ids) GROUP BY id
    ) AS by_id GROUP BY least(copies, 2), override
    LIMIT $2::pg_catalog.int8
) AS counted ON true
WHERE workspaces_class.oid = 'workspaces'::pg_catalog.regclass
"""

# At this level a statement that waited for a lock reads the state after the wait. At another level, which may be the role's
# default, it would read the state before the first statement, and a table that was rewritten meanwhile would look empty.
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

# These settings hold for one transaction. The timeouts end it on the server if the service is gone or frozen. An
# acknowledged write must survive a crash, so synchronous_commit is on, whatever the role's default is.
ANNOUNCE: Final = """
SELECT pg_catalog.set_config('billing_grpc.principal', $1, true), pg_catalog.set_config('billing_grpc.reason', $2, true),
       pg_catalog.set_config('billing_grpc.request_id', $3, true), pg_catalog.set_config('billing_grpc.actor', $5, true),
       pg_catalog.set_config('statement_timeout', $4, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', $4, true),
       CASE WHEN pg_catalog.current_setting('synchronous_commit') <> 'remote_apply'
           THEN pg_catalog.set_config('synchronous_commit', 'on', true) END
"""
# No timeout ends a commit that waits for a synchronous standby. It keeps its session and its lock.
STUCK_COMMITS: Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE usename = session_user AND wait_event = 'SyncRep'
    AND query_start < pg_catalog.clock_timestamp() - INTERVAL '1 second'
"""
LOCK: Final = "SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE"

# The new mode is not cast, because the column may be an enum.
WRITE: Final = "UPDATE workspaces SET llm_billing_mode = $2 WHERE id = $1"

# Deferred constraints and triggers run now, while their outcome can still be read and their failure explained.
CHECK_NOW: Final = "SET CONSTRAINTS ALL IMMEDIATE"

# Fails once the moment has passed, by the server's clock. Then the server skips the COMMIT that follows in the same round
# trip: a write whose caller has given up must not happen later. The ELSE branch is not a constant, because the planner
# would evaluate a constant, and fail, in every case.
STILL_IN_TIME: Final = """
SELECT CASE WHEN pg_catalog.clock_timestamp() < $1::pg_catalog.timestamptz THEN 0
    ELSE pg_catalog.concat('billing_grpc gave this write up before ', pg_catalog.clock_timestamp())::pg_catalog.int4 END
"""
COMMIT: Final = "COMMIT"

# Whether entries have the columns of migrations that may come later: the person behind the caller, the transaction, and for
# the org default its server and origin.
HAVE_ACTORS: Final = """
SELECT 4 = pg_catalog.count(*) FROM pg_catalog.pg_attribute
WHERE attrelid = 'workspace_billing_mode_changes'::pg_catalog.regclass
    AND attname IN ('actor', 'transaction_id', 'server', 'origin') AND NOT attisdropped
    AND pg_catalog.has_column_privilege(attrelid, attnum, 'SELECT')
"""

CAN_RECORD_ORG_DEFAULT: Final = """
SELECT coalesce(pg_catalog.has_function_privilege(
    pg_catalog.to_regprocedure('record_org_default_change(text, text, text)')::pg_catalog.oid, 'EXECUTE'), false)
"""
RECORD_ORG_DEFAULT: Final = """
SELECT record_org_default_change($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text)
"""

_CHANGES: Final = f"""
{{fresh}}
SELECT {_OF_LOG}, {{snapshot}}, entry.*
FROM pg_catalog.pg_class AS log_class
LEFT JOIN (
    SELECT change_id::pg_catalog.int8, workspace_id::pg_catalog.uuid, change_time::pg_catalog.timestamptz,
           pg_catalog.left(previous_override::pg_catalog.text, 256), pg_catalog.left(new_override::pg_catalog.text, 256),
           principal::pg_catalog.text, database_user::pg_catalog.text, reason::pg_catalog.text,
           request_id::pg_catalog.text, {{actor}}
    FROM {{entries}}
    WHERE change_id < $1 AND ($3::pg_catalog.uuid IS NULL OR workspace_id = $3::pg_catalog.uuid)
        AND ($4::pg_catalog.bool IS NULL OR (workspace_id IS NULL) = $4::pg_catalog.bool){{committed}}
    ORDER BY change_id DESC LIMIT $2
) AS entry ON true
WHERE log_class.oid = 'workspace_billing_mode_changes'::pg_catalog.regclass
ORDER BY entry.change_id DESC
"""
LIST_CHANGES: Final = _CHANGES.format(
    fresh="",
    snapshot="NULL::pg_catalog.text, false",
    actor="''::pg_catalog.text, ''::pg_catalog.text, ''::pg_catalog.text",
    entries="workspace_billing_mode_changes",
    committed="",
)

# Pages show what was committed in the snapshot $5 of the first one. An entry without a transaction is from before the
# migration. A visible one whose transaction has not begun was restored from another database. Both were committed before any
# list. The second column says whether a snapshot is of another database, whose transactions are ahead of this one's.
_TAKES_SNAPSHOTS: Final = {
    "snapshot": (
        "pg_catalog.pg_current_snapshot()::pg_catalog.text, coalesce(greatest("
        "pg_catalog.pg_snapshot_xmax($5::pg_catalog.pg_snapshot), pg_catalog.pg_snapshot_xmax($6::pg_catalog.pg_snapshot))"
        " > pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()), false)"
    ),
    "actor": "actor::pg_catalog.text, server::pg_catalog.text, origin::pg_catalog.text",
    "committed": """
        AND ($5::pg_catalog.pg_snapshot IS NULL OR transaction_id IS NULL
             OR transaction_id >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
             OR pg_catalog.pg_visible_in_snapshot(transaction_id, $5::pg_catalog.pg_snapshot))""",
}
LIST_ACTORS_CHANGES: Final = _CHANGES.format(**_TAKES_SNAPSHOTS, fresh="", entries="workspace_billing_mode_changes")
# What was committed since the snapshot $6. Materialized, because the index on transactions finds the few entries of a log of
# millions, and the one on numbers does not.
LIST_NEWER_CHANGES: Final = _CHANGES.format(
    **_TAKES_SNAPSHOTS,
    fresh="""WITH fresh AS MATERIALIZED (
    SELECT * FROM workspace_billing_mode_changes
    WHERE transaction_id >= pg_catalog.pg_snapshot_xmin($6::pg_catalog.pg_snapshot)
        AND transaction_id < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
        AND NOT pg_catalog.pg_visible_in_snapshot(transaction_id, $6::pg_catalog.pg_snapshot)
)""",
    entries="fresh",
)

# The columns: the schema is complete; the role has every right; the column can hold every mode. The query reads the
# catalogs, because a query of the tables would fail, and log, once a second while the schema is missing.
# - Every table that holds workspaces needs the triggers: without them a change leaves no trail and no new etag. Postgres
#   does not copy a TRUNCATE trigger to a later partition; `billing-grpc migrate up` adds it.
# - A change_id from a sequence counts as not migrated: a sequence that is behind the log refuses every change.
# - The column must take NULL and the three modes: an enum must have them, and a bounded text must have room for them.
# A locked table, a policy that hides rows and a read-only server are found by the read of a row that follows.
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
