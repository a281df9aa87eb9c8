-- The row is there, but the queue did not take it.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'review', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
BEGIN \; UPDATE workflow_runs SET status = 'failed',
    state = '{"failedReason": "enqueue failed: connection refused"}'
    WHERE id = ':run' \;
SELECT noted(':run', 'enqueue_failed', 'enqueue failed: connection refused', 'enqueue_failed') \;
SELECT noted(':run', 'failed', 'enqueue failed: connection refused', 'enqueue_failed') \;
END;
