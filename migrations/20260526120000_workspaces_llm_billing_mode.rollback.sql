-- Drops every workspace's own mode: all of them inherit afterwards.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE workspaces DROP COLUMN IF EXISTS llm_billing_mode;
