-- Does nothing, on purpose: the table belongs to the workspace server, and others use it.
DO $$ BEGIN END $$;
