-- Ran cleanly, but work remains.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'review', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'incomplete', updated_at = now(),
    state = state || '{"incompleteReason": "2 of 3 comments answered"}' WHERE id = ':run' \;
SELECT noted(':run', 'incomplete', '2 of 3 comments answered') \; END;
