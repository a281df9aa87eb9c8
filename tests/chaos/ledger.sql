-- Where the disk may be full for the journal: the ledger also says whether the journal had the transition, in the very
-- transaction that made it. A full disk is what the journal's insert reports, as PostgreSQL does.
ALTER TABLE ledger ADD COLUMN missed boolean;

CREATE FUNCTION ask_the_journal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.missed := NOT EXISTS (
        SELECT FROM runspan.journal j
        WHERE j.xid = pg_current_xact_id() AND CASE NEW.event
            WHEN 'dispatch_refused' THEN j.run_id IS NULL AND j.delivery_id = NEW.delivery_id
            WHEN 'handed_off' THEN j.run_id = NEW.child_run_id
            WHEN 'deleted' THEN j.run_id = NEW.run_id AND j.to_status IS NULL
            WHEN 'conflict' THEN j.run_id = NEW.run_id
            WHEN 'enqueue_failed' THEN j.run_id = NEW.run_id AND j.to_status = 'failed'
            -- A run that is inserted as running is one entry for two events.
            WHEN 'queued' THEN j.run_id = NEW.run_id AND (j.to_status = 'queued' OR j.from_status IS NULL)
            ELSE j.run_id = NEW.run_id AND j.to_status = NEW.event
        END);
    RETURN NEW;
END
$$;
CREATE TRIGGER ask_the_journal BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION ask_the_journal();

CREATE TABLE disk (is_full boolean);
INSERT INTO disk VALUES (false);

CREATE FUNCTION write_to_disk() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF (SELECT is_full FROM public.disk) THEN
        RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER write_to_disk BEFORE INSERT ON runspan.journal FOR EACH ROW EXECUTE FUNCTION write_to_disk();

-- The runs that the journal did not see all of, with all of their trees.
CREATE TABLE apart (LIKE ledger);
CREATE FUNCTION set_apart() RETURNS void LANGUAGE sql AS $$
    WITH RECURSIVE tree (run_id, root_id) AS (
        SELECT run_id, run_id FROM ledger WHERE run IS NOT NULL AND run ->> 'parent_run_id' IS NULL
        UNION ALL
        SELECT l.run_id, t.root_id FROM ledger l JOIN tree t ON (l.run ->> 'parent_run_id')::uuid = t.run_id
        WHERE l.run IS NOT NULL
    ), moved AS (
        DELETE FROM ledger WHERE run_id IN (
            SELECT run_id FROM tree WHERE root_id IN (
                SELECT t.root_id FROM tree t JOIN ledger l USING (run_id) WHERE l.missed))
        RETURNING *
    )
    INSERT INTO apart SELECT * FROM moved;
$$;
