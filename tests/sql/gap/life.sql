-- A run that takes its time, so that some are in flight whenever the journal breaks.
\set wait random(0, 400)
\set work random(0, 400)
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
\sleep :wait ms
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
\sleep :work ms
BEGIN \; UPDATE workflow_runs SET status = 'incomplete', updated_at = now(),
    state = '{"incompleteReason": "1 test is red"}' WHERE id = ':run' \;
SELECT noted(':run', 'incomplete') \; END;
