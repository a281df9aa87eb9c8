-- What the writer's statements run, for one table. Replaced by each `attach`. (No name of the application's may stand in
-- a comment: it may hold a line break.)

-- The table that has the triggers, whatever it is called by now; NULL after a detach.
CREATE OR REPLACE FUNCTION runspan.attached_to() RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT t.tgrelid::regclass FROM pg_trigger t
    WHERE t.tgfoid = to_regproc('runspan.journal_run') AND t.tgparentid = 0 LIMIT 1
$function$;

-- The root above a run, its workflow and its delivery: parents are walked, {max_ancestors} levels at most. A parent whose
-- row is gone is the root. Of a cycle it is the smallest id, whichever of its runs one begins with.
CREATE OR REPLACE FUNCTION runspan.root_of(parent uuid, OUT root_id uuid, OUT root_name text, OUT root_delivery text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_variable
DECLARE
    this uuid := parent;
    above uuid;
    found_id uuid;
    found_name text;
    found_delivery text;
    mark uuid; -- a run passed before: whoever comes by it again is in a cycle
    first uuid; -- of the cycle, while it is gone round once
    renamed regclass;
    columns CONSTANT text := 'w.id, w.parent_run_id, left(w.workflow_name::text, {text_limit}), left(w.delivery_id::text, {text_limit})';
BEGIN
    IF parent IS NULL THEN
        RETURN;
    END IF;
    -- The table that has the name now may be another one.
    IF NOT EXISTS (
        SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass({literal}) AND t.tgname IN ('!runspan', 'runspan_inserted')
    ) THEN
        renamed := runspan.attached_to();
        IF renamed IS NULL THEN
            RETURN;
        END IF;
    END IF;
    FOR depth IN 1..2 * {max_ancestors} LOOP
        IF renamed IS NULL THEN
            SELECT w.id, w.parent_run_id, left(w.workflow_name::text, {text_limit}), left(w.delivery_id::text, {text_limit})
            INTO found_id, above, found_name, found_delivery
            FROM {table} w WHERE w.id = this;
        ELSE
            EXECUTE format('SELECT ' || columns || ' FROM %s w WHERE w.id = $1', renamed)
            INTO found_id, above, found_name, found_delivery USING this;
        END IF;
        IF first IS NULL OR root_id IS NULL OR found_id < root_id THEN
            root_id := this;
            root_name := found_name;
            root_delivery := found_delivery;
        END IF;
        EXIT WHEN above IS NULL -- as is that of a row that is gone
            OR above = first
            OR first IS NULL AND depth >= {max_ancestors};
        IF first IS NULL AND (above = this OR above = mark) THEN
            first := above;
            root_id := NULL;
        ELSIF depth & (depth - 1) = 0 THEN
            mark := this;
        END IF;
        this := above;
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

-- A value of the application's that may be anything, as what runspan keeps; NULL if it cannot be. (The cast
-- has to be in the block: that to the function's type would be outside of it.)
CREATE OR REPLACE FUNCTION runspan.as_uuid(value text) RETURNS uuid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN value::uuid;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION runspan.as_time(value text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN value::timestamptz;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$function$;

-- The same, if that is a time of the past: none before 2000 (the zero of many languages), and none in the future. Such
-- times are a clock's fault, or stand for none.
CREATE OR REPLACE FUNCTION runspan.as_past(value text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    moment timestamptz := runspan.as_time(value);
BEGIN
    RETURN CASE WHEN moment BETWEEN '2000-01-01 00:00Z' AND clock_timestamp() THEN moment END;
END
$function$;

CREATE OR REPLACE FUNCTION runspan.as_number(value text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN value::numeric::bigint;
EXCEPTION WHEN data_exception OR feature_not_supported THEN -- NaN
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION runspan.as_jsonb(value text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN value::jsonb;
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

-- Puts an entry in the order of cause: before those of the same run that it caused.
--
-- An application's trigger that changes a row while ours has yet to fire for the change before has its own change
-- journalled first: of another row of the same statement always, of the same row if its name sorts first. Entries that
-- are made inside of another trigger are noted for the transaction; a later call that finds its row changed again moves
-- them behind its own entry.
CREATE OR REPLACE FUNCTION runspan.in_order(
    relation regclass, run uuid, old_status text, new_status text, skipping text
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_variable
DECLARE
    nested text := 'nested ' || pg_current_xact_id() || ' ';
    place bigint := currval('runspan.journal_seq'); -- of the entry
    first_nested bigint;
    split bigint;
    last_status text;
    status_now text;
BEGIN
    IF skipping IS NULL OR NOT starts_with(skipping, nested) THEN
        IF pg_trigger_depth() > 1 THEN
            PERFORM set_config('runspan.skipping', nested || place, true);
        END IF;
        RETURN;
    END IF;
    first_nested := substr(skipping, length(nested) + 1);
    -- The entry fits before the last one that leaves the status which it reaches, and behind the one that reaches the
    -- status which it leaves.
    SELECT max(n.seq) FILTER (WHERE n.from_status IS NOT DISTINCT FROM new_status
                                AND (n.is_first OR n.before IS NOT DISTINCT FROM old_status)),
        (array_agg(n.to_status ORDER BY n.seq DESC))[1]
    INTO split, last_status FROM (
        SELECT k.seq, k.from_status, k.to_status, lag(k.to_status) OVER w AS before, lag(k.seq) OVER w IS NULL AS is_first
        FROM runspan.journal k
        WHERE k.seq >= first_nested AND k.seq < place AND k.run_id = run AND k.xid = pg_current_xact_id()
        WINDOW w AS (ORDER BY k.seq)
    ) n;
    IF split IS NULL THEN
        RETURN;
    END IF;
    IF last_status IS NOT DISTINCT FROM old_status THEN
        -- It can follow all of them, unless its row was changed again.
        BEGIN
            EXECUTE format('SELECT w.status::text FROM %s w WHERE w.id = $1', relation) INTO status_now USING run;
        EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
            RETURN;
        END;
        IF status_now IS NOT DISTINCT FROM new_status THEN
            RETURN;
        END IF;
    END IF;
    UPDATE runspan.journal j SET seq = moved.place FROM (
        SELECT later.seq, nextval('runspan.journal_seq') AS place FROM (
            SELECT k.seq FROM runspan.journal k
            WHERE k.seq >= split AND k.seq < place AND k.run_id = run AND k.xid = pg_current_xact_id()
            ORDER BY k.seq
        ) later
    ) moved WHERE j.seq = moved.seq;
END
$function$;

-- Journals a transition whose row does not have the columns or the types that runspan.journal_run() was planned for:
-- a session that outlives an ALTER TABLE keeps its old plans. Values that cannot be read are left out.
CREATE OR REPLACE FUNCTION runspan.journal_altered(
    relation regclass, old_row jsonb, new_row jsonb, skipping text
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    this jsonb := coalesce(new_row, old_row);
    parent uuid := runspan.as_uuid(this ->> 'parent_run_id');
    reason text;
    link text;
    old_status text := rtrim(old_row ->> 'status'); -- a char(n) is padded
    new_status text := rtrim(new_row ->> 'status');
    root_id uuid;
    root_name text;
    root_delivery text;
    state jsonb;
BEGIN
    IF new_row IS NULL AND old_status NOT IN ({in_flight}) THEN
        RETURN;
    END IF;
    IF parent IS NOT NULL THEN
        BEGIN
            SELECT r.root_id, r.root_name, r.root_delivery INTO root_id, root_name, root_delivery
            FROM runspan.root_of(parent) r;
        EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception THEN
            NULL;
        END;
    END IF;
    IF new_row IS NOT NULL AND (new_status <> 'running' OR old_row IS NULL) THEN
        state := CASE jsonb_typeof(this -> 'state')
            WHEN 'object' THEN this -> 'state'
            -- The column is text now.
            WHEN 'string' THEN runspan.as_jsonb(this ->> 'state')
        END;
    END IF;
    reason := left(
        state ->> CASE new_status WHEN 'failed' THEN 'failedReason' WHEN 'incomplete' THEN 'incompleteReason' END,
        {reason_limit});
    link := left(state ->> 'traceparent', {traceparent_limit});
    INSERT INTO runspan.journal ({altered.columns})
    VALUES ({altered.values});
    IF skipping <> '' OR pg_trigger_depth() > 1 THEN
        PERFORM runspan.in_order(relation, runspan.as_uuid(this ->> 'id'), old_status, new_status, skipping);
    END IF;
END
$function$;

-- Journals one transition, in the writer's transaction.
--
-- Fail-open: whatever goes wrong here, the writer's statement goes on. Nothing may be computed outside the
-- inner block, where an error would not be caught. A serialization failure is handed on: catching it would
-- let a transaction commit that must not; its application retries it anyway.
--
-- Every expression costs the writer about a microsecond, since the executor sets it up again in each transaction. So
-- one expression separates the ordinary entry, which needs one more, from those that need care.
--
-- Whether the status has changed is asked here and not by a WHEN of the trigger, which would hold on to the column: no
-- ALTER TABLE could change its type. A status is compared as text, or the plan would hold on to an enum's labels.
CREATE OR REPLACE FUNCTION runspan.journal_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $function$
DECLARE
    root_id uuid;
    root_name text;
    root_delivery text;
    reason text;
    link text;
    skipping text;
    is_changed boolean := true;
BEGIN
    BEGIN
        IF TG_OP = 'UPDATE' AND OLD.status::text IS NOT DISTINCT FROM NEW.status::text THEN
            RETURN NULL;
        END IF;
        IF NEW.parent_run_id IS NULL AND NEW.status::text IN ('queued', 'running', 'succeeded') -- of a DELETE, NULL
            AND pg_typeof(NEW.state) = 'jsonb'::regtype -- whose text never fails
            AND pg_trigger_depth() = 1
            AND coalesce(current_setting('runspan.skipping', true), '') = '' THEN
            -- The state may be large; a run that begins to run has nothing in it that is needed.
            link := CASE WHEN NEW.status::text <> 'running' OR OLD.status IS NULL
                THEN left(NEW.state ->> 'traceparent', {traceparent_limit}) END;
        ELSE
            IF TG_OP = 'DELETE' AND OLD.status::text NOT IN ({in_flight}) THEN
                RETURN NULL;
            END IF;
            skipping := coalesce(current_setting('runspan.skipping', true), '');
            IF skipping <> '' AND replace(skipping, 'uncounted ', '') = pg_current_xact_id_if_assigned()::text THEN
                PERFORM runspan.skip('');
                RETURN NULL;
            END IF;
            IF TG_OP = 'DELETE' THEN
                SELECT r.root_id, r.root_name, r.root_delivery INTO root_id, root_name, root_delivery
                FROM runspan.root_of(OLD.parent_run_id) r;
                INSERT INTO runspan.journal ({deleted.columns})
                VALUES ({deleted.values});
                IF pg_trigger_depth() > 1 THEN
                    PERFORM runspan.in_order(TG_RELID, OLD.id, OLD.status::text, NULL, skipping);
                END IF;
                RETURN NULL;
            END IF;
            IF NEW.parent_run_id IS NOT NULL THEN
                SELECT r.root_id, r.root_name, r.root_delivery INTO root_id, root_name, root_delivery
                FROM runspan.root_of(NEW.parent_run_id) r;
            END IF;
            IF NEW.status::text <> 'running' OR OLD.status IS NULL THEN
                BEGIN
                    link := left(NEW.state ->> 'traceparent', {traceparent_limit});
                    IF NEW.status::text = 'failed' THEN
                        reason := left(NEW.state ->> 'failedReason', {reason_limit});
                    ELSIF NEW.status::text = 'incomplete' THEN
                        reason := left(NEW.state ->> 'incompleteReason', {reason_limit});
                    END IF;
                EXCEPTION WHEN data_exception THEN
                    NULL; -- json's \u0000, which no text can hold
                END;
            END IF;
        END IF;
        -- Of an INSERT, OLD is NULL throughout.
        INSERT INTO runspan.journal ({new.columns})
        VALUES ({new.values});
        IF skipping <> '' OR pg_trigger_depth() > 1 THEN
            PERFORM runspan.in_order(TG_RELID, NEW.id, OLD.status::text, NEW.status::text, skipping);
        END IF;
    EXCEPTION
        WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            BEGIN
                skipping := current_setting('runspan.skipping', true);
                -- 2200H: the journal is full.
                IF SQLSTATE = '2200H' OR left(SQLSTATE, 2) NOT IN ('0A', '22', '42', 'XX')
                    OR skipping <> '' AND replace(skipping, 'uncounted ', '') = pg_current_xact_id_if_assigned()::text THEN
                    PERFORM runspan.skip(SQLSTATE);
                ELSE
                    IF TG_OP = 'UPDATE' THEN
                        -- Parsed again: the plan of an expression over OLD and NEW may be what failed.
                        EXECUTE 'SELECT ($1).status::text IS DISTINCT FROM ($2).status::text'
                        INTO is_changed USING OLD, NEW;
                    END IF;
                    IF is_changed THEN
                        PERFORM runspan.journal_altered(TG_RELID, to_jsonb(OLD), to_jsonb(NEW), skipping);
                    END IF;
                END IF;
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
            SELECT r.root_id INTO root_id FROM runspan.root_of(inflight_run_id) r;
        END IF;
        INSERT INTO runspan.journal ({refused.columns})
        VALUES ({refused.values});
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
