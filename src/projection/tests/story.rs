//! Stories: journals of a few rows, and the text of what they are projected to.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::super::*;
use crate::journal::{Row, Unreadable};
use crate::semconv::field;
use crate::trace_context::SpanId;

/// The moment that stories start.
pub(super) const START: i64 = 1_800_000_000_000_000;

/// A story: rows as the triggers write them. Times are milliseconds from its beginning.
#[derive(Default)]
pub(super) struct Story {
    pub(super) rows: Vec<Row>,
}

/// Runs are numbered. The ids look like `UUIDv7s`.
pub(super) fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

pub(super) fn at(millis: i64) -> i64 {
    START + millis * 1_000
}

impl Story {
    /// A transition; `-` stands for no row.
    pub(super) fn then(mut self, millis: i64, run: u128, workflow: &str, change: &str) -> Self {
        let (from, to) = change.split_once(" → ").unwrap();
        let status = |name: &str| (name != "-").then(|| name.to_owned());
        let created_at = self
            .rows
            .iter()
            .find(|row| row.run_id == Some(id(run)))
            .and_then(|first| first.created_at)
            .unwrap_or(at(millis));
        self.rows.push(Row {
            seq: i64::try_from(self.rows.len()).unwrap(),
            at: at(millis),
            created_at: Some(created_at),
            run_id: Some(id(run)),
            workflow_name: Some(workflow.to_owned()),
            from_status: status(from),
            to_status: status(to),
            target_type: Some("issue".to_owned()),
            target_owner: Some("acme".to_owned()),
            target_repo: Some("widgets".to_owned()),
            target_number: Some(42),
            ..Row::default()
        });
        self
    }

    /// The last row belongs to a child of `parent`, in the tree of `root`.
    pub(super) fn under(self, parent: u128, root: (u128, &str)) -> Self {
        self.with(|row| {
            row.parent_run_id = Some(id(parent));
            row.root_run_id = Some(id(root.0));
            row.root_workflow_name = Some(root.1.to_owned());
        })
    }

    /// The last row's reason.
    pub(super) fn because(self, reason: &str) -> Self {
        self.with(|row| row.reason = Some(reason.to_owned()))
    }

    pub(super) fn reconciled(self) -> Self {
        self.with(|row| row.reconciled = true)
    }

    /// When the last row's run was created.
    pub(super) fn created(self, millis: i64) -> Self {
        self.with(|row| row.created_at = Some(at(millis)))
    }

    pub(super) fn refused(
        mut self,
        millis: i64,
        workflow: &str,
        reason: &str,
        inflight: Option<u128>,
    ) -> Self {
        self.rows.push(Row {
            at: at(millis),
            workflow_name: Some(workflow.to_owned()),
            target_owner: Some("acme".to_owned()),
            target_repo: Some("widgets".to_owned()),
            target_number: Some(42),
            reason: Some(reason.to_owned()),
            delivery_id: Some("delivery-1".to_owned()),
            inflight_run_id: inflight.map(id),
            ..Row::default()
        });
        self
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Row)) -> Self {
        change(self.rows.last_mut().unwrap());
        self
    }

    /// Projects it, and renders the result.
    pub(super) fn render(self) -> String {
        let read: Vec<Result<Entry, Unreadable>> = self.rows.into_iter().map(Entry::try_from).collect();
        let mut unreadable = String::new();
        let mut entries = Vec::new();
        for entry in read {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => unreadable += &format!("set aside: {error}\n"),
            }
        }
        let mut stored = HashMap::new();
        let (mut spans, mut records, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        let mut totals = Totals::default();
        for entry in &entries {
            let projected = project(stored.clone(), [entry.clone()], &Settings::default());
            totals.add(projected.totals);
            for (run, open) in projected.opened {
                let text = serde_json::to_string(&open).unwrap();
                stored.insert(run, serde_json::from_str(&text).unwrap());
            }
            for run in projected.closed {
                stored.remove(&run).unwrap();
            }
            spans.extend(projected.spans);
            records.extend(projected.records);
            warnings.extend(projected.warnings);
        }
        let at_once = project(HashMap::new(), entries, &Settings::default());
        assert_eq!(at_once.totals, totals);
        let counted: u64 = totals.counters().map(|(_, count)| count).sum();
        assert_eq!(counted, records.len() as u64, "one count for each record");
        assert_eq!(
            render(&at_once.spans, &at_once.records),
            render(&spans, &records),
            "batches do not matter"
        );
        assert_eq!(at_once.opened.into_iter().collect::<HashMap<_, _>>(), stored);
        let left: BTreeMap<RunId, &Tracked> = stored.iter().map(|(run, open)| (*run, open)).collect();
        let open: String = left
            .into_iter()
            .map(|(run, open)| {
                let ended = if matches!(open, Tracked::Ended(_)) { ", after its end" } else { "" };
                format!("open: run {} is {}{ended}\n", number(run), open.status())
            })
            .collect();
        assert_eq!(at_once.warnings, warnings);
        let warned: String = warnings.iter().map(warning).collect();
        render(&spans, &records) + &open + &unreadable + &warned
    }
}

