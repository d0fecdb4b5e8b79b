-- Every change of a workspace's billing mode: who, when, from, to, why, for which request. Written by the database itself, so
-- a direct UPDATE by the workspace server is recorded too, and never refused.
SET LOCAL lock_timeout = '5s';

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
-- The search path is pinned to what nobody else can put things into; the log is named with its schema.
DO $migration$
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION record_workspace_billing_mode_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            -- The service announces who is calling for the length of a transaction. Anybody can set these variables: they are
            -- believed only where the session was opened by the service's role, or one that was granted it.
            announced boolean := coalesce(
                (SELECT pg_has_role(session_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = 'billing_grpc'), false);
        BEGIN
            INSERT INTO %1$I.workspace_billing_mode_changes
                (workspace_id, change_time, previous_override, new_override, principal, database_user, reason, request_id)
            VALUES (
                CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END,
                clock_timestamp(),
                CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE OLD.llm_billing_mode END,
                CASE WHEN TG_OP = 'DELETE' THEN NULL ELSE NEW.llm_billing_mode END,
                CASE WHEN announced THEN coalesce(current_setting('billing_grpc.principal', true), '') ELSE '' END,
                session_user,
                CASE WHEN announced THEN coalesce(current_setting('billing_grpc.reason', true), '') ELSE '' END,
                CASE WHEN announced THEN coalesce(current_setting('billing_grpc.request_id', true), '') ELSE '' END
            );
            RETURN NULL;
        END
        $body$
    $function$, current_schema());
END
$migration$;

-- Whoever could attach it to a table of their own could write into the log.
REVOKE ALL ON FUNCTION record_workspace_billing_mode_change() FROM PUBLIC;

DROP TRIGGER IF EXISTS workspace_billing_mode_updated ON workspaces;
CREATE TRIGGER workspace_billing_mode_updated AFTER UPDATE ON workspaces FOR EACH ROW
    WHEN (OLD.llm_billing_mode IS DISTINCT FROM NEW.llm_billing_mode)
    EXECUTE FUNCTION record_workspace_billing_mode_change();

DROP TRIGGER IF EXISTS workspace_billing_mode_inserted ON workspaces;
CREATE TRIGGER workspace_billing_mode_inserted AFTER INSERT ON workspaces FOR EACH ROW
    WHEN (NEW.llm_billing_mode IS NOT NULL)
    EXECUTE FUNCTION record_workspace_billing_mode_change();

DROP TRIGGER IF EXISTS workspace_billing_mode_deleted ON workspaces;
CREATE TRIGGER workspace_billing_mode_deleted AFTER DELETE ON workspaces FOR EACH ROW
    WHEN (OLD.llm_billing_mode IS NOT NULL)
    EXECUTE FUNCTION record_workspace_billing_mode_change();
