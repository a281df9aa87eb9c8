CREATE OR REPLACE TRIGGER runspan_inserted AFTER INSERT ON {table}
    FOR EACH ROW EXECUTE FUNCTION runspan.journal_run();
CREATE OR REPLACE TRIGGER runspan_changed AFTER UPDATE ON {table}
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION runspan.journal_run();
CREATE OR REPLACE TRIGGER runspan_deleted AFTER DELETE ON {table}
    FOR EACH ROW WHEN (OLD.status IN ('queued', 'running')) EXECUTE FUNCTION runspan.journal_run();
