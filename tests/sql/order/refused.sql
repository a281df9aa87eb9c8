-- Refusals only: transactions without an id of their own until the last moment, and open for a while after it.
\set n random(1, 200)
\set pause random(0, 20)
BEGIN;
SELECT id AS run, nextval('targets') AS delivery FROM workflow_runs
    WHERE target_number = :n AND workflow_name = 'race' \gset
SELECT runspan.dispatch_refused('race', 'issue', 'acme', 'widgets', :n, 'workflow-dispatch-inflight',
    'delivery-' || :delivery, ':run');
\sleep :pause ms
INSERT INTO ledger (run_id, event, delivery_id) VALUES (':run', 'dispatch_refused', 'delivery-' || :delivery);
END;
