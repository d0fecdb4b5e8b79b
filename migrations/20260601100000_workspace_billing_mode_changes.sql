-- Every change of a workspace's billing mode: who, when, from, to, why, for which request. Written by the database itself, so
-- a direct UPDATE by the workspace server is recorded too, and never refused.
SET LOCAL lock_timeout = '500ms';

CREATE TABLE IF NOT EXISTS workspace_billing_mode_changes (
    change_id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id      UUID NOT NULL,
    change_time       TIMESTAMPTZ NOT NULL,
    previous_override TEXT,
    new_override      TEXT,
    principal         TEXT NOT NULL,
    database_user     TEXT NOT NULL,
    reason            TEXT NOT NULL,
    request_id        TEXT NOT NULL
);

CREATE INDEX IF NOT EXISTS workspace_billing_mode_changes_by_workspace
    ON workspace_billing_mode_changes (workspace_id, change_id DESC);

COMMENT ON TABLE workspace_billing_mode_changes IS
    'Every change of workspaces.llm_billing_mode. An empty principal: the change did not come through billing_grpc.';

-- SECURITY DEFINER, so that whoever may update the column needs no right on the log, and nobody needs INSERT.
-- The search path is pinned to what nobody else can put things into; tables are named with their schema.
DO $migration$
BEGIN
    IF (SELECT atttypid FROM pg_attribute WHERE attrelid = 'workspaces'::regclass AND attname = 'id') <> 'uuid'::regtype THEN
        RAISE EXCEPTION 'workspaces.id is not of type uuid: the log could not record a change, and would refuse it';
    END IF;
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION record_workspace_billing_mode_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            -- The service announces who is calling for the length of a transaction. Anybody can set these variables: they are
            -- believed only where the session was opened by the service's role, or one that was granted it and inherits it.
            -- USAGE and not MEMBER: whoever creates a role is a member of it, and need not be the service.
            announced boolean := coalesce(
                (SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles WHERE rolname = 'billing_grpc'), false);
            said_by text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.principal', true), '') ELSE '' END;
            said_why text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.reason', true), '') ELSE '' END;
            said_for text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.request_id', true), '') ELSE '' END;
        BEGIN
            IF TG_OP = 'TRUNCATE' THEN
                INSERT INTO %1$I.workspace_billing_mode_changes
                    (workspace_id, change_time, previous_override, new_override, principal, database_user, reason, request_id)
                SELECT id, clock_timestamp(), llm_billing_mode, NULL, said_by, session_user, said_why, said_for
                FROM %2$s WHERE llm_billing_mode IS NOT NULL;
                RETURN NULL;
            END IF;
            -- Two entries where a workspace gets another id: one for each chain. Otherwise the second says nothing new.
            INSERT INTO %1$I.workspace_billing_mode_changes
                (workspace_id, change_time, previous_override, new_override, principal, database_user, reason, request_id)
            SELECT id, clock_timestamp(), was, becomes, said_by, session_user, said_why, said_for
            FROM (VALUES
                (CASE WHEN TG_OP = 'INSERT' THEN NEW.id ELSE OLD.id END,
                 CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE OLD.llm_billing_mode::text END,
                 CASE WHEN TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id <> NEW.id) THEN NULL
                      ELSE NEW.llm_billing_mode::text END),
                (CASE WHEN TG_OP = 'UPDATE' THEN NEW.id END,
                 NULL,
                 CASE WHEN TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN NEW.llm_billing_mode::text END)
            ) AS entry (id, was, becomes)
            WHERE was IS DISTINCT FROM becomes;
            RETURN NULL;
        END
        $body$
    $function$,
    (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspace_billing_mode_changes'::regclass),
    (SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspaces'::regclass));
END
$migration$;

-- Nobody but the owner writes the log, moves its sequence, or attaches the function to a table of their own; not even where the
-- schema's default privileges would have given that away.
DO $revoke$
DECLARE
    sequence_name text := pg_get_serial_sequence('workspace_billing_mode_changes', 'change_id');
    target record;
BEGIN
    FOR target IN
        SELECT DISTINCT kind, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS name
        FROM (
            SELECT 'table' AS kind, acl.grantee, relowner AS owner FROM pg_class, aclexplode(relacl) AS acl
            WHERE pg_class.oid = 'workspace_billing_mode_changes'::regclass
            UNION ALL
            SELECT 'sequence', acl.grantee, relowner FROM pg_class, aclexplode(relacl) AS acl
            WHERE pg_class.oid = sequence_name::regclass
            UNION ALL
            SELECT 'function', acl.grantee, proowner FROM pg_proc,
                aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl
            WHERE pg_proc.oid = 'record_workspace_billing_mode_change()'::regprocedure
        ) AS granted
        WHERE grantee <> owner
    LOOP
        EXECUTE format(CASE target.kind
            WHEN 'table' THEN
                'REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON workspace_billing_mode_changes FROM %s'
            WHEN 'sequence' THEN 'REVOKE ALL ON SEQUENCE ' || sequence_name || ' FROM %s'
            ELSE 'REVOKE ALL ON FUNCTION record_workspace_billing_mode_change() FROM %s'
        END, target.name);
    END LOOP;
END
$revoke$;

DROP TRIGGER IF EXISTS workspace_billing_mode_updated ON workspaces;
CREATE TRIGGER workspace_billing_mode_updated AFTER UPDATE ON workspaces FOR EACH ROW
    WHEN (OLD.llm_billing_mode IS DISTINCT FROM NEW.llm_billing_mode OR OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION record_workspace_billing_mode_change();

DROP TRIGGER IF EXISTS workspace_billing_mode_inserted ON workspaces;
CREATE TRIGGER workspace_billing_mode_inserted AFTER INSERT ON workspaces FOR EACH ROW
    WHEN (NEW.llm_billing_mode IS NOT NULL)
    EXECUTE FUNCTION record_workspace_billing_mode_change();

DROP TRIGGER IF EXISTS workspace_billing_mode_deleted ON workspaces;
CREATE TRIGGER workspace_billing_mode_deleted AFTER DELETE ON workspaces FOR EACH ROW
    WHEN (OLD.llm_billing_mode IS NOT NULL)
    EXECUTE FUNCTION record_workspace_billing_mode_change();

DROP TRIGGER IF EXISTS workspace_billing_mode_truncated ON workspaces;
CREATE TRIGGER workspace_billing_mode_truncated BEFORE TRUNCATE ON workspaces FOR EACH STATEMENT
    EXECUTE FUNCTION record_workspace_billing_mode_change();
