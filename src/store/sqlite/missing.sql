-- Journals the runs in flight that were found between two places, as far as they are still in flight and unknown.
INSERT INTO runspan_journal ({missing.columns})
SELECT {missing.values}
FROM temp.runspan_found f CROSS JOIN {table} w ON w.id = f.id
WHERE f.place > {after} AND f.place <= {last} AND f.is_open = 0
  AND w.status IN ({in_flight})
  AND w.workflow_name IS NOT NULL
  AND {is_run}
  AND NOT EXISTS (SELECT 1 FROM runspan_open_runs o WHERE o.run_id = f.run)
ORDER BY f.place
