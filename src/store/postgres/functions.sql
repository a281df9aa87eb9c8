-- The functions, for one table ({table}). Replaced by each `attach`.

-- The table that has the triggers, whatever it is called by now; NULL after a detach.
CREATE OR REPLACE FUNCTION runspan.attached_to() RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT t.tgrelid::regclass FROM pg_trigger t
    WHERE t.tgfoid = to_regproc('runspan.journal_run') AND t.tgparentid = 0 LIMIT 1
$function$;

-- The root above a run and its workflow: parents walked, 32 levels at most, so that a cycle ends too.
CREATE OR REPLACE FUNCTION runspan.root_above(parent uuid, OUT root_id uuid, OUT root_name text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_variable
DECLARE
    above uuid := parent;
    found_id uuid;
    found_name text;
    renamed regclass;
BEGIN
    IF parent IS NULL THEN
        RETURN;
    END IF;
    IF to_regclass({literal}) IS NULL THEN
        renamed := runspan.attached_to();
        IF renamed IS NULL THEN
            RETURN;
        END IF;
    END IF;
    FOR depth IN 1..32 LOOP
        IF renamed IS NULL THEN
            SELECT w.id, w.parent_run_id, left(w.workflow_name::text, 1024) INTO found_id, above, found_name
            FROM {table} w WHERE w.id = above;
        ELSE
            EXECUTE format('SELECT w.id, w.parent_run_id, left(w.workflow_name::text, 1024) FROM %s w WHERE w.id = $1',
                renamed)
            INTO found_id, above, found_name USING above;
        END IF;
        EXIT WHEN found_id IS NULL;
        root_id := found_id;
        root_name := found_name;
        EXIT WHEN above IS NULL;
    END LOOP;
END
$function$;

-- A value of a state, as text; NULL if no text can hold it, as json's \u0000.
CREATE OR REPLACE FUNCTION runspan.in_state(state anyelement, key text, longest integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN left(state ->> key, longest);
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$function$;

-- Counts an entry that could not be written. Whatever is wrong, the writer goes on.
CREATE OR REPLACE FUNCTION runspan.skip(error_code text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF error_code = '55P03' THEN -- lock_not_available
        -- Waiting once a transaction is enough: whatever follows in it is skipped without waiting. Outside of the
        -- block below, whose failure would take it back. The transaction's id, so that a value that outlives it
        -- (someone's SET) means nothing.
        PERFORM set_config('runspan.skipping', pg_current_xact_id()::text, true);
    END IF;
    IF current_setting('runspan.skipping', true) = 'uncounted ' || pg_current_xact_id_if_assigned()::text THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM set_config('lock_timeout', '1ms', true); -- until the caller returns
        PERFORM nextval('runspan.journal_skipped');
    EXCEPTION
        WHEN lock_not_available THEN
            PERFORM set_config('runspan.skipping', 'uncounted ' || pg_current_xact_id()::text, true);
        WHEN OTHERS THEN
            NULL;
    END;
END
$function$;

-- Journals one transition, in the writer's transaction.
--
-- Fail-open: whatever goes wrong here, the writer's statement goes on. Nothing may be computed outside the
-- inner block, where an error would not be caught. A serialization failure is handed on: catching it would
-- let a transaction commit that must not; its application retries it anyway.
--
-- Every expression costs the writer about a microsecond, as the executor sets it up anew in each transaction. So
-- one tells the ordinary entry, which needs but one more, from those that need care.
CREATE OR REPLACE FUNCTION runspan.journal_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $function$
DECLARE
    root_id uuid;
    root_name text;
    reason text;
    link text;
    skipping text;
BEGIN
    BEGIN
        IF NEW.parent_run_id IS NULL AND NEW.status IN ('queued', 'running', 'succeeded') -- of a DELETE, NULL
            AND pg_typeof(NEW.state) = 'jsonb'::regtype -- whose text never fails
            AND coalesce(current_setting('runspan.skipping', true), '') = '' THEN
            -- The state may be large; a run that begins to run has nothing in it that is needed.
            link := CASE WHEN NEW.status <> 'running' OR OLD.status IS NULL
                THEN left(NEW.state ->> 'traceparent', 128) END;
        ELSE
            skipping := current_setting('runspan.skipping', true);
            IF skipping <> '' AND replace(skipping, 'uncounted ', '') = pg_current_xact_id_if_assigned()::text THEN
                PERFORM runspan.skip('');
                RETURN NULL;
            END IF;
            IF TG_OP = 'DELETE' THEN
                SELECT r.root_id, r.root_name INTO root_id, root_name
                FROM runspan.root_above(OLD.parent_run_id) r;
                INSERT INTO runspan.journal (
                    at, created_at, run_id, workflow_name, from_status, to_status, target_type, target_owner,
                    target_repo, target_number, delivery_id, parent_run_id, root_run_id, root_workflow_name, reason,
                    traceparent, reconciled
                ) VALUES (
                    clock_timestamp(), OLD.created_at, OLD.id, left(OLD.workflow_name::text, 1024), OLD.status, NULL,
                    left(OLD.target_type::text, 1024), left(OLD.target_owner::text, 1024),
                    left(OLD.target_repo::text, 1024), OLD.target_number, left(OLD.delivery_id::text, 1024),
                    OLD.parent_run_id, root_id, root_name, NULL, NULL, false
                );
                RETURN NULL;
            END IF;
            IF NEW.parent_run_id IS NOT NULL THEN
                SELECT r.root_id, r.root_name INTO root_id, root_name
                FROM runspan.root_above(NEW.parent_run_id) r;
            END IF;
            IF NEW.status <> 'running' OR OLD.status IS NULL THEN
                BEGIN
                    link := left(NEW.state ->> 'traceparent', 128);
                    IF NEW.status = 'failed' THEN
                        reason := left(NEW.state ->> 'failedReason', 8192);
                    ELSIF NEW.status = 'incomplete' THEN
                        reason := left(NEW.state ->> 'incompleteReason', 8192);
                    END IF;
                EXCEPTION WHEN data_exception THEN
                    NULL; -- json's \u0000, which no text can hold
                END;
            END IF;
        END IF;
        INSERT INTO runspan.journal (
            at, created_at, run_id, workflow_name, from_status, to_status, target_type, target_owner,
            target_repo, target_number, delivery_id, parent_run_id, root_run_id, root_workflow_name, reason,
            traceparent, reconciled
        ) VALUES (
            -- Of an INSERT, OLD is NULL throughout.
            clock_timestamp(), NEW.created_at, NEW.id, left(NEW.workflow_name::text, 1024), OLD.status, NEW.status,
            left(NEW.target_type::text, 1024), left(NEW.target_owner::text, 1024),
            left(NEW.target_repo::text, 1024), NEW.target_number, left(NEW.delivery_id::text, 1024),
            NEW.parent_run_id, root_id, root_name, reason, link, false
        );
    EXCEPTION
        WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            BEGIN
                PERFORM runspan.skip(SQLSTATE);
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
    END;
    RETURN NULL;
END
$function$;

-- Journals a dispatch that was refused before a row existed: the one event that no trigger can see.
CREATE OR REPLACE FUNCTION runspan.dispatch_refused(
    workflow_name text,
    target_type text,
    target_owner text,
    target_repo text,
    target_number bigint,
    reason text,
    delivery_id text DEFAULT NULL,
    inflight_run_id uuid DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $function$
#variable_conflict use_variable
DECLARE
    root_id uuid;
    skipping text;
BEGIN
    BEGIN
        skipping := current_setting('runspan.skipping', true);
        IF skipping <> '' AND replace(skipping, 'uncounted ', '') = pg_current_xact_id_if_assigned()::text THEN
            PERFORM runspan.skip('');
            RETURN;
        END IF;
        IF inflight_run_id IS NOT NULL THEN
            SELECT r.root_id INTO root_id FROM runspan.root_above(inflight_run_id) r;
        END IF;
        INSERT INTO runspan.journal (
            at, workflow_name, target_type, target_owner, target_repo, target_number, reason, delivery_id,
            inflight_run_id, root_run_id, reconciled
        ) VALUES (
            clock_timestamp(), left(workflow_name, 1024), left(target_type, 1024), left(target_owner, 1024),
            left(target_repo, 1024), target_number, left(reason, 8192), left(delivery_id, 1024), inflight_run_id, root_id, false
        );
    EXCEPTION
        WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            BEGIN
                PERFORM runspan.skip(SQLSTATE);
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
    END;
END
$function$;

-- Journals what the journal missed: the table is the truth. Returns how many entries that made.
--
-- The rows that a beginning is written for are locked (rows that someone else holds are left for the next
-- time), so that no transition of theirs can get a position before it: 10,000 at most a call, to hold them briefly.
--
-- What one of them lacks is found by grouping, not by joining: the journal goes from empty to a million entries and
-- back in less time than its statistics, and a nested loop over both would take hours.
CREATE OR REPLACE FUNCTION runspan.reconcile() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
    begun bigint;
    moved bigint;
BEGIN
    IF attached IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format($sql$
    WITH missed AS MATERIALIZED (
        SELECT w.* FROM (
            SELECT run_id FROM (
                SELECT id, created_at, parent_run_id IS NOT NULL, true FROM %1$s
                WHERE status IN ('queued', 'running')
                  AND workflow_name IS NOT NULL -- or each time would make an entry that is set aside
                UNION ALL SELECT run_id, NULL, NULL, false FROM runspan.open_runs
                UNION ALL SELECT run_id, NULL, NULL, false FROM runspan.journal
            ) known (run_id, created_at, is_child, in_table)
            GROUP BY run_id HAVING bool_and(in_table)
            ORDER BY min(created_at), bool_and(is_child)
        ) missed CROSS JOIN LATERAL (
            SELECT * FROM %1$s
            WHERE id = missed.run_id AND status IN ('queued', 'running') AND workflow_name IS NOT NULL
            FOR SHARE SKIP LOCKED
        ) w LIMIT 10000
    )
    INSERT INTO runspan.journal (
        at, created_at, run_id, workflow_name, to_status, target_type, target_owner, target_repo,
        target_number, delivery_id, parent_run_id, root_run_id, root_workflow_name, traceparent, reconciled
    )
    SELECT CASE m.status::text WHEN 'queued' THEN m.created_at ELSE m.updated_at END, m.created_at, m.id,
        left(m.workflow_name::text, 1024), m.status::text, left(m.target_type::text, 1024),
        left(m.target_owner::text, 1024), left(m.target_repo::text, 1024), m.target_number,
        left(m.delivery_id::text, 1024), m.parent_run_id, r.root_id, r.root_name, runspan.in_state(m.state, 'traceparent', 128), true
    FROM missed m CROSS JOIN LATERAL runspan.root_above(m.parent_run_id) r
    ORDER BY m.created_at, m.parent_run_id IS NOT NULL, m.id
    $sql$, attached);
    GET DIAGNOSTICS begun = ROW_COUNT;

    -- A run that is known to be in flight, but whose row says something else, or is gone.
    EXECUTE format($sql$
    INSERT INTO runspan.journal (
        at, created_at, run_id, workflow_name, from_status, to_status, reason, reconciled
    )
    SELECT coalesce(min(updated_at), clock_timestamp()), min(created_at), run_id,
        min(state)::jsonb -> 'context' ->> 'workflow_name', min(from_status), min(to_status), min(reason), true
    FROM (
        SELECT o.run_id, w.updated_at, w.created_at, o.state, o.status, w.status::text,
            CASE w.status::text
                WHEN 'failed' THEN runspan.in_state(w.state, 'failedReason', 8192)
                WHEN 'incomplete' THEN runspan.in_state(w.state, 'incompleteReason', 8192)
            END, true
        FROM runspan.open_runs o LEFT JOIN %s w ON w.id = o.run_id
        WHERE w.id IS NULL
           OR w.status::text <> o.status
              AND w.status::text IN ('queued', 'running', 'succeeded', 'failed', 'incomplete')
        UNION ALL SELECT run_id, NULL, NULL, NULL, NULL, NULL, NULL, false FROM runspan.journal
    ) known (run_id, updated_at, created_at, state, from_status, to_status, reason, has_moved)
    GROUP BY run_id HAVING bool_and(has_moved)
    ORDER BY 1, run_id
    LIMIT 10000
    $sql$, attached);
    GET DIAGNOSTICS moved = ROW_COUNT;

    RETURN begun + moved;
END
$function$;

-- The runs in flight, and the age of the oldest in seconds, by workflow and status.
CREATE OR REPLACE FUNCTION runspan.in_flight()
RETURNS TABLE (workflow_name text, status text, runs bigint, oldest_age double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    IF attached IS NOT NULL THEN
        RETURN QUERY EXECUTE format($sql$
        SELECT left(w.workflow_name::text, 1024), w.status::text, count(*),
            coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at) FILTER (WHERE isfinite(w.created_at)))::float8, 0)
        FROM %s w WHERE w.status IN ('queued', 'running') AND w.workflow_name IS NOT NULL
        GROUP BY 1, 2
        $sql$, attached);
    END IF;
END
$function$;

-- The runs that are stuck now (`Stuck` in store/stuck.rs), the oldest first; none once the table is gone.
--
-- `since`: when it took its status, as its span tells it; while that is not projected yet, as reconciliation would.
CREATE OR REPLACE FUNCTION runspan.stuck_runs() RETURNS TABLE (
    run_id uuid, workflow_name text, target text, target_owner text, target_repo text, status text,
    since timestamptz, age_seconds float8, usual_seconds float8, parent_run_id uuid, delivery_id text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    attached regclass := runspan.attached_to();
BEGIN
    IF attached IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($sql$
    SELECT w.id, left(w.workflow_name::text, 1024), w.target_owner::text || '/' || w.target_repo || '#' || w.target_number,
        w.target_owner::text, w.target_repo::text, w.status::text,
        coalesce((
            SELECT max('epoch'::timestamptz + (e ->> 'at')::bigint * interval '1 microsecond')
            FROM jsonb_array_elements(o.state::jsonb -> 'events') e
            WHERE o.status = w.status::text AND e ->> 'event' = o.status
        ), CASE w.status::text WHEN 'queued' THEN w.created_at ELSE w.updated_at END),
        age.seconds, usual.seconds, w.parent_run_id, w.delivery_id::text
    FROM %s w
    CROSS JOIN LATERAL (
        SELECT CASE WHEN isfinite(w.created_at)
            THEN extract(epoch FROM statement_timestamp() - w.created_at)::float8 END
    ) age (seconds)
    LEFT JOIN (
        SELECT u.key, u.value::float8 FROM jsonb_each_text((SELECT s.usual FROM runspan.series s)) u
    ) usual (workflow_name, seconds) ON usual.workflow_name = left(w.workflow_name::text, 1024)
    LEFT JOIN runspan.open_runs o ON o.run_id = w.id
    WHERE w.status IN ('queued', 'running') AND w.workflow_name IS NOT NULL AND age.seconds > {patience}
    ORDER BY age.seconds DESC, w.id
    $sql$, attached);
END
$function$;

-- Of a function, as a view of the table would hold on to its columns: no ALTER TABLE could drop or retype one.
CREATE OR REPLACE VIEW runspan.stuck AS SELECT * FROM runspan.stuck_runs();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA runspan FROM PUBLIC;
