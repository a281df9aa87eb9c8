-- Version 3: cancelled runs, the delivery that caused a child, and bounds.

ALTER TABLE runspan_journal ADD COLUMN root_delivery_id TEXT;
