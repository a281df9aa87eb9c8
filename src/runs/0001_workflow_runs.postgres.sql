CREATE TABLE workflow_runs (
    id uuid PRIMARY KEY,
    workflow_name text NOT NULL,
    target_type text NOT NULL CHECK (target_type IN ('issue', 'pr')),
    target_owner text NOT NULL,
    target_repo text NOT NULL,
    target_number bigint NOT NULL CHECK (target_number > 0),
    -- No foreign key: an old parent may be removed before its children.
    parent_run_id uuid,
    parent_step_index integer,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'incomplete')),
    state jsonb NOT NULL DEFAULT '{}',
    tracking_comment_id bigint,
    delivery_id text,
    owner_kind text,
    owner_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((parent_run_id IS NULL) = (parent_step_index IS NULL))
);

-- One run in flight for each workflow and target.
CREATE UNIQUE INDEX idx_workflow_runs_inflight
    ON workflow_runs (workflow_name, target_owner, target_repo, target_number)
    WHERE status IN ('queued', 'running');
CREATE INDEX idx_workflow_runs_children
    ON workflow_runs (parent_run_id, parent_step_index) WHERE parent_run_id IS NOT NULL;

CREATE FUNCTION workflow_runs_touch() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$function$;
CREATE TRIGGER workflow_runs_touch BEFORE UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION workflow_runs_touch();
