-- The table this service adds to, for a database that has none. Where the workspace server made it, in whatever schema the
-- search path finds it, nothing happens.
SET LOCAL lock_timeout = '500ms';

DO $$
BEGIN
    IF to_regclass('workspaces') IS NULL THEN
        CREATE TABLE IF NOT EXISTS workspaces (
            id         UUID PRIMARY KEY,
            name       TEXT NOT NULL DEFAULT '',
            created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
    END IF;
END
$$;
