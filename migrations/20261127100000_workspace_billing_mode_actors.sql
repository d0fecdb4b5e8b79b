-- The person behind the caller, and the transaction of each entry, by which a reader of the log misses no entry that commits late.
--
-- Both are defaults of the log, so the function that records changes stays as it is: it inserts without naming them. The server
-- works before and after this migration.
SET LOCAL lock_timeout = '500ms';

-- SECURITY INVOKER: the function that records changes runs as the owner. The service announces the actor like the principal, and
-- it is believed under the same condition.
CREATE OR REPLACE FUNCTION workspace_billing_mode_actor() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $function$
    SELECT CASE WHEN coalesce(
        (SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles WHERE rolname = 'billing_grpc'), false)
        THEN coalesce(current_setting('billing_grpc.actor', true), '') ELSE '' END
$function$;

-- The owner of the function that records changes need not be the role that migrates now, and without this right it would record,
-- and so allow, no change. The function tells a session only what it has announced itself.
GRANT EXECUTE ON FUNCTION workspace_billing_mode_actor() TO PUBLIC;

-- Entries from before have no transaction: they are settled. The defaults come after the columns, or they would fill old rows.
ALTER TABLE workspace_billing_mode_changes ADD COLUMN IF NOT EXISTS actor TEXT NOT NULL DEFAULT '';
ALTER TABLE workspace_billing_mode_changes ALTER COLUMN actor SET DEFAULT workspace_billing_mode_actor();
ALTER TABLE workspace_billing_mode_changes ADD COLUMN IF NOT EXISTS transaction_id XID8;
ALTER TABLE workspace_billing_mode_changes ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id();

CREATE INDEX IF NOT EXISTS workspace_billing_mode_changes_by_transaction
    ON workspace_billing_mode_changes (transaction_id) WHERE transaction_id IS NOT NULL;
