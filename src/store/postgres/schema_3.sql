-- Version 3: cancelled runs, the delivery that caused a child, and bounds.

ALTER TABLE runspan.journal ADD COLUMN root_delivery_id text;

-- `id`: a part of `service.instance.id` where the server does not tell its history, and in a copy that was given an identity
-- of its own (`is_copy`).
ALTER TABLE runspan.meta
    ADD COLUMN id text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
    ADD COLUMN is_copy boolean NOT NULL DEFAULT false;
