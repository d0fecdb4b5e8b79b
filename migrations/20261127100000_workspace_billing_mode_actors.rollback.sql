SET LOCAL lock_timeout = '500ms';

ALTER TABLE IF EXISTS workspace_billing_mode_changes DROP COLUMN IF EXISTS actor;
ALTER TABLE IF EXISTS workspace_billing_mode_changes DROP COLUMN IF EXISTS transaction_id;
DROP FUNCTION IF EXISTS workspace_billing_mode_actor();
