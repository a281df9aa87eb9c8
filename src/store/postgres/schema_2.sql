-- Version 2: the durable metrics.

-- What the receiver has acknowledged, whole. `head`: when and for which instance, and the export whose fate is
-- not known, if any. `totals`: the cumulative series, as JSON. `usual`: for each workflow with enough of a
-- history the duration in seconds that 99 of 100 of its runs stay within.
CREATE TABLE runspan.series (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    head text NOT NULL,
    totals text NOT NULL,
    usual jsonb NOT NULL
);

-- What came after that: a row a commit of the projector, merged by the exporter. Appended, not added up in
-- place: that cost 730 kB of write-ahead log a commit.
CREATE TABLE runspan.deltas (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delta text NOT NULL
);

-- The default method takes about 3 ms for what a batch adds, ten times as long for no fewer bytes. Not every server is
-- built with this one.
DO $$
BEGIN
    ALTER TABLE runspan.series ALTER COLUMN totals SET COMPRESSION lz4;
    ALTER TABLE runspan.deltas ALTER COLUMN delta SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
