//! The SQL that has to be built: SQLite has neither functions nor a catch, so every trigger spells all of it
//! out. Nothing here needs a SQLite newer than 3.38, for writers of other programs run the triggers too.

use super::super::stuck::STUCK_THRESHOLD;

/// runspan's tables, version by version. Append-only.
pub(super) const MIGRATIONS: [&str; super::super::SCHEMA_VERSION as usize] =
    [include_str!("schema.sql"), include_str!("schema_2.sql")];
const ENTRY: &str = include_str!("entry.sql");
const TRIGGERS: &str = include_str!("triggers.sql");
const FIND: &str = include_str!("find.sql");
const MISSING: &str = include_str!("missing.sql");
const CHANGED: &str = include_str!("changed.sql");
const STUCK: &str = include_str!("stuck.sql");

/// That a row's id is one that the journal's reader takes: hyphenated, in one case.
pub(super) const IS_RUN: &str = "typeof(w.id) = 'text' AND w.id IN (lower(w.id), upper(w.id)) \
    AND w.id LIKE '________-____-____-____-____________' \
    AND length(replace(w.id, '-', '')) = 32 AND replace(w.id, '-', '') NOT GLOB '*[^0-9A-Fa-f]*'";

/// The journal's columns, but for `seq`.
pub(super) const COLUMNS: [&str; 18] = [
    "at",
    "created_at",
    "run_id",
    "workflow_name",
    "from_status",
    "to_status",
    "target_type",
    "target_owner",
    "target_repo",
    "target_number",
    "delivery_id",
    "parent_run_id",
    "root_run_id",
    "root_workflow_name",
    "reason",
    "traceparent",
    "inflight_run_id",
    "reconciled",
];

/// The present, in microseconds (of a clock of milliseconds).
pub(super) const NOW: &str = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000";

/// What a refusal without a root lacks: `?1` is the run in flight.
pub(super) fn root_of(table: &str) -> String {
    root_above(table, "?1")
}

/// The runs in flight of `table` (quoted), and the age of the oldest in seconds, by workflow and status.
pub(super) fn in_flight(table: &str) -> String {
    format!(
        "SELECT CAST(workflow_name AS TEXT), CAST(status AS TEXT), count(*),
                coalesce(({NOW} - min({})) / 1e6, 0.0)
         FROM {table} WHERE status IN ('queued', 'running') AND workflow_name IS NOT NULL GROUP BY 1, 2",
        micros("created_at")
    )
}

/// A time that the application wrote, in microseconds; NULL if it is none. A number would be read as a day.
pub(super) fn micros(column: &str) -> String {
    format!(
        "CASE WHEN typeof({column}) = 'text' AND julianday({column}) >= 2440587.5 \
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
        render(
            ENTRY,
            &[
                ("now", NOW),
                ("row", row),
                ("from", from),
                ("to", to),
                ("failed_reason", &reason(state, "failedReason")),
                ("incomplete_reason", &reason(state, "incompleteReason")),
                ("traceparent", &traceparent(state)),
                ("root_above", &root_above(table, &format!("{row}.parent_run_id"))),
                ("table", table),
            ],
        )
    };
    render(
        TRIGGERS,
        &[
            ("columns", &COLUMNS.join(", ")),
            ("inserted", &entry("NEW", "NULL", "NEW.status", "NEW.state")),
            ("changed", &entry("NEW", "OLD.status", "NEW.status", "NEW.state")),
            ("deleted", &entry("OLD", "OLD.status", "NULL", "NULL")),
            ("table", table),
        ],
    )
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
    render(
        template,
        &[
            ("now", NOW),
            ("created_at", &micros("w.created_at")),
            ("updated_at", &micros("w.updated_at")),
            ("failed_reason", &reason("w.state", "failedReason")),
            ("incomplete_reason", &reason("w.state", "incompleteReason")),
            ("traceparent", &traceparent("w.state")),
            ("root_above", &root_above(table, "w.parent_run_id")),
            ("is_run", IS_RUN),
            ("after", after),
            ("last", last),
            ("table", table),
        ],
    )
}

/// The first `?1` of the runs of `table` (quoted) that are stuck.
pub(super) fn stuck(table: &str) -> String {
    render(
        STUCK,
        &[
            ("now", NOW),
            ("created_at", &micros("w.created_at")),
            ("updated_at", &micros("w.updated_at")),
            ("is_run", IS_RUN),
            ("stuck_threshold", STUCK_THRESHOLD),
            ("table", table),
        ],
    )
}

/// Puts values in the places of their names, in one pass: a table may have any name, `{now}` too.
fn render(template: &str, values: &[(&str, &str)]) -> String {
    let mut sql = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').expect("each brace of a template is closed");
        let value = values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        sql += before;
        sql += value.expect("each name of a template has a value");
        rest = after;
    }
    sql + rest
}

/// The root above a run and its workflow: parents walked, 32 levels at most, so that a cycle ends too.
fn root_above(table: &str, parent: &str) -> String {
    format!(
        "WITH RECURSIVE runspan_up (id, name, above, depth) AS (
            SELECT p.id, p.workflow_name, p.parent_run_id, 1 FROM {table} p WHERE p.id = {parent}
            UNION ALL
            SELECT p.id, p.workflow_name, p.parent_run_id, up.depth + 1
            FROM runspan_up up JOIN {table} p ON p.id = up.above WHERE up.depth < 32
        ) SELECT id, name FROM runspan_up ORDER BY depth DESC LIMIT 1"
    )
}

/// A reason in a state that may be anything: as text, whatever it is (as PostgreSQL's `->>` gives it).
fn reason(state: &str, key: &str) -> String {
    format!(
        "CASE WHEN typeof({state}) = 'text' THEN CASE WHEN json_valid({state}) THEN \
         substr(CASE json_type({state}, '$.{key}') WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' \
         ELSE json_extract({state}, '$.{key}') END, 1, 8192) END END"
    )
}

/// The traceparent in a state that may be anything.
fn traceparent(state: &str) -> String {
    format!(
        "CASE WHEN typeof({state}) = 'text' THEN CASE WHEN json_valid({state}) THEN \
         CASE json_type({state}, '$.traceparent') WHEN 'text' THEN \
         substr(json_extract({state}, '$.traceparent'), 1, 128) END END END"
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
