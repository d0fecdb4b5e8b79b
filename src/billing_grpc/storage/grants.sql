-- Everything the service's role may do, and nothing else. Run by the owner of the tables, after `billing-grpc migrate up`.
-- The log believes the name of a caller only in sessions of this role and of roles that were granted it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'billing_grpc') THEN
        CREATE ROLE billing_grpc LOGIN;
    END IF;
END
$$;
DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO billing_grpc', current_schema()); END $$;
GRANT SELECT ON workspaces TO billing_grpc;
GRANT UPDATE (llm_billing_mode) ON workspaces TO billing_grpc;
GRANT SELECT ON workspace_billing_mode_changes TO billing_grpc;
GRANT EXECUTE ON FUNCTION record_org_default_change(text, text, text) TO billing_grpc;
