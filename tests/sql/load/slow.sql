-- A transaction that stays open for long after its first line: what came later is seen earlier.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'implement', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run');
\sleep 700 ms
END;
BEGIN \; UPDATE workflow_runs SET status = 'running', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'running') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'succeeded', updated_at = now() WHERE id = ':run' \;
SELECT noted(':run', 'succeeded') \; END;
