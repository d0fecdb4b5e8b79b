-- Takes the entries of the organisation's default away: the log before this migration has no place for them.
SET LOCAL lock_timeout = '500ms';

DROP FUNCTION IF EXISTS record_org_default_change(text, text, text);

DO $$
BEGIN
    IF to_regclass('workspace_billing_mode_changes') IS NOT NULL THEN
        DELETE FROM workspace_billing_mode_changes WHERE workspace_id IS NULL;
        ALTER TABLE workspace_billing_mode_changes ALTER COLUMN workspace_id SET NOT NULL;
        ALTER TABLE workspace_billing_mode_changes DROP COLUMN IF EXISTS server;
        ALTER TABLE workspace_billing_mode_changes DROP COLUMN IF EXISTS origin;
    END IF;
END
$$;
