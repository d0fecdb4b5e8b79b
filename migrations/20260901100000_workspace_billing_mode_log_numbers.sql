-- Numbers of the change log that come from the clock instead of a sequence, a trail of TRUNCATE in every partition, and no entry
-- for a row that only moves between partitions.
--
-- A sequence is lost or lies behind after a partial restore: then every change of a mode is refused. A new log would begin again
-- at 1, and an etag, which is a number of the log, would come back. The clock does neither.
SET LOCAL lock_timeout = '500ms';

-- Microseconds since 1970, times 1024: above every number of a sequence, and below 2^63 until the year 2255. The default is for
-- entries that are written by hand; the trigger names its number.
ALTER TABLE workspace_billing_mode_changes ALTER COLUMN change_id DROP IDENTITY IF EXISTS;
ALTER TABLE workspace_billing_mode_changes ALTER COLUMN change_id
    SET DEFAULT ((extract(epoch FROM clock_timestamp()) * 1000000)::bigint << 10);

-- As in the migration before: SECURITY DEFINER, a pinned search path, tables named with their schema.
DO $migration$
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION record_workspace_billing_mode_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            -- Believed only where the session was opened by the service's role, or one that was granted it and inherits it.
            -- USAGE and not MEMBER: whoever creates a role is a member of it, and need not be the service.
            announced boolean := coalesce(
                (SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles WHERE rolname = 'billing_grpc'), false);
            said_by text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.principal', true), '') ELSE '' END;
            said_why text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.reason', true), '') ELSE '' END;
            said_for text := CASE WHEN announced THEN coalesce(current_setting('billing_grpc.request_id', true), '') ELSE '' END;
            in_partition boolean := (
                SELECT relispartition AND to_regclass(%3$L) IS NOT NULL FROM pg_class WHERE pg_class.oid = TG_RELID);
            left_behind text;
            entries refcursor;
            entry record;
            number bigint;
        BEGIN
            -- A table that was detached or no longer inherits keeps some triggers; its rows are workspaces no more.
            IF TG_RELID <> to_regclass(%3$L) AND NOT EXISTS (
                WITH RECURSIVE above (relid) AS (
                    SELECT TG_RELID
                    UNION SELECT inhparent FROM pg_inherits JOIN above ON inhrelid = relid
                )
                SELECT FROM above WHERE relid = to_regclass(%3$L)
            ) THEN
                RETURN NULL;
            END IF;
            -- A row that moves to another partition is deleted from one and inserted into the other, by one statement. The
            -- first half looks for what became of the row, and the second adds nothing to what the log says already.
            IF TG_OP = 'DELETE' AND in_partition THEN
                SELECT llm_billing_mode::text INTO left_behind FROM %2$s WHERE id = OLD.id LIMIT 1;
            ELSIF TG_OP = 'INSERT' AND in_partition THEN
                IF NEW.llm_billing_mode::text = (
                    SELECT new_override FROM %1$I.workspace_billing_mode_changes
                    WHERE workspace_id = NEW.id ORDER BY change_id DESC LIMIT 1
                ) AND 1 = (SELECT count(*) FROM (SELECT FROM %2$s WHERE id = NEW.id LIMIT 2) AS same) THEN
                    RETURN NULL;
                END IF;
            END IF;
            IF TG_OP = 'TRUNCATE' THEN
                -- Each table records its own rows, and the uppermost those of tables that lack a trigger of their own.
                OPEN entries FOR
                    SELECT id, llm_billing_mode::text AS was, NULL::text AS becomes
                    FROM %2$s AS workspace
                    WHERE llm_billing_mode IS NOT NULL AND (
                        workspace.tableoid = TG_RELID
                        OR (TG_RELID = to_regclass(%3$L) AND workspace.tableoid NOT IN (
                            SELECT tgrelid FROM pg_trigger
                            WHERE tgname = 'workspace_billing_mode_truncated' AND tgenabled IN ('O', 'A'))));
            ELSE
                -- Two entries where a workspace gets another id: one for each chain. Otherwise the second says nothing new.
                OPEN entries FOR
                    SELECT id, was, becomes
                    FROM (VALUES
                        (CASE WHEN TG_OP = 'INSERT' THEN NEW.id ELSE OLD.id END,
                         CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE OLD.llm_billing_mode::text END,
                         CASE WHEN TG_OP = 'DELETE' THEN left_behind
                              WHEN TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN NULL
                              ELSE NEW.llm_billing_mode::text END),
                        (CASE WHEN TG_OP = 'UPDATE' THEN NEW.id END,
                         NULL,
                         CASE WHEN TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN NEW.llm_billing_mode::text END)
                    ) AS changed (id, was, becomes)
                    WHERE was IS DISTINCT FROM becomes;
            END IF;
            LOOP
                FETCH entries INTO entry;
                EXIT WHEN NOT FOUND;
                -- Above what the log says of this workspace, also where the clock was set back. The lowest bits tell sessions
                -- that write in one microsecond apart: the later one would have to wait for the other's transaction.
                number := greatest(
                    ((extract(epoch FROM clock_timestamp()) * 1000000)::bigint << 10) + pg_backend_pid() %% 1024,
                    (SELECT max(change_id) + 1 FROM %1$I.workspace_billing_mode_changes WHERE workspace_id = entry.id));
                FOR attempt IN 1..100 LOOP  -- not for ever: a rule or a trigger may drop what is inserted
                    INSERT INTO %1$I.workspace_billing_mode_changes
                        (change_id, workspace_id, change_time, previous_override, new_override, principal, database_user, reason,
                         request_id)
                    VALUES (number, entry.id, clock_timestamp(), entry.was, entry.becomes, said_by, session_user, said_why,
                            said_for)
                    ON CONFLICT (change_id) DO NOTHING;
                    EXIT WHEN FOUND;
                    number := number + 1;
                END LOOP;
            END LOOP;
            CLOSE entries;
            RETURN NULL;
        END
        $body$
    $function$,
    (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspace_billing_mode_changes'::regclass),
    (SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspaces'::regclass),
    (SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = 'workspaces'::regclass));
END
$migration$;

-- Gives every table that holds workspaces the triggers it lacks, and answers those tables. Postgres copies row triggers to
-- partitions, also to later ones, but neither TRUNCATE triggers nor any trigger to tables that inherit. `billing-grpc migrate up`
-- calls this every time; call it after ATTACH PARTITION or CREATE TABLE ... PARTITION OF.
CREATE OR REPLACE FUNCTION attach_workspace_billing_mode_triggers() RETURNS SETOF regclass
LANGUAGE plpgsql SET lock_timeout = '500ms' AS $function$
DECLARE
    lacking record;
BEGIN
    IF to_regclass('workspace_billing_mode_changes') IS NULL THEN
        RAISE EXCEPTION 'workspace_billing_mode_changes is missing although its migration was applied: restore it'
            USING DETAIL = 'Without it the triggers would refuse every change of a mode.';
    END IF;
    FOR lacking IN
        WITH RECURSIVE held_in (relid) AS (
            SELECT to_regclass('workspaces')::oid
            UNION SELECT inhrelid FROM pg_inherits JOIN held_in ON inhparent = relid
        )
        SELECT relid::regclass AS name, needed.trigger, needed.fires
        FROM held_in JOIN pg_class ON pg_class.oid = relid, LATERAL (VALUES
            ('workspace_billing_mode_updated', 'AFTER UPDATE ON %s FOR EACH ROW'
                ' WHEN (OLD.llm_billing_mode IS DISTINCT FROM NEW.llm_billing_mode OR OLD.id IS DISTINCT FROM NEW.id)'),
            ('workspace_billing_mode_inserted', 'AFTER INSERT ON %s FOR EACH ROW WHEN (NEW.llm_billing_mode IS NOT NULL)'),
            ('workspace_billing_mode_deleted', 'AFTER DELETE ON %s FOR EACH ROW WHEN (OLD.llm_billing_mode IS NOT NULL)'),
            ('workspace_billing_mode_truncated', 'BEFORE TRUNCATE ON %s FOR EACH STATEMENT')
        ) AS needed (trigger, fires)
        WHERE relkind IN ('r', 'p') AND (NOT relispartition OR needed.trigger = 'workspace_billing_mode_truncated')
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = relid AND tgname = needed.trigger)
        ORDER BY relid
    LOOP
        EXECUTE format('CREATE TRIGGER %I ', lacking.trigger) || format(lacking.fires, lacking.name)
            || ' EXECUTE FUNCTION record_workspace_billing_mode_change()';
        RETURN NEXT lacking.name;
    END LOOP;
END
$function$;

REVOKE ALL ON FUNCTION attach_workspace_billing_mode_triggers() FROM PUBLIC;

DO $attach$ BEGIN PERFORM attach_workspace_billing_mode_triggers(); END $attach$;
