-- The reaper fails what the executor has ended, and then it even comes back to life: the first end stands.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'implement', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'failed', updated_at = now(),
    state = state || '{"failedReason": "owner lost: executor-7"}' WHERE id = ':run' \;
SELECT noted(':run', 'conflict') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'conflict') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'failed', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'conflict') \; END;
