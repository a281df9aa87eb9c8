-- A panic.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'implement', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'failed', updated_at = now(),
    state = state || '{"failedReason": "uncaught: index out of bounds"}' WHERE id = ':run' \;
SELECT noted(':run', 'failed', 'uncaught: index out of bounds', 'uncaught') \; END;
