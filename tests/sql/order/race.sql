-- Many clients move few runs back and forth: each transition waits for the one before it.
\set n random(1, 200)
\set pause random(0, 3)
BEGIN;
SELECT id AS run, CASE status WHEN 'queued' THEN 'running' ELSE 'queued' END AS next
    FROM workflow_runs WHERE target_number = :n AND workflow_name = 'race' FOR UPDATE \gset
UPDATE workflow_runs SET status = ':next', updated_at = now() WHERE id = ':run';
SELECT noted(':run', ':next');
\sleep :pause ms
END;
