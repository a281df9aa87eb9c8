-- Queued, and nobody comes.
SELECT gen_random_uuid() AS run, nextval('targets') AS target \gset
BEGIN \;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
    VALUES (':run', 'abandoned', 'issue', 'acme', 'widgets', :target, 'queued') \;
SELECT noted_new(':run') \; END;
