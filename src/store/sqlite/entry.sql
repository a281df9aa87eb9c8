    INSERT INTO runspan_journal (
        at, created_at, run_id, workflow_name, from_status, to_status, target_type, target_owner,
        target_repo, target_number, delivery_id, parent_run_id, root_run_id, root_workflow_name, reason,
        traceparent, reconciled
    )
    SELECT {now}, {row}.created_at, {row}.id, substr({row}.workflow_name, 1, 1024), {from}, {to},
        substr({row}.target_type, 1, 1024), substr({row}.target_owner, 1, 1024),
        substr({row}.target_repo, 1, 1024), {row}.target_number, substr({row}.delivery_id, 1, 1024),
        {row}.parent_run_id, root.id, substr(root.name, 1, 1024),
        CASE {to}
            WHEN 'failed' THEN {failed_reason}
            WHEN 'incomplete' THEN {incomplete_reason}
        END,
        -- The state may be large; a run that begins to run has nothing in it that is needed.
        CASE WHEN {from} IS NULL OR {to} <> 'running' THEN {traceparent} END,
        0
    FROM (SELECT 1) LEFT JOIN ({root_above}) root;
    INSERT INTO runspan_reordered (run_id, from_status, to_status, row_status, at)
    VALUES ({row}.id, {from}, {to}, (SELECT w.status FROM {table} w WHERE w.id = {row}.id), {now});
