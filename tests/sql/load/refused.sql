-- Refused: a run of this workflow on this target is in flight.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'triage', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \;
INSERT INTO workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number)
    VALUES ('triage', 'issue', 'acme', 'widgets', :target) ON CONFLICT DO NOTHING \;
SELECT runspan.dispatch_refused('triage', 'issue', 'acme', 'widgets', :target, 'workflow-dispatch-inflight',
    'delivery-' || :target, ':run') \;
INSERT INTO ledger (run_id, event, delivery_id) VALUES (':run', 'dispatch_refused',
    'delivery-' || :target) \; END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
