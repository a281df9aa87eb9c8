-- Journals the runs in flight that were found between two places, as far as they are still in flight and unknown.
INSERT INTO runspan_journal (
    at, created_at, run_id, workflow_name, to_status, target_type, target_owner, target_repo,
    target_number, delivery_id, parent_run_id, root_run_id, root_workflow_name, traceparent, reconciled
)
SELECT coalesce(CASE w.status WHEN 'queued' THEN {created_at} ELSE {updated_at} END, {now}), w.created_at,
    w.id, substr(w.workflow_name, 1, 1024), w.status, substr(w.target_type, 1, 1024),
    substr(w.target_owner, 1, 1024), substr(w.target_repo, 1, 1024), w.target_number,
    substr(w.delivery_id, 1, 1024), w.parent_run_id, (SELECT id FROM ({root_above})),
    (SELECT substr(name, 1, 1024) FROM ({root_above})),
    {traceparent}, 1
FROM temp.runspan_found f CROSS JOIN {table} w ON w.id = f.id
WHERE f.place > {after} AND f.place <= {last} AND f.is_open = 0
  AND w.status IN ('queued', 'running')
  AND w.workflow_name IS NOT NULL
  AND {is_run}
  AND NOT EXISTS (SELECT 1 FROM runspan_open_runs o WHERE o.run_id = f.run)
ORDER BY f.place
