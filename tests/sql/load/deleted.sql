-- Rows of runs in flight are deleted: a running one, and a queued one.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; DELETE FROM workflow_runs WHERE id = ':run' \; SELECT noted(':run', 'deleted') \; END;
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; DELETE FROM workflow_runs WHERE id = ':run' \; SELECT noted(':run', 'deleted') \; END;
