
-- What the relay calls, in the rights of the table's owner. Replaced by each `attach`.

-- Reconciliation: the table is the truth. It cannot work where row security hides rows: with `row_security = off` that is
-- an error, and not an empty table whose runs have all been deleted.
--
-- What a run lacks is found by grouping, not by joining: the journal goes from empty to a million entries and back in
-- less time than its statistics, and a nested loop over both would take hours.

-- The runs in flight whose beginning neither journal nor open runs know, in the order in which to adopt them. Reads only.
CREATE OR REPLACE FUNCTION runspan.missed_runs() RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    IF attached IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($sql$
        SELECT run_id FROM (
            SELECT id, created_at, parent_run_id IS NOT NULL, true FROM %s
            WHERE status IN ({in_flight})
              AND workflow_name IS NOT NULL -- or each time would make an entry that is set aside
            -- By index where there are few: what these tables once held may have left them large.
            UNION ALL SELECT run_id, NULL, NULL, false FROM runspan.open_runs WHERE run_id >= '00000000-0000-0000-0000-000000000000'
            UNION ALL SELECT run_id, NULL, NULL, false FROM runspan.journal WHERE seq > 0
        ) known (run_id, created_at, is_child, in_table)
        GROUP BY run_id HAVING bool_and(in_table)
        ORDER BY min(created_at), bool_and(is_child), run_id
    $sql$, attached);
END
$function$;

