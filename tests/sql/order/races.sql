-- What race.sql runs on.
BEGIN;
INSERT INTO workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number)
    SELECT 'race', 'issue', 'acme', 'widgets', n FROM generate_series(1, 200) n;
SELECT noted_new(id) FROM workflow_runs;
COMMIT;
