-- Who is alive: a process holds a lease on its name and renews it; what an expired one owned may be reaped.
CREATE TABLE workflow_leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50); -- room for its updates in place

-- What has to have succeeded before is found without reading a target's whole history.
CREATE INDEX idx_workflow_runs_succeeded
    ON workflow_runs (target_owner, target_repo, target_number, workflow_name) WHERE status = 'succeeded';
