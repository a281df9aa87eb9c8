-- All in one transaction.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \;
UPDATE workflow_runs SET status = 'running' WHERE id = ':run' \; SELECT noted(':run', 'running') \;
UPDATE workflow_runs SET status = 'succeeded' WHERE id = ':run' \; SELECT noted(':run', 'succeeded') \;
END;
