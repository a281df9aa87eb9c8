CREATE TABLE workflow_runs (
    id TEXT PRIMARY KEY NOT NULL,
    workflow_name TEXT NOT NULL,
    target_type TEXT NOT NULL CHECK (target_type IN ('issue', 'pr')),
    target_owner TEXT NOT NULL,
    target_repo TEXT NOT NULL,
    target_number INTEGER NOT NULL CHECK (target_number > 0),
    -- No foreign key: an old parent may be removed before its children.
    parent_run_id TEXT,
    parent_step_index INTEGER,
    status TEXT NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'incomplete')),
    state TEXT NOT NULL DEFAULT '{}',
    tracking_comment_id INTEGER,
    delivery_id TEXT,
    owner_kind TEXT,
    owner_id TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CHECK ((parent_run_id IS NULL) = (parent_step_index IS NULL))
);

-- One run in flight for each workflow and target.
CREATE UNIQUE INDEX idx_workflow_runs_inflight
    ON workflow_runs (workflow_name, target_owner, target_repo, target_number)
    WHERE status IN ('queued', 'running');
CREATE INDEX idx_workflow_runs_children
    ON workflow_runs (parent_run_id, parent_step_index) WHERE parent_run_id IS NOT NULL;

-- Every column but updated_at, so that it does not set itself off again.
CREATE TRIGGER workflow_runs_touch
AFTER UPDATE OF id, workflow_name, target_type, target_owner, target_repo, target_number, parent_run_id,
    parent_step_index, status, state, tracking_comment_id, delivery_id, owner_kind, owner_id, created_at
ON workflow_runs BEGIN
    UPDATE workflow_runs SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = NEW.id;
END;
