//! runspan's functions for one table, made from their templates and the declaration of the journal's columns.

use super::super::columns::{
    self, Column, Insert, Kind, REASON_LIMIT, TEXT_LIMIT, TRACEPARENT_LIMIT, Values,
};
use super::super::stuck::STUCK_THRESHOLD;
use super::super::template::render;
use crate::run::MAX_ANCESTORS;

const TEMPLATES: &str = concat!(include_str!("functions.sql"), include_str!("relay_functions.sql"));

/// What creates or replaces the functions. `table` is quoted.
pub(super) fn functions(table: &str) -> String {
    let inserts = [
        ("new", of_row("NEW", "NEW.status::text", "reason", "link")),
        ("deleted", of_row("OLD", "NULL", "NULL", "NULL")),
        ("altered", altered()),
        ("adopted", adopted()),
        ("caught_up", caught_up()),
        ("refused", refused()),
    ];
    let lists: Vec<(String, &str)> = inserts
        .iter()
        .flat_map(|(name, Insert { columns, values })| {
            [(format!("{name}.columns"), columns.as_str()), (format!("{name}.values"), values.as_str())]
        })
        .collect();
    let (in_flight, statuses) = (columns::in_flight(), columns::statuses());
    let [text_limit, reason_limit, traceparent_limit] =
        [TEXT_LIMIT, REASON_LIMIT, TRACEPARENT_LIMIT].map(|limit| limit.to_string());
    let (max_ancestors, literal) = (MAX_ANCESTORS.to_string(), literal(table));
    let mut values = vec![
        ("table", table),
        ("literal", &literal),
        ("in_flight", &in_flight),
        ("statuses", &statuses),
        ("text_limit", &text_limit),
        ("reason_limit", &reason_limit),
        ("traceparent_limit", &traceparent_limit),
        ("max_ancestors", &max_ancestors),
        ("stuck_threshold", STUCK_THRESHOLD),
    ];
    values.extend(lists.iter().map(|(name, value)| (name.as_str(), *value)));
    render(TEMPLATES, &values)
}

fn text(value: &str) -> String {
    format!("left({value}, {TEXT_LIMIT})")
}

/// The entry of a transition, from the trigger's own row. Its columns have the types that they had when the session
/// planned the function; where they have not, [`altered`] takes over.
fn of_row(row: &str, after: &str, reason: &str, traceparent: &str) -> Insert {
    Values {
        now: "clock_timestamp()",
        row: &|column, origin| {
            Some(match column.kind {
                Kind::Text => text(&format!("{row}.{origin}::text")),
                _ => format!("{row}.{origin}"),
            })
        },
        before: Some("OLD.status::text"),
        after: Some(after),
        root_id: Some("root_id"),
        root_name: Some("root_name"),
        root_delivery: Some("root_delivery"),
        reason: Some(reason),
        traceparent: Some(traceparent),
        inflight: None,
        reconciled: "false",
    }
    .insert()
}

/// The entry of a transition, from the row as JSON: whatever its types are now.
fn altered() -> Insert {
    Values {
        row: &|column, origin| {
            let value = format!("this ->> '{origin}'");
            Some(match column.kind {
                Kind::Text => text(&format!("rtrim({value})")),
                Kind::Time => format!("runspan.as_time({value})"),
                Kind::Id => format!("runspan.as_uuid({value})"),
                Kind::Number => format!("runspan.as_number({value})"),
                Kind::Flag => value,
            })
        },
        now: "clock_timestamp()",
        before: Some("old_status"),
        after: Some("new_status"),
        root_id: Some("root_id"),
        root_name: Some("root_name"),
        root_delivery: Some("root_delivery"),
        reason: Some("reason"),
        traceparent: Some("link"),
        inflight: None,
        reconciled: "false",
    }
    .insert()
}

/// The beginning of a run that the journal missed.
fn adopted() -> Insert {
    let traceparent = format!("runspan.in_state(m.state, 'traceparent', {TRACEPARENT_LIMIT})");
    Values {
        now: "coalesce(runspan.as_past(CASE m.status::text WHEN 'queued' THEN m.created_at::text
            ELSE m.updated_at::text END), clock_timestamp())",
        row: &|column, origin| {
            Some(match column.kind {
                Kind::Text => text(&format!("m.{origin}::text")),
                Kind::Time => format!("runspan.as_time(m.{origin}::text)"),
                Kind::Number => format!("runspan.as_number(m.{origin}::text)"),
                Kind::Id | Kind::Flag => format!("m.{origin}"),
            })
        },
        before: None,
        after: Some("m.status::text"),
        root_id: Some("r.root_id"),
        root_name: Some("r.root_name"),
        root_delivery: Some("r.root_delivery"),
        reason: None,
        traceparent: Some(&traceparent),
        inflight: None,
        reconciled: "true",
    }
    .insert()
}

/// What an open run has become. The projection knows the rest of it.
fn caught_up() -> Insert {
    Values {
        now: "coalesce(min(updated_at), clock_timestamp())",
        row: &|_, origin| match origin {
            "created_at" => Some("min(created_at)".to_owned()),
            "id" => Some("run_id".to_owned()),
            "workflow_name" => Some("min(state)::jsonb -> 'context' ->> 'workflow_name'".to_owned()),
            _ => None,
        },
        before: Some("min(from_status)"),
        after: Some("min(to_status)"),
        root_id: None,
        root_name: None,
        root_delivery: None,
        reason: Some("min(reason)"),
        traceparent: None,
        inflight: None,
        reconciled: "true",
    }
    .insert()
}

/// A refusal, from the parameters of `dispatch_refused`.
fn refused() -> Insert {
    let reason = format!("left(reason, {REASON_LIMIT})");
    Values {
        now: "clock_timestamp()",
        row: &|column: &Column, origin| {
            column.is_context().then(|| match column.kind {
                Kind::Text => text(origin),
                _ => origin.to_owned(),
            })
        },
        before: None,
        after: None,
        root_id: Some("root_id"),
        root_name: None,
        root_delivery: None,
        reason: Some(&reason),
        traceparent: None,
        inflight: Some("inflight_run_id"),
        reconciled: "false",
    }
    .insert()
}

/// A text as SQL can hold it, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
