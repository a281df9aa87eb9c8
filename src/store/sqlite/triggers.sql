-- SQLite's triggers cannot catch errors: everything here is written so that it has none.

-- Restores the order of cause, after the triggers below have written the entry of a change. SQLite fires the newest
-- trigger first, so a trigger of the application's may have changed the row again before: those changes are in the
-- journal already, and move behind the one that caused them. All entries of a statement have the same time, since SQLite
-- reads the clock once. No position is used twice, for the relay may have read it.
DROP VIEW IF EXISTS runspan_reordered;
CREATE VIEW runspan_reordered (run_id, from_status, to_status, row_status, at) AS
    SELECT NULL, NULL, NULL, NULL, NULL WHERE 0;
CREATE TRIGGER runspan_reorder INSTEAD OF INSERT ON runspan_reordered
WHEN NEW.row_status IS NOT NEW.to_status
    -- Or it was changed back and forth: the entry before this one ends with the same status.
    OR EXISTS (SELECT 1 FROM runspan_journal WHERE seq = last_insert_rowid() - 1
        AND run_id = NEW.run_id AND at = NEW.at AND to_status IS NEW.to_status)
BEGIN
    -- The first to move is the last entry that begins where this change ended, and not where the entry before it did;
    -- or the row was replaced, which fires no DELETE trigger.
    INSERT INTO runspan_journal ({columns})
    SELECT {columns} FROM runspan_journal
    WHERE run_id = NEW.run_id AND at = NEW.at AND seq < last_insert_rowid() AND seq >= (
        SELECT max(seq) FROM (
            SELECT seq, from_status, lag(to_status) OVER run AS before, row_number() OVER run AS place
            FROM runspan_journal
            WHERE run_id = NEW.run_id AND at = NEW.at
                AND seq < last_insert_rowid() AND seq >= last_insert_rowid() - 10000
            WINDOW run AS (ORDER BY seq))
        WHERE (from_status IS NEW.to_status
                OR from_status IS NULL AND NEW.row_status IS NOT NULL AND NEW.row_status IS NOT NEW.to_status)
            AND (place = 1 OR before IS NOT from_status))
    ORDER BY seq;
    -- The copies are the last entries of the run; the entry of this change is before them, and the originals before that.
    DELETE FROM runspan_journal WHERE seq IN (
        SELECT seq FROM runspan_journal WHERE run_id = NEW.run_id AND at = NEW.at
        ORDER BY seq DESC LIMIT changes() OFFSET changes() + 1);
    -- A BEFORE trigger that changes its own row: SQLite reports the same change again.
    DELETE FROM runspan_journal WHERE changes() = 0 AND seq = last_insert_rowid() AND EXISTS (
        SELECT 1 FROM runspan_journal WHERE seq = last_insert_rowid() - 1 AND run_id = NEW.run_id AND at = NEW.at
            AND from_status = NEW.from_status AND to_status IS NEW.to_status);
END;

DROP TRIGGER IF EXISTS runspan_inserted;
CREATE TRIGGER runspan_inserted AFTER INSERT ON {table} BEGIN
{inserted}END;
DROP TRIGGER IF EXISTS runspan_changed;
CREATE TRIGGER runspan_changed AFTER UPDATE ON {table} WHEN OLD.status IS NOT NEW.status BEGIN
{changed}END;
DROP TRIGGER IF EXISTS runspan_deleted;
CREATE TRIGGER runspan_deleted AFTER DELETE ON {table} WHEN OLD.status IN ({in_flight}) BEGIN
{deleted}END;
