-- A composite: children one after the other, one with a child of its own; the last comes after the end.
SELECT gen_random_uuid() AS ship, gen_random_uuid() AS implement, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':ship', 'ship', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':ship') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':ship' \;
SELECT noted(':ship', 'running') \; END;
SELECT gen_random_uuid() AS run \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
    status, parent_run_id)
    VALUES (':run', 'plan', 'issue', 'acme', 'widgets', :target, 'queued', ':ship') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
    status, parent_run_id)
    VALUES (':implement', 'implement', 'issue', 'acme', 'widgets', :target, 'queued', ':ship') \;
SELECT noted_new(':implement') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':implement' \;
SELECT noted(':implement', 'running') \; END;
SELECT gen_random_uuid() AS run \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
    status, parent_run_id)
    VALUES (':run', 'fix', 'issue', 'acme', 'widgets', :target, 'queued', ':implement') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'incomplete', updated_at = now(),
    state = state || '{"incompleteReason": "1 test is red"}' WHERE id = ':run' \;
SELECT noted(':run', 'incomplete', '1 test is red') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':implement' \;
SELECT noted(':implement', 'succeeded') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'incomplete', updated_at = now(),
    state = state || '{"incompleteReason": "implement is incomplete"}' WHERE id = ':ship' \;
SELECT noted(':ship', 'incomplete', 'implement is incomplete') \; END;
SELECT gen_random_uuid() AS run \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
    status, parent_run_id)
    VALUES (':run', 'review', 'issue', 'acme', 'widgets', :target, 'queued', ':ship') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
