-- What is rolled back never was, even where the transaction goes on.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'rolled_back', 'issue', 'acme', 'widgets', :target, 'queued') \;
UPDATE workflow_runs SET status = 'running' WHERE id = ':run' \; ROLLBACK;
BEGIN \; SAVEPOINT a \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'rolled_back', 'issue', 'acme', 'widgets', :target, 'queued') \;
ROLLBACK TO a \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
