-- Journals what became of the open runs that were found between two places, as far as they are still open.
INSERT INTO runspan_journal ({changed.columns})
SELECT {changed.values}
FROM temp.runspan_found f CROSS JOIN runspan_open_runs o ON o.run_id = f.run
LEFT JOIN {table} w ON w.id IN ({spellings})
WHERE f.place > {after} AND f.place <= {last} AND f.is_open = 1
  AND (w.id IS NULL
       OR w.status <> o.status AND w.status IN ({statuses}))
ORDER BY f.place
