-- Finds what the journal may have missed: the table is the truth. Reads a snapshot and writes to a temporary table of
-- this connection's own, so that no writer waits for it.
DROP TABLE IF EXISTS temp.runspan_found;
CREATE TEMP TABLE runspan_found (place INTEGER PRIMARY KEY, id, run TEXT, is_open INTEGER);

-- Runs in flight that are unknown. Ids and names that the relay would set aside are skipped: every reconciliation would
-- journal them again.
INSERT INTO temp.runspan_found (id, run, is_open)
SELECT w.id, {run}, 0
FROM {table} w
WHERE w.status IN ({in_flight})
  AND w.workflow_name IS NOT NULL
  AND {is_run}
  AND {run} NOT IN (SELECT run_id FROM runspan_open_runs)
  AND w.id NOT IN (SELECT run_id FROM runspan_journal WHERE run_id IS NOT NULL)
ORDER BY w.created_at, w.parent_run_id IS NOT NULL, w.id;

-- Known runs in flight whose row has another status, or is gone.
INSERT INTO temp.runspan_found (id, run, is_open)
SELECT w.id, o.run_id, 1
FROM runspan_open_runs o LEFT JOIN {table} w ON w.id IN ({spellings})
WHERE (w.id IS NULL
       OR w.status <> o.status AND w.status IN ({statuses}))
  AND o.run_id NOT IN (SELECT {journalled} FROM runspan_journal WHERE run_id IS NOT NULL)
ORDER BY coalesce({updated_at}, {now}), o.run_id;

CREATE INDEX temp.runspan_found_run ON runspan_found (run);
