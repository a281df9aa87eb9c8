CREATE OR REPLACE TRIGGER nothing_inserted AFTER INSERT ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE OR REPLACE TRIGGER nothing_changed AFTER UPDATE ON workflow_runs
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION nothing();
CREATE OR REPLACE TRIGGER nothing_deleted AFTER DELETE ON workflow_runs
    FOR EACH ROW WHEN (OLD.status IN ('queued', 'running')) EXECUTE FUNCTION nothing();