-- Journals the beginnings of these runs, unless they are known by now; how many. Their rows are locked until the end of
-- the transaction, so that no transition of theirs gets a position before it: a few at a time. Rows that someone else
-- holds are left for the next time.
CREATE OR REPLACE FUNCTION runspan.adopt(runs uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
    adopted bigint := 0;
BEGIN
    IF attached IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format($sql$
    WITH missed AS MATERIALIZED (
        SELECT w.* FROM %s w
        WHERE w.id = ANY ($1) AND w.status IN ({in_flight}) AND w.workflow_name IS NOT NULL
          AND NOT EXISTS (SELECT FROM runspan.open_runs o WHERE o.run_id = w.id)
        FOR SHARE OF w SKIP LOCKED
    )
    INSERT INTO runspan.journal ({adopted.columns})
    SELECT {adopted.values}
    FROM missed m CROSS JOIN LATERAL runspan.root_of(m.parent_run_id) r
    ORDER BY m.created_at, m.parent_run_id IS NOT NULL, m.id
    $sql$, attached) USING runs;
    GET DIAGNOSTICS adopted = ROW_COUNT;
    RETURN adopted;
END
$function$;

-- Journals the new status of known runs in flight whose row has another status, or is gone: 10,000 at a time. Locks no row of the application's.
CREATE OR REPLACE FUNCTION runspan.catch_up(OUT entries bigint, OUT vanished bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    entries := 0;
    vanished := 0;
    IF attached IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format($sql$
    WITH made AS (
        INSERT INTO runspan.journal ({caught_up.columns})
        SELECT {caught_up.values}
        FROM (
            SELECT o.run_id, runspan.as_past(w.updated_at::text), runspan.as_time(w.created_at::text), o.state, o.status,
                w.status::text,
                CASE w.status::text
                    WHEN 'failed' THEN runspan.in_state(w.state, 'failedReason', {reason_limit})
                    WHEN 'incomplete' THEN runspan.in_state(w.state, 'incompleteReason', {reason_limit})
                END, true
            FROM runspan.open_runs o LEFT JOIN %s w ON w.id = o.run_id
            WHERE o.run_id >= '00000000-0000-0000-0000-000000000000'
              AND (w.id IS NULL
                   OR w.status::text <> o.status
                      AND w.status::text IN ({statuses}))
            UNION ALL SELECT run_id, NULL, NULL, NULL, NULL, NULL, NULL, false FROM runspan.journal WHERE seq > 0
        ) known (run_id, updated_at, created_at, state, from_status, to_status, reason, has_moved)
        GROUP BY run_id HAVING bool_and(has_moved)
        ORDER BY 1, run_id
        LIMIT 10000
        RETURNING to_status
    )
    SELECT count(*), count(*) FILTER (WHERE to_status IS NULL) FROM made
    $sql$, attached) INTO entries, vanished;
END
$function$;

-- Moves entries that no read would find to where one does: the sequence was set back (setval, a logical cut-over), and
-- their positions were read long ago. The ranges between `above` and `below` are unread. How many; NULL if
-- the sequence is as it should be, for all that is seen.
--
-- Either the sequence is still behind what was read: they come after all that is unread. Or it has passed it already, and
-- then some of the last positions that were read are taken again: they come before all that is unread.
CREATE OR REPLACE FUNCTION runspan.bring_forward(above bigint[], below bigint[], everywhere boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_variable
DECLARE
    known bigint := above[cardinality(above)];
    is_behind boolean := (SELECT s.last_value < known FROM runspan.journal_seq s);
    has_passed boolean := NOT is_behind AND EXISTS (
        SELECT FROM runspan.journal j
        WHERE (j.seq > known - 100 OR everywhere) AND j.seq <= known
          AND NOT EXISTS (SELECT FROM unnest(above, below) u (a, b) WHERE j.seq > u.a AND j.seq < u.b));
    hidden bigint;
BEGIN
    IF NOT (is_behind OR has_passed) THEN
        RETURN NULL;
    END IF;
    IF is_behind THEN
        -- Well above the positions that transactions in progress have drawn.
        PERFORM setval('runspan.journal_seq', 10000 + greatest(known, (SELECT max(j.seq) FROM runspan.journal j)));
    END IF;
    WITH moved AS (
        UPDATE runspan.journal j SET seq = o.place FROM (
            SELECT n.seq, nextval('runspan.journal_seq') AS place FROM (
                SELECT k.seq FROM runspan.journal k
                WHERE k.seq > known AND has_passed
                   OR k.seq <= known
                      AND NOT EXISTS (SELECT FROM unnest(above, below) u (a, b) WHERE k.seq > u.a AND k.seq < u.b)
                ORDER BY k.seq
            ) n
        ) o WHERE j.seq = o.seq RETURNING o.seq
    )
    SELECT count(*) FILTER (WHERE moved.seq <= known) INTO hidden FROM moved;
    RETURN hidden;
END
$function$;

-- The runs in flight, and the age of the oldest in seconds, by workflow and status.
CREATE OR REPLACE FUNCTION runspan.in_flight()
RETURNS TABLE (workflow_name text, status text, runs bigint, oldest_age double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    IF attached IS NOT NULL THEN
        RETURN QUERY EXECUTE format($sql$
        SELECT left(w.workflow_name::text, {text_limit}), w.status::text, count(*),
            coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at)
                FILTER (WHERE w.created_at BETWEEN '2000-01-01 00:00Z' AND clock_timestamp()))::float8, 0)
        FROM %s w WHERE w.status IN ({in_flight}) AND w.workflow_name IS NOT NULL
        GROUP BY 1, 2
        $sql$, attached);
    END IF;
END
$function$;

-- The runs that are stuck now (`Stuck` in store/stuck.rs), the oldest first; none once the table is gone.
--
-- `since`: when it took its status, as on its span; before that is projected, as reconciliation would have it.
CREATE OR REPLACE FUNCTION runspan.stuck_runs() RETURNS TABLE (
    run_id uuid, workflow_name text, target text, target_owner text, target_repo text, status text,
    since timestamptz, age_seconds float8, usual_seconds float8, parent_run_id uuid, delivery_id text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    IF attached IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($sql$
    SELECT w.id, left(w.workflow_name::text, {text_limit}), w.target_owner::text || '/' || w.target_repo || '#' || w.target_number,
        w.target_owner::text, w.target_repo::text, w.status::text,
        coalesce((
            SELECT max('epoch'::timestamptz + (e ->> 'at')::bigint * interval '1 microsecond')
            FROM jsonb_array_elements(o.state::jsonb -> 'events') e
            WHERE o.status = w.status::text AND e ->> 'event' = o.status
        ), runspan.as_past(CASE w.status::text WHEN 'queued' THEN w.created_at ELSE w.updated_at END::text)),
        age.seconds, usual.seconds, w.parent_run_id, w.delivery_id::text
    FROM %s w
    LEFT JOIN runspan.open_runs o ON o.run_id = w.id
    CROSS JOIN LATERAL (
        SELECT extract(epoch FROM statement_timestamp() - CASE
            WHEN w.created_at BETWEEN '2000-01-01 00:00Z' AND statement_timestamp() THEN w.created_at
            -- No time that can be: since its span began.
            ELSE 'epoch'::timestamptz + (o.state::jsonb ->> 'queued_at')::bigint * interval '1 microsecond' END)::float8
    ) age (seconds)
    LEFT JOIN (
        SELECT u.key, u.value::float8 FROM jsonb_each_text((SELECT s.usual FROM runspan.series s)) u
    ) usual (workflow_name, seconds) ON usual.workflow_name = left(w.workflow_name::text, {text_limit})
    WHERE w.status IN ({in_flight}) AND w.workflow_name IS NOT NULL AND age.seconds > {stuck_threshold}
    ORDER BY age.seconds DESC, w.id
    $sql$, attached);
END
$function$;

-- What an older runspan called.
DROP FUNCTION IF EXISTS runspan.reconcile();
DROP FUNCTION IF EXISTS runspan.root_above(uuid);

-- Of a function, as a view of the table would hold on to its columns: no ALTER TABLE could drop or retype one.
CREATE OR REPLACE VIEW runspan.stuck AS SELECT * FROM runspan.stuck_runs();

-- Gives back the room of entries that are gone. Not exactly, and not for less than a hundredth: a relay at rest writes nothing.
CREATE OR REPLACE FUNCTION runspan.make_room() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    max_entries bigint := (SELECT m.max_journal_entries FROM runspan.meta m);
    used bigint := coalesce((SELECT max(j.seq) FROM runspan.journal j) - (SELECT min(j.seq) FROM runspan.journal j) + 1, 0);
    drawn bigint := 9223372036854775807 - greatest(max_entries - used, 0);
BEGIN
    PERFORM setval('runspan.journal_room', drawn) FROM runspan.journal_room room
    WHERE abs(room.last_value - drawn) > max_entries / 100;
END
$function$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA runspan FROM PUBLIC;
