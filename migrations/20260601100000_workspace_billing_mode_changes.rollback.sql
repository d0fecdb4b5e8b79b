-- Stops recording and drops the log. Take a copy of workspace_billing_mode_changes first: what is in it is nowhere else.
SET LOCAL lock_timeout = '500ms';

DROP TRIGGER IF EXISTS workspace_billing_mode_updated ON workspaces;
DROP TRIGGER IF EXISTS workspace_billing_mode_inserted ON workspaces;
DROP TRIGGER IF EXISTS workspace_billing_mode_deleted ON workspaces;
DROP TRIGGER IF EXISTS workspace_billing_mode_truncated ON workspaces;
DROP FUNCTION IF EXISTS record_workspace_billing_mode_change();
DROP TABLE IF EXISTS workspace_billing_mode_changes;
