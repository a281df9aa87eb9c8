-- Journals what the journal missed: the table is the truth.
-- Ids and names that the relay would set aside are left alone, or each time would make the same entry again.
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
FROM {table} w
WHERE w.status IN ('queued', 'running')
  AND w.workflow_name IS NOT NULL
  AND {is_run}
  AND lower(w.id) NOT IN (SELECT run_id FROM runspan_open_runs)
  AND w.id NOT IN (SELECT run_id FROM runspan_journal WHERE run_id IS NOT NULL)
ORDER BY w.created_at, w.parent_run_id IS NOT NULL, w.id;

-- A run that is known to be in flight, but whose row says something else, or is gone.
INSERT INTO runspan_journal (
    at, created_at, run_id, workflow_name, from_status, to_status, reason, reconciled
)
SELECT coalesce({updated_at}, {now}), w.created_at, o.run_id,
    json_extract(o.state, '$.context.workflow_name'), o.status, w.status,
    CASE w.status
        WHEN 'failed' THEN {failed_reason}
        WHEN 'incomplete' THEN {incomplete_reason}
    END, 1
FROM runspan_open_runs o LEFT JOIN {table} w ON w.id IN (o.run_id, upper(o.run_id))
WHERE (w.id IS NULL
       OR w.status <> o.status AND w.status IN ('queued', 'running', 'succeeded', 'failed', 'incomplete'))
  AND o.run_id NOT IN (SELECT lower(run_id) FROM runspan_journal WHERE run_id IS NOT NULL)
ORDER BY 1, o.run_id;
