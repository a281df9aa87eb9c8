-- Fails what nobody came for, if there is anything.
BEGIN;
SELECT coalesce((SELECT id FROM workflow_runs WHERE status = 'queued' AND workflow_name = 'abandoned'
    LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS run \gset
UPDATE workflow_runs SET status = 'failed', state = '{"failedReason": "owner lost: executor-3"}'
    WHERE id = ':run';
SELECT noted(id, 'failed', 'owner lost: executor-3', 'owner_lost') FROM workflow_runs WHERE id = ':run';
END;
