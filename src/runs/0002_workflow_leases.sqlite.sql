-- Who is alive: a process holds a lease on its name and renews it; what an expired one owned may be reaped.
CREATE TABLE workflow_leases (
    name TEXT PRIMARY KEY NOT NULL,
    holder TEXT NOT NULL,
    expires_at REAL NOT NULL -- a Julian day
);

-- What has to have succeeded before is found without reading a target's whole history.
CREATE INDEX idx_workflow_runs_succeeded
    ON workflow_runs (target_owner, target_repo, target_number, workflow_name) WHERE status = 'succeeded';
