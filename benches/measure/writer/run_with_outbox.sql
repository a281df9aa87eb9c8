-- The same, with what a team would write without runspan: its own message in the same transaction.
\set number random(1, 2000000000)
BEGIN;
INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, delivery_id, state) VALUES (gen_random_uuid(), 'triage', 'issue', 'acme', 'widgets', :number, '72d3162e-cc78-11e3-81ab-4c9367dc0958', '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}') RETURNING id \gset
INSERT INTO outbox (event, payload) VALUES ('workflow.run.queued', jsonb_build_object('runId', :id::uuid, 'workflowName', 'triage', 'targetType', 'issue', 'targetOwner', 'acme', 'targetRepo', 'widgets', 'targetNumber', :number::bigint, 'deliveryId', '72d3162e-cc78-11e3-81ab-4c9367dc0958', 'traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'));
COMMIT;
BEGIN;
UPDATE workflow_runs SET status = 'running', owner_kind = 'executor', owner_id = 'executor-1' WHERE id = :id AND status = 'queued';
INSERT INTO outbox (event, payload) VALUES ('workflow.run.running', jsonb_build_object('runId', :id::uuid, 'workflowName', 'triage', 'targetType', 'issue', 'targetOwner', 'acme', 'targetRepo', 'widgets', 'targetNumber', :number::bigint, 'deliveryId', '72d3162e-cc78-11e3-81ab-4c9367dc0958'));
COMMIT;
BEGIN;
UPDATE workflow_runs SET status = 'succeeded' WHERE id = :id AND status = 'running';
INSERT INTO outbox (event, payload) VALUES ('workflow.run.succeeded', jsonb_build_object('runId', :id::uuid, 'workflowName', 'triage', 'targetType', 'issue', 'targetOwner', 'acme', 'targetRepo', 'widgets', 'targetNumber', :number::bigint, 'deliveryId', '72d3162e-cc78-11e3-81ab-4c9367dc0958'));
COMMIT;
