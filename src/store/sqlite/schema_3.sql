-- Version 3: cancelled runs, the delivery that caused a child, and bounds.

ALTER TABLE runspan_journal ADD COLUMN root_delivery_id TEXT;

-- Where the file was when a relay last used it: a copy finds itself elsewhere.
ALTER TABLE runspan_meta ADD COLUMN path TEXT;
