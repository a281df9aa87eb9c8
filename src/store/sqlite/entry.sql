    INSERT INTO runspan_journal ({entry.columns})
    SELECT {entry.values}
    FROM (SELECT 1) LEFT JOIN ({root_above}) root;
    INSERT INTO runspan_reordered (run_id, from_status, to_status, row_status, at)
    VALUES ({row}.id, {from}, {to}, (SELECT w.status FROM {table} w WHERE w.id = {row}.id), {now});
