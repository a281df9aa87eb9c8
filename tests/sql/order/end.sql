-- Ends what race.sql left in flight.
BEGIN;
UPDATE workflow_runs SET status = 'succeeded', updated_at = now();
SELECT noted(id, 'succeeded') FROM workflow_runs;
COMMIT;
