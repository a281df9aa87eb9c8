-- Version 3: cancelled runs, the delivery that caused a child, and bounds.

ALTER TABLE runspan_journal ADD COLUMN root_delivery_id TEXT;

-- Where the file was when a relay last used it: a copy finds itself elsewhere.
ALTER TABLE runspan_meta ADD COLUMN path TEXT;

-- The bound of the journal: beyond it the triggers count entries instead of writing them.
ALTER TABLE runspan_meta ADD COLUMN max_journal_entries INTEGER NOT NULL DEFAULT 10000000;
ALTER TABLE runspan_meta ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
CREATE VIEW runspan_journal_full (is_full) AS
    SELECT 1 FROM runspan_meta
    WHERE (SELECT max(seq) FROM runspan_journal) - (SELECT min(seq) FROM runspan_journal) >= max_journal_entries - 1;

DROP TRIGGER IF EXISTS runspan_refused;
CREATE TRIGGER runspan_refused INSTEAD OF INSERT ON runspan_dispatch_refused BEGIN
    INSERT INTO runspan_journal (
        at, workflow_name, target_type, target_owner, target_repo, target_number, reason, delivery_id,
        inflight_run_id, reconciled
    ) SELECT
        {now}, substr(NEW.workflow_name, 1, 1024), substr(NEW.target_type, 1, 1024),
        substr(NEW.target_owner, 1, 1024), substr(NEW.target_repo, 1, 1024), NEW.target_number,
        substr(NEW.reason, 1, 8192), substr(NEW.delivery_id, 1, 1024), NEW.inflight_run_id, 0
    WHERE NOT EXISTS (SELECT 1 FROM runspan_journal_full);
    UPDATE runspan_meta SET skipped = skipped + 1 WHERE changes() = 0;
END;
