-- The runs that are stuck now: see runspan.stuck_runs() of PostgreSQL. No view: one that names the table would refuse
-- the application its ALTER TABLE. Where `created_at` is no time, the age is the span's.
SELECT w.id, substr(w.workflow_name, 1, {text_limit}), w.target_owner || '/' || w.target_repo || '#' || w.target_number,
    w.target_owner, w.target_repo, w.status,
    coalesce((
        SELECT max(json_extract(e.value, '$.at')) FROM json_each(o.state, '$.events') e
        WHERE o.status = w.status AND json_extract(e.value, '$.event') = o.status
    ), CASE w.status WHEN 'queued' THEN {created_at} ELSE {updated_at} END),
    ({now} - coalesce({created_at}, json_extract(o.state, '$.queued_at'))) / 1e6 AS age, usual.seconds,
    w.parent_run_id, w.delivery_id, count(*) OVER ()
FROM {table} w
LEFT JOIN (SELECT u.key AS workflow_name, CAST(u.value AS REAL) AS seconds FROM runspan_series s, json_each(s.usual) u) usual
    ON usual.workflow_name = substr(w.workflow_name, 1, {text_limit})
LEFT JOIN runspan_open_runs o ON o.run_id = {run}
WHERE w.status IN ({in_flight}) AND w.workflow_name IS NOT NULL AND {is_run} AND age > {stuck_threshold}
ORDER BY age DESC, w.id LIMIT ?1
