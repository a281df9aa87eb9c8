//! The SQL that has to be built: SQLite has neither functions nor a catch, so every trigger spells all of it
//! out. Nothing here needs a SQLite newer than 3.38, for writers of other programs run the triggers too.

use super::super::columns::{
    self, Column, Insert, Kind, REASON_LIMIT, TEXT_LIMIT, TRACEPARENT_LIMIT, Values,
};
use super::super::stuck::STUCK_THRESHOLD;
use super::super::template::render;
use crate::run::MAX_ANCESTORS;

/// runspan's tables, version by version. Append-only.
pub(super) const MIGRATIONS: [&str; super::super::SCHEMA_VERSION as usize] =
    [include_str!("schema.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];
const ENTRY: &str = include_str!("entry.sql");
const TRIGGERS: &str = include_str!("triggers.sql");
const FIND: &str = include_str!("find.sql");
const MISSING: &str = include_str!("missing.sql");
const CHANGED: &str = include_str!("changed.sql");
const STUCK: &str = include_str!("stuck.sql");

/// That a row's id is one that the journal's reader takes: a UUID in one case, with all its hyphens or none (as Django and
/// `SQLAlchemy` write it).
pub(super) const IS_RUN: &str = "typeof(w.id) = 'text' AND w.id IN (lower(w.id), upper(w.id)) \
    AND (length(w.id) = 32 OR w.id LIKE '________-____-____-____-____________') \
    AND length(replace(w.id, '-', '')) = 32 AND replace(w.id, '-', '') NOT GLOB '*[^0-9A-Fa-f]*'";

/// The id of a run as runspan stores it, from a row's, which is one: see [`IS_RUN`].
pub(super) fn canonical(id: &str) -> String {
    format!(
        "lower(CASE length({id}) WHEN 32 THEN substr({id}, 1, 8) || '-' || substr({id}, 9, 4) || '-' || substr({id}, 13, 4) \
         || '-' || substr({id}, 17, 4) || '-' || substr({id}, 21) ELSE {id} END)"
    )
}

/// The ids that the row of a run may have: the reverse of [`canonical`]. An index on the id finds them.
fn spellings(run: &str) -> String {
    format!("{run}, upper({run}), replace({run}, '-', ''), upper(replace({run}, '-', ''))")
}

/// The present, in microseconds (of a clock of milliseconds).
pub(super) const NOW: &str = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000";

/// What a refusal without a root lacks: `?1` is the run in flight.
pub(super) fn root_of(table: &str) -> String {
    root_above(table, &spellings("?1"))
}

/// The runs in flight of `table` (quoted), and the age of the oldest in seconds, by workflow and status.
pub(super) fn in_flight(table: &str) -> String {
    format!(
        "SELECT CAST(workflow_name AS TEXT), CAST(status AS TEXT), count(*),
                coalesce(({NOW} - min({})) / 1e6, 0.0)
         FROM {table} WHERE status IN ({}) AND workflow_name IS NOT NULL GROUP BY 1, 2",
        past("created_at"),
        columns::in_flight()
    )
}

/// A time of the past that the application wrote, in microseconds: none before 2000 (the zero of many languages), and none
/// in the future. Such times are a clock's fault, or stand for none.
fn past(column: &str) -> String {
    format!(
        "CASE WHEN julianday({column}) BETWEEN 2451544.5 AND julianday('now') THEN {} END",
        micros(column)
    )
}

/// A time that the application wrote, in microseconds; NULL if it is not one. A number would be taken for a day.
pub(super) fn micros(column: &str) -> String {
    format!(
        "CASE WHEN typeof({column}) = 'text' \
         THEN CAST(round((julianday({column}) - 2440587.5) * 86400000.0) AS INTEGER) * 1000 END"
    )
}

/// What is missing of the tables.
pub(super) fn schema(installed: usize) -> String {
    render(&MIGRATIONS[installed.min(MIGRATIONS.len())..].concat(), &[("now", NOW)])
}

/// The triggers of `table` (quoted).
pub(super) fn triggers(table: &str) -> String {
    let entry = |row: &str, from: &str, to: &str, state: &str| {
        let Insert { columns, values } = entry(row, from, to, state);
        let placeholders: [(&str, &str); 8] = [
            ("entry.columns", &columns),
            ("entry.values", &values),
            ("now", NOW),
            ("row", row),
            ("from", from),
            ("to", to),
            ("root_above", &root_above(table, &in_any_case(&format!("{row}.parent_run_id")))),
            ("table", table),
        ];
        render(ENTRY, &placeholders)
    };
    let placeholders: [(&str, &str); 6] = [
        ("columns", &columns::names()),
        ("in_flight", &columns::in_flight()),
        ("inserted", &entry("NEW", "NULL", "NEW.status", "NEW.state")),
        ("changed", &entry("NEW", "OLD.status", "NEW.status", "NEW.state")),
        ("deleted", &entry("OLD", "OLD.status", "NULL", "NULL")),
        ("table", table),
    ];
    render(TRIGGERS, &placeholders)
}

/// A text as the journal keeps it.
fn text(value: &str) -> String {
    format!("substr({value}, 1, {TEXT_LIMIT})")
}

/// A value of a row of the application's, as the journal keeps it: the reader copes with any type.
fn of_row(row: &str, column: &Column, origin: &str) -> String {
    let value = format!("{row}.{origin}");
    if column.kind == Kind::Text { text(&value) } else { value }
}

/// The entry of a transition.
fn entry(row: &str, before: &str, after: &str, state: &str) -> Insert {
    // The state may be large; that of a run that begins to run has nothing in it that is needed.
    let traceparent =
        format!("CASE WHEN {before} IS NULL OR {after} <> 'running' THEN {} END", traceparent(state));
    Values {
        now: NOW,
        row: &|column, origin| Some(of_row(row, column, origin)),
        before: Some(before),
        after: Some(after),
        root_id: Some("root.id"),
        root_name: Some(&text("root.name")),
        root_delivery: Some(&text("root.delivery")),
        reason: Some(&reasons(after, state)),
        traceparent: Some(&traceparent),
        inflight: None,
        reconciled: "0",
    }
    .insert()
}

/// The beginning of a run that the journal missed.
fn missing_entry(table: &str) -> Insert {
    let root = root_above(table, &in_any_case("w.parent_run_id"));
    Values {
        now: &format!(
            "coalesce(CASE w.status WHEN 'queued' THEN {} ELSE {} END, {NOW})",
            past("w.created_at"),
            past("w.updated_at")
        ),
        row: &|column, origin| Some(of_row("w", column, origin)),
        before: None,
        after: Some("w.status"),
        root_id: Some(&format!("(SELECT id FROM ({root}))")),
        root_name: Some(&format!("(SELECT {} FROM ({root}))", text("name"))),
        root_delivery: Some(&format!("(SELECT {} FROM ({root}))", text("delivery"))),
        reason: None,
        traceparent: Some(&traceparent("w.state")),
        inflight: None,
        reconciled: "1",
    }
    .insert()
}

/// What an open run has become. The projection knows the rest of it.
fn changed_entry() -> Insert {
    Values {
        now: &format!("coalesce({}, {NOW})", past("w.updated_at")),
        row: &|_, origin| match origin {
            "created_at" => Some("w.created_at".to_owned()),
            "id" => Some("o.run_id".to_owned()),
            "workflow_name" => Some("json_extract(o.state, '$.context.workflow_name')".to_owned()),
            _ => None,
        },
        before: Some("o.status"),
        after: Some("w.status"),
        root_id: None,
        root_name: None,
        root_delivery: None,
        reason: Some(&reasons("w.status", "w.state")),
        traceparent: None,
        inflight: None,
        reconciled: "1",
    }
    .insert()
}

/// Finds what the journal of `table` (quoted) missed, for [`missing`] and [`changed`].
pub(super) fn find(table: &str) -> String {
    compared(FIND, table, "", "")
}

/// Journals the runs in flight that were found after the place `after`, up to `last`.
pub(super) fn missing(table: &str, after: &str, last: &str) -> String {
    compared(MISSING, table, after, last)
}

/// Journals what became of the open runs that were found after the place `after`, up to `last`.
pub(super) fn changed(table: &str, after: &str, last: &str) -> String {
    compared(CHANGED, table, after, last)
}

/// Journals all that the journal of `table` (quoted) missed, to be run by hand.
pub(super) fn reconcile(table: &str) -> String {
    let (all, last) = ("0", "9223372036854775807");
    format!(
        "{}\n{};\n\n{};\nDROP TABLE temp.runspan_found;\n",
        find(table),
        missing(table, all, last).trim_end(),
        changed(table, all, last).trim_end()
    )
}

fn compared(template: &str, table: &str, after: &str, last: &str) -> String {
    let (missing, changed) = (missing_entry(table), changed_entry());
    let (run, spellings) = (canonical("w.id"), spellings("o.run_id"));
    let journalled = canonical("run_id");
    let placeholders: [(&str, &str); 15] = [
        ("run", &run),
        ("spellings", &spellings),
        ("journalled", &journalled),
        ("missing.columns", &missing.columns),
        ("missing.values", &missing.values),
        ("changed.columns", &changed.columns),
        ("changed.values", &changed.values),
        ("in_flight", &columns::in_flight()),
        ("statuses", &columns::statuses()),
        ("now", NOW),
        ("updated_at", &past("w.updated_at")),
        ("is_run", IS_RUN),
        ("after", after),
        ("last", last),
        ("table", table),
    ];
    render(template, &placeholders)
}

/// The first `?1` of the runs of `table` (quoted) that are stuck.
pub(super) fn stuck(table: &str) -> String {
    render(
        STUCK,
        &[
            ("now", NOW),
            ("created_at", &past("w.created_at")),
            ("updated_at", &past("w.updated_at")),
            ("is_run", IS_RUN),
            ("run", &canonical("w.id")),
            ("in_flight", &columns::in_flight()),
            ("text_limit", &TEXT_LIMIT.to_string()),
            ("stuck_threshold", STUCK_THRESHOLD),
            ("table", table),
        ],
    )
}

/// An id of the application's in the cases that another row of it may have it in. An index on the id finds them.
fn in_any_case(id: &str) -> String {
    format!("{id}, lower({id}), upper({id})")
}

/// The root above the run whose row has one of the ids `parents`, its workflow and its delivery. A parent whose row is gone
/// is the root; a parent that can be no id is none. A walk of [`MAX_ANCESTORS`] goes round a cycle, whose smallest id is the
/// root: the second half of the walk does nothing else.
fn root_above(table: &str, parents: &str) -> String {
    let above = "CASE WHEN length(p.parent_run_id) IN (32, 36) THEN p.parent_run_id END";
    let (next, half) = (in_any_case("up.above"), MAX_ANCESTORS / 2);
    format!(
        "WITH RECURSIVE runspan_up (id, name, delivery, above, depth) AS (
            SELECT p.id, p.workflow_name, p.delivery_id, {above}, 1 FROM {table} p WHERE p.id IN ({parents})
            UNION ALL
            SELECT p.id, p.workflow_name, p.delivery_id, {above}, up.depth + 1
            FROM runspan_up up CROSS JOIN {table} p ON p.id IN ({next}) WHERE up.depth < {MAX_ANCESTORS}
        )
        SELECT coalesce(gone, id) AS id, iif(gone IS NULL, name, NULL) AS name, iif(gone IS NULL, delivery, NULL) AS delivery
        FROM (SELECT *, iif(depth < {MAX_ANCESTORS}, above, NULL) AS gone, max(depth) OVER () AS last FROM runspan_up)
        WHERE depth = last OR last = {MAX_ANCESTORS} AND depth > {half}
        ORDER BY id LIMIT 1"
    )
}

/// The reason of a status, in a state that may be anything.
fn reasons(status: &str, state: &str) -> String {
    let (failed, incomplete) = (reason(state, "failedReason"), reason(state, "incompleteReason"));
    format!("CASE {status} WHEN 'failed' THEN {failed} WHEN 'incomplete' THEN {incomplete} END")
}

/// A reason in a state that may be anything: as text, whatever it is (as PostgreSQL's `->>` gives it).
fn reason(state: &str, key: &str) -> String {
    format!(
        "CASE WHEN typeof({state}) = 'text' THEN CASE WHEN json_valid({state}) THEN \
         substr(CASE json_type({state}, '$.{key}') WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' \
         ELSE json_extract({state}, '$.{key}') END, 1, {REASON_LIMIT}) END END"
    )
}

/// The traceparent in a state that may be anything.
fn traceparent(state: &str) -> String {
    format!(
        "CASE WHEN typeof({state}) = 'text' THEN CASE WHEN json_valid({state}) THEN \
         CASE json_type({state}, '$.traceparent') WHEN 'text' THEN \
         substr(json_extract({state}, '$.traceparent'), 1, {TRACEPARENT_LIMIT}) END END END"
    )
}

/// A name as SQL can hold it: quoted if it has to be.
pub(super) fn quoted(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    // A plain word with an underscore is no keyword but CURRENT_….
    if plain && name.contains('_') && !name.starts_with("current_") {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
