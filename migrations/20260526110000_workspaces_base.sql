-- The table this service adds to, for a database that has none. Where the workspace server made it, nothing happens.
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS workspaces (
    id         UUID PRIMARY KEY,
    name       TEXT NOT NULL DEFAULT '',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
