-- Version 3: cancelled runs, the delivery that caused a child, and bounds.

ALTER TABLE runspan.journal ADD COLUMN root_delivery_id text;

-- `id`: a part of `service.instance.id` where the server does not tell its history, and in a copy that was given an identity
-- of its own (`is_copy`).
ALTER TABLE runspan.meta
    ADD COLUMN id text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
    ADD COLUMN is_copy boolean NOT NULL DEFAULT false;

-- The bound of the journal. Each entry draws from a sequence that ends: beyond its end an entry is an error, which the triggers
-- count as skipped. It costs a writer no read, and needs no relay. runspan.make_room() sets it back as entries go.
ALTER TABLE runspan.meta ADD COLUMN max_journal_entries bigint NOT NULL DEFAULT 10000000;
CREATE SEQUENCE runspan.journal_room CACHE 1;
ALTER TABLE runspan.journal
    ALTER COLUMN seq SET DEFAULT 0 * nextval('runspan.journal_room') + nextval('runspan.journal_seq');

-- Only a relay writes to these: to truncate them makes no writer wait.
ALTER TABLE runspan.open_runs SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
CREATE INDEX outbox_dead ON runspan.outbox (id) WHERE dead IS NOT NULL;
