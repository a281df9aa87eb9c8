-- The handler says why it failed; what it says holds a credential.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'failed', updated_at = now(),
    state = state || '{"failedReason": "push to https://bot:correct-horse-battery@git.example/acme refused"}'
    WHERE id = ':run' \;
SELECT noted(':run', 'failed', 'push to https://[redacted]@git.example/acme refused', 'handler') \; END;