fn warning(warning: &Warning) -> String {
    match warning {
        Warning::UnknownStatus { status, run, .. } => format!("warning: run {} is {status}\n", number(*run)),
        Warning::CreatedAt { run, .. } => format!("warning: created_at of run {}\n", number(*run)),
    }
}

pub(super) fn number(run: RunId) -> u128 {
    run.uuid().as_u128() & 0xffff_ffff
}

pub(super) fn moment(time: Timestamp) -> String {
    ((time.micros() - START) / 1_000).to_string()
}

/// Attributes beside those that every span and record of the run carries.
pub(super) fn particular(attributes: Attributes<'_>) -> String {
    let common = [
        field::RUN_ID,
        field::WORKFLOW_NAME,
        field::TARGET,
        field::TARGET_TYPE,
        field::TARGET_OWNER,
        field::TARGET_REPO,
        field::TARGET_NUMBER,
        field::PARENT_RUN_ID,
        field::ROOT_RUN_ID,
        field::ROOT_WORKFLOW_NAME,
    ];
    attributes
        .into_iter()
        .filter(|(key, _)| !common.contains(key))
        .map(|(key, value)| match value {
            Value::Text(text) => match text.parse::<RunId>() {
                Ok(run) => format!(" {key}=run {}", number(run)),
                Err(_) => format!(" {key}={text:?}"),
            },
            Value::Int(number) => format!(" {key}={number}"),
            Value::Bool(yes) => format!(" {key}={yes}"),
        })
        .collect()
}

pub(super) fn render(spans: &[Span], records: &[Record]) -> String {
    let mut text = String::new();
    let known = |id: SpanId| spans.iter().any(|span| span.span_context().span_id == id);
    for root in spans.iter().filter(|span| span.parent().is_none_or(|parent| !known(parent))) {
        render_span(&mut text, spans, root, 0);
    }
    for record in records {
        let run = record.run().map_or("no run".to_owned(), |run| format!("run {}", number(run)));
        text += &format!(
            "{:>6} {:<5} {:<28} {run}{}\n",
            moment(record.at),
            record.level().as_str(),
            record.event,
            particular(record.attributes())
        );
    }
    text
}

pub(super) fn render_span(text: &mut String, spans: &[Span], span: &Span, depth: usize) {
    let indent = "  ".repeat(depth);
    let (start, end) = (moment(span.start), moment(span.end));
    *text += &format!("{indent}{} {start}..{end}{}", span.name(), particular(span.attributes()));
    if let Some(link) = span.link {
        *text += &format!(" ← {link}");
    }
    if let Some(error) = span.error() {
        *text += &format!(" ERROR {error:?}");
    }
    text.push('\n');
    for event in &span.events {
        *text += &format!(
            "{indent}  · {} {}{}\n",
            moment(event.at),
            event.event,
            particular(span.event_attributes(event))
        );
    }
    if span.dropped_events > 0 {
        *text += &format!("{indent}  · {} more\n", span.dropped_events);
    }
    let mut children: Vec<&Span> =
        spans.iter().filter(|child| child.parent() == Some(span.span_context().span_id)).collect();
    children.sort_by_key(|child| (child.start, child.kind != SpanKind::Queue));
    for child in children {
        render_span(text, spans, child, depth + 1);
    }
}

pub(super) fn story() -> Story {
    Story::default()
}
