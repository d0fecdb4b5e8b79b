-- The organisation's default leaves a trail in the log too: an entry without a workspace says which server first used it, and
-- where it came from. The server works before and after this migration.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE workspace_billing_mode_changes ALTER COLUMN workspace_id DROP NOT NULL;
ALTER TABLE workspace_billing_mode_changes ADD COLUMN IF NOT EXISTS server TEXT NOT NULL DEFAULT '';
ALTER TABLE workspace_billing_mode_changes ADD COLUMN IF NOT EXISTS origin TEXT NOT NULL DEFAULT '';

-- SECURITY DEFINER, so that the service needs no INSERT on the log: it can add this kind of entry and no other. The search path is
-- pinned, and the log is named with its schema.
DO $migration$
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION record_org_default_change(new_mode text, used_by text, came_from text) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            last record;
            number bigint;
        BEGIN
            IF new_mode NOT IN ('platform_managed', 'byok', 'disabled') THEN
                RAISE EXCEPTION 'an org default is a mode or NULL' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            -- The servers of one database see a change at the same time: the first records it, and the others find it.
            PERFORM pg_advisory_xact_lock(to_regclass(%2$L)::oid::bigint);
            SELECT new_override, change_id INTO last FROM %1$I.workspace_billing_mode_changes
            WHERE workspace_id IS NULL ORDER BY change_id DESC LIMIT 1;
            IF last.new_override IS NOT DISTINCT FROM new_mode THEN
                RETURN false;
            END IF;
            PERFORM set_config('synchronous_commit', 'on', true)
            WHERE current_setting('synchronous_commit') <> 'remote_apply';
            number := greatest(
                ((extract(epoch FROM clock_timestamp()) * 1000000)::bigint << 10) + pg_backend_pid() %% 1024,
                last.change_id + 1);
            FOR attempt IN 1..100 LOOP
                INSERT INTO %1$I.workspace_billing_mode_changes
                    (change_id, workspace_id, change_time, previous_override, new_override, principal, database_user, reason,
                     request_id, actor, server, origin)
                VALUES (number, NULL, clock_timestamp(), last.new_override, new_mode, '', session_user, '', '', '',
                        left(used_by, 256), left(came_from, 32))
                ON CONFLICT (change_id) DO NOTHING;
                EXIT WHEN FOUND;
                number := number + 1;
            END LOOP;
            RETURN true;
        END
        $body$
    $function$,
    (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspace_billing_mode_changes'::regclass),
    (SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspace_billing_mode_changes'::regclass));
END
$migration$;

-- Only the service may call it, also where the schema's default privileges would have given it away. A role that has its rights
-- already needs no second run of the grants.
DO $revoke$
DECLARE
    grantee_name text;
BEGIN
    FOR grantee_name IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
        FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
        WHERE pg_proc.oid = 'record_org_default_change(text, text, text)'::regprocedure AND grantee <> proowner
    LOOP
        EXECUTE 'REVOKE ALL ON FUNCTION record_org_default_change(text, text, text) FROM ' || grantee_name;
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'billing_grpc') THEN
        GRANT EXECUTE ON FUNCTION record_org_default_change(text, text, text) TO billing_grpc;
    END IF;
END
$revoke$;
