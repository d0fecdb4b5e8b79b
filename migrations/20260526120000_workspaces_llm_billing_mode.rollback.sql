-- Drops every workspace's own mode: all of them inherit afterwards.
SET LOCAL lock_timeout = '5s';

ALTER TABLE workspaces DROP COLUMN IF EXISTS llm_billing_mode;
