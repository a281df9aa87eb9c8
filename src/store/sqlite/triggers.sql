-- SQLite's triggers cannot catch errors: everything here is written so that it has none.
DROP TRIGGER IF EXISTS runspan_inserted;
CREATE TRIGGER runspan_inserted AFTER INSERT ON {table} BEGIN
{inserted}END;
DROP TRIGGER IF EXISTS runspan_changed;
CREATE TRIGGER runspan_changed AFTER UPDATE ON {table} WHEN OLD.status IS NOT NEW.status BEGIN
{changed}END;
DROP TRIGGER IF EXISTS runspan_deleted;
CREATE TRIGGER runspan_deleted AFTER DELETE ON {table} WHEN OLD.status IN ('queued', 'running') BEGIN
{deleted}END;
