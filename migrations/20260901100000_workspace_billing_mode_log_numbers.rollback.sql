-- Takes the triggers of single partitions away. The function and the numbers stay: they are right with what is left, numbers of a
-- sequence would begin below those that the log has, and the rollback before this one drops them with the log.
SET LOCAL lock_timeout = '500ms';

DO $$
DECLARE
    attached record;
BEGIN
    FOR attached IN
        SELECT tgname AS name, tgrelid::regclass AS held_in FROM pg_trigger
        WHERE tgfoid = to_regproc('record_workspace_billing_mode_change') AND tgparentid = 0
            AND tgrelid <> to_regclass('workspaces')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', attached.name, attached.held_in);
    END LOOP;
END
$$;

DROP FUNCTION IF EXISTS attach_workspace_billing_mode_triggers();
