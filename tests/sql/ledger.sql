-- What the writers say they did, in the words of the event contract, in the very transaction that did it: what a
-- trace is compared with. A transition lies between its transaction's beginning and the ledger's own line.
CREATE TABLE ledger (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid,
    event text NOT NULL,
    reason text,
    error_type text,
    child_run_id uuid,
    delivery_id text,
    run jsonb, -- the row as it was inserted: some are deleted later
    began timestamptz NOT NULL DEFAULT now(),
    ended timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE SEQUENCE targets;

CREATE FUNCTION noted(run uuid, event text, reason text DEFAULT NULL, error_type text DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO ledger (run_id, event, reason, error_type) VALUES (run, event, reason, error_type)
$$;

-- A new run, and its parent's line if it has one.
CREATE FUNCTION noted_new(run uuid) RETURNS void LANGUAGE sql AS $$
    -- created_at moves the beginning back, never forward.
    INSERT INTO ledger (run_id, event, run, began)
    SELECT id, 'queued', to_jsonb(w) || jsonb_build_object('is_ahead', created_at > now()), least(created_at, now())
    FROM workflow_runs w WHERE id = run;
    INSERT INTO ledger (run_id, event, child_run_id)
    SELECT parent_run_id, 'handed_off', id FROM workflow_runs WHERE id = run AND parent_run_id IS NOT NULL;
$$;
