-- One name, which sorts before the application's: triggers of one row fire in the order of their names, and a change
-- that one of them makes must not be journalled before its cause. Neither a WHEN nor a list of columns: either would
-- keep the application from changing a column's type.
CREATE OR REPLACE TRIGGER "!runspan" AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION runspan.journal_run();
