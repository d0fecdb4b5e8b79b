-- A workspace's own billing mode. NULL means: inherit the organisation's default. No backfill: every workspace inherits
-- until somebody decides otherwise.
SET LOCAL lock_timeout = '5s';

ALTER TABLE workspaces
    ADD COLUMN IF NOT EXISTS llm_billing_mode TEXT
    CHECK (llm_billing_mode IS NULL OR llm_billing_mode IN ('platform_managed', 'byok', 'disabled'));

COMMENT ON COLUMN workspaces.llm_billing_mode IS
    'Who pays for language-model calls: platform_managed, byok or disabled; NULL inherits the organisation''s default.';
