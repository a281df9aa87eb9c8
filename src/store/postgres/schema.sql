-- runspan's own schema, version 1, made as the table's owner. Nothing here touches the application's tables.
CREATE TABLE runspan.meta (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version integer NOT NULL
);
INSERT INTO runspan.meta (version) VALUES (1);

CREATE SEQUENCE runspan.journal_seq CACHE 1;
-- Counts what the triggers could not write; a sequence, so that a rollback does not uncount it.
CREATE SEQUENCE runspan.journal_skipped CACHE 1;

-- No constraint but the key: nothing here may fail a writer. The order of the first two columns matters:
-- defaults are evaluated in it, and the low-water mark rests on a writer having its transaction id before
-- it draws a position.
CREATE TABLE runspan.journal (
    xid xid8 DEFAULT pg_current_xact_id(),
    seq bigint PRIMARY KEY DEFAULT nextval('runspan.journal_seq'),
    at timestamptz,
    created_at timestamptz,
    run_id uuid,
    workflow_name text,
    from_status text,
    to_status text,
    target_type text,
    target_owner text,
    target_repo text,
    target_number bigint,
    delivery_id text,
    parent_run_id uuid,
    root_run_id uuid,
    root_workflow_name text,
    reason text,
    traceparent text,
    inflight_run_id uuid,
    reconciled boolean
    -- Truncating empty pages takes ACCESS EXCLUSIVE, which would make writers skip entries.
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

-- Entries that could not be understood, whole, with the reason.
CREATE TABLE runspan.set_aside (
    seq bigint PRIMARY KEY,
    error text NOT NULL,
    entry jsonb NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What the projection remembers of each run in flight. `status` is a copy of the state's, for `reconcile`.
CREATE TABLE runspan.open_runs (
    run_id uuid PRIMARY KEY,
    status text NOT NULL,
    state text NOT NULL
) WITH (fillfactor = 80);

-- One row a commit of the projector, the newest counts. Appended, not updated: an updated row bloats while
-- any transaction is open elsewhere.
CREATE TABLE runspan.commits (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance text NOT NULL,
    low bigint NOT NULL,
    pending_seq bigint,
    pending_bound bigint
);

-- Encoded OTLP requests, gzipped, until they are acknowledged. `place` keeps the halves of a request where
-- the whole one was.
CREATE TABLE runspan.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    place bigint NOT NULL,
    channel text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    items bigint NOT NULL,
    runs bigint NOT NULL,
    bytes bigint NOT NULL,
    dead text,
    body bytea NOT NULL
);
ALTER TABLE runspan.outbox ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX outbox_waiting ON runspan.outbox (channel, place, id) WHERE dead IS NULL;

CREATE TABLE runspan.lease (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    holder text,
    epoch bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT 'epoch'
);
INSERT INTO runspan.lease DEFAULT VALUES;
