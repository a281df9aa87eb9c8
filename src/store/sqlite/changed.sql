-- Journals what became of the open runs that were found between two places, as far as they are still open.
INSERT INTO runspan_journal (
    at, created_at, run_id, workflow_name, from_status, to_status, reason, reconciled
)
SELECT coalesce({updated_at}, {now}), w.created_at, o.run_id,
    json_extract(o.state, '$.context.workflow_name'), o.status, w.status,
    CASE w.status
        WHEN 'failed' THEN {failed_reason}
        WHEN 'incomplete' THEN {incomplete_reason}
    END, 1
FROM temp.runspan_found f CROSS JOIN runspan_open_runs o ON o.run_id = f.run
LEFT JOIN {table} w ON w.id IN (o.run_id, upper(o.run_id))
WHERE f.place > {after} AND f.place <= {last} AND f.is_open = 1
  AND (w.id IS NULL
       OR w.status <> o.status AND w.status IN ('queued', 'running', 'succeeded', 'failed', 'incomplete'))
ORDER BY f.place
