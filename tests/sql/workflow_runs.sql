-- The application's table. Nothing in this directory knows of runspan, but what is called `refused`.
CREATE TABLE workflow_runs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_name text NOT NULL,
    target_type text NOT NULL,
    target_owner text NOT NULL,
    target_repo text NOT NULL,
    target_number integer NOT NULL,
    parent_run_id uuid REFERENCES workflow_runs (id),
    parent_step_index integer,
    status text NOT NULL DEFAULT 'queued',
    state jsonb NOT NULL DEFAULT '{}',
    tracking_comment_id bigint,
    delivery_id text,
    owner_kind text,
    owner_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX workflow_runs_inflight
    ON workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number)
    WHERE status IN ('queued', 'running');
