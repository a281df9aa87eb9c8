-- Version 2: the durable metrics.

-- What the receiver has acknowledged, whole: see the PostgreSQL schema.
CREATE TABLE runspan_series (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    head TEXT NOT NULL,
    totals TEXT NOT NULL,
    usual TEXT NOT NULL
);

-- What came after that: a row a commit of the projector, merged by the exporter.
CREATE TABLE runspan_deltas (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    delta TEXT NOT NULL
);
