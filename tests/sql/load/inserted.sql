-- Begins without a wait; and one that a restore brings back as ended is no run of ours.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'running') \;
SELECT noted_new(':run') \; SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'restored', 'issue', 'acme', 'widgets', :target, 'succeeded');
