-- A workspace's own billing mode. NULL means: inherit the organisation's default. No backfill: every workspace inherits
-- until somebody decides otherwise. Where the column is there already, it keeps its CHECK, whatever its name.
SET LOCAL lock_timeout = '500ms';

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'workspaces'::regclass AND attname = 'llm_billing_mode' AND NOT attisdropped
    ) THEN
        ALTER TABLE workspaces ADD COLUMN IF NOT EXISTS llm_billing_mode TEXT;
        -- NOT VALID spares a scan of the whole table under the lock that stops everybody: every row is NULL, so none can
        -- break it. Rows written from now on are checked.
        ALTER TABLE workspaces ADD CONSTRAINT workspaces_llm_billing_mode_check
            CHECK (llm_billing_mode IS NULL OR llm_billing_mode IN ('platform_managed', 'byok', 'disabled')) NOT VALID;
    END IF;
END
$$;

COMMENT ON COLUMN workspaces.llm_billing_mode IS
    'Who pays for language-model calls: platform_managed, byok or disabled; NULL inherits the organisation''s default.';
