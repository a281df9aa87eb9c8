    INSERT INTO runspan_journal ({entry.columns})
    SELECT {entry.values}
    FROM (SELECT 1) LEFT JOIN ({root_above}) root
    WHERE NOT EXISTS (SELECT 1 FROM runspan_journal_full);
    UPDATE runspan_meta SET skipped = skipped + 1 WHERE changes() = 0;
    INSERT INTO runspan_reordered (run_id, from_status, to_status, row_status, at)
    SELECT {row}.id, {from}, {to}, (SELECT w.status FROM {table} w WHERE w.id = {row}.id), {now} WHERE changes() = 0;
