-- runspan's own tables, version 1. Nothing here touches the application's.
-- Times are microseconds since the epoch, by julianday(): milliseconds are what every SQLite can tell.

CREATE TABLE runspan_meta (
    version INTEGER NOT NULL,
    instance TEXT NOT NULL
);
INSERT INTO runspan_meta (version, instance) VALUES (1, 'sqlite-' || lower(hex(randomblob(16))));

-- No constraint but the key: nothing here may fail a writer. A position is never given twice.
CREATE TABLE runspan_journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER,
    created_at, -- as the row has it
    run_id TEXT,
    workflow_name TEXT,
    from_status TEXT,
    to_status TEXT,
    target_type TEXT,
    target_owner TEXT,
    target_repo TEXT,
    target_number INTEGER,
    delivery_id TEXT,
    parent_run_id TEXT,
    root_run_id TEXT,
    root_workflow_name TEXT,
    reason TEXT,
    traceparent TEXT,
    inflight_run_id TEXT,
    reconciled INTEGER
);

-- Entries that could not be understood, whole (as JSON), with the reason.
CREATE TABLE runspan_set_aside (
    seq INTEGER PRIMARY KEY,
    error TEXT NOT NULL,
    entry TEXT NOT NULL,
    set_aside_at INTEGER NOT NULL
);

-- What the projection remembers of each run in flight. `status` is a copy of the state's, for reconciling.
CREATE TABLE runspan_open_runs (
    run_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    state TEXT NOT NULL
) WITHOUT ROWID;

-- Encoded OTLP requests, gzipped, until they are acknowledged. `place` keeps the halves of a request where
-- the whole one was.
CREATE TABLE runspan_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    place INTEGER NOT NULL,
    channel TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    items INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    dead TEXT,
    body BLOB NOT NULL
);
CREATE INDEX runspan_outbox_waiting ON runspan_outbox (channel, place, id) WHERE dead IS NULL;

CREATE TABLE runspan_lease (
    holder TEXT,
    epoch INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
INSERT INTO runspan_lease (epoch, expires_at) VALUES (0, 0);

-- Journals a dispatch that was refused before a row existed: the one event that no trigger can see.
--   INSERT INTO runspan_dispatch_refused (workflow_name, target_type, …, reason) VALUES (…)
-- It does not look at the application's table (the relay finds the root of the run in flight): while a
-- trigger names a table that is gone, SQLite refuses every ALTER TABLE … RENAME in the file.
CREATE VIEW runspan_dispatch_refused (
    workflow_name, target_type, target_owner, target_repo, target_number, reason, delivery_id, inflight_run_id
) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE 0;
CREATE TRIGGER runspan_refused INSTEAD OF INSERT ON runspan_dispatch_refused BEGIN
    INSERT INTO runspan_journal (
        at, workflow_name, target_type, target_owner, target_repo, target_number, reason, delivery_id,
        inflight_run_id, reconciled
    ) VALUES (
        {now}, substr(NEW.workflow_name, 1, 1024), substr(NEW.target_type, 1, 1024),
        substr(NEW.target_owner, 1, 1024), substr(NEW.target_repo, 1, 1024), NEW.target_number,
        substr(NEW.reason, 1, 8192), substr(NEW.delivery_id, 1, 1024), NEW.inflight_run_id, 0
    );
END;
