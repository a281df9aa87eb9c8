-- 50,000 runs in one statement.
INSERT INTO workflow_runs (
    id, workflow_name, target_type, target_owner, target_repo, target_number, delivery_id, state)
SELECT gen_random_uuid(), 'triage', 'issue', 'acme', 'widgets', number, '72d3162e-cc78-11e3-81ab-4c9367dc0958',
    '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
FROM generate_series(1, 50000) number
