//! What the writers say they did (tests/sql/ledger.sql), and whether spans and records say the same.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::database::Database;
use super::output::{Attributes, Record, Span, Status};

const EVENT: &str = "workflow.run.";

/// The span that `state.traceparent` in tests/sql/load/succeeded.sql names.
const CAUSE: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");

/// A line of the ledger. Times in microseconds since the epoch.
#[derive(Deserialize)]
pub struct Line {
    run_id: Uuid,
    event: String,
    reason: Option<String>,
    error_type: Option<String>,
    child_run_id: Option<Uuid>,
    delivery_id: Option<String>,
    run: Option<Row>,
    began: i64,
    ended: i64,
}

/// A row of `workflow_runs`, as it was inserted.
#[derive(Clone, Deserialize)]
struct Row {
    workflow_name: String,
    target_type: String,
    target_owner: String,
    target_repo: String,
    target_number: i64,
    parent_run_id: Option<Uuid>,
    delivery_id: Option<String>,
    state: Value,
    /// Ahead of the database's clock: the run begins when it is journalled.
    #[serde(default)]
    is_ahead: bool,
}

pub struct Ledger {
    runs: HashMap<Uuid, Run>,
    refusals: Vec<Line>,
}

struct Run {
    id: Uuid,
    row: Row,
    lines: Vec<Line>,
}

impl Ledger {
    pub fn read(database: &Database) -> Self {
        let micros = |column| format!("(extract(epoch FROM {column}) * 1000000)::bigint AS {column}");
        Self::of(database.rows(&format!(
            "SELECT run_id, event, reason, error_type, child_run_id, delivery_id, run, {}, {} FROM ledger ORDER BY id",
            micros("began"),
            micros("ended"),
        )))
    }

    /// Lines in the order in which they were written.
    pub fn of(lines: Vec<Line>) -> Self {
        let mut ledger = Self { runs: HashMap::new(), refusals: Vec::new() };
        for mut line in lines {
            let id = line.run_id;
            if line.event == "dispatch_refused" {
                ledger.refusals.push(line);
            } else if let Some(row) = line.run.take() {
                ledger.runs.insert(id, Run { id, row, lines: vec![line] });
            } else {
                ledger.runs.get_mut(&id).expect("its first line is there").lines.push(line);
            }
        }
        ledger
    }

    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Runs that have ended.
    pub fn ended(&self) -> usize {
        self.runs.values().filter(|run| run.end().is_some()).count()
    }

    /// Everything that is wrong with these spans and records, one line each.
    pub fn compare(&self, spans: Vec<Span>, records: Vec<Record>) -> Vec<String> {
        let mut wrong = Vec::new();
        self.compare_spans(spans, &mut wrong);
        self.compare_records(records, &mut wrong);
        wrong
    }

    fn compare_spans(&self, spans: Vec<Span>, wrong: &mut Vec<String>) {
        let mut by_id = HashMap::new();
        for span in spans {
            if let Some(span) = by_id.insert((span.trace_id.clone(), span.id.clone()), span) {
                wrong.push(format!("span {} {} is there twice", span.name, span.id));
            }
        }
        for run in self.runs.values() {
            let trace = self.root(run).id.simple().to_string();
            let run_span = by_id.remove(&(trace.clone(), span_id(run.id)));
            let queue_span = by_id.remove(&(trace, queue_span_id(run.id)));
            let mut say =
                |what: String| wrong.push(format!("run {} ({}): {what}", run.id, run.row.workflow_name));
            match (run.end(), run_span) {
                (Some(end), Some(span)) => self.compare_run_span(run, end, &span, &mut say),
                (None, None) => {}
                (Some(_), None) => say("no span".to_owned()),
                (None, Some(_)) => say("a span, though it is in flight".to_owned()),
            }
            match (run.first_wait_end(), queue_span) {
                (Some(line), Some(span)) => self.compare_queue_span(run, line, &span, &mut say),
                (None, None) => {}
                (Some(_), None) => say("no queue span".to_owned()),
                (None, Some(_)) => say("a queue span, though it waits".to_owned()),
            }
        }
        wrong.extend(by_id.values().map(|span| format!("span {} {} is nobody's", span.name, span.id)));
    }

    fn compare_run_span(&self, run: &Run, end: usize, span: &Span, say: &mut impl FnMut(String)) {
        let row = &run.row;
        let last = &run.lines[end];
        let failed = last.event == "failed";
        let parent = row.parent_run_id.map(span_id).unwrap_or_default();
        expect("parent", &span.parent_span_id, &parent, say);
        expect("name", &span.name, &row.workflow_name, say);
        expect("kind", &span.kind, &2, say);
        run.expect_start("start", span, say);
        let status = match (failed, &last.reason) {
            (true, reason) => Status { code: 2, message: reason.clone().unwrap_or_default() },
            (false, _) => Status::default(),
        };
        expect("status", &span.status, &status, say);
        let linked: Vec<_> = span.links.iter().map(|link| (&*link.trace_id, &*link.span_id)).collect();
        let caused = row.state.get("traceparent").map(|_| CAUSE);
        expect("link", &linked, &caused.into_iter().collect(), say);

        let lines = &run.lines[..=end];
        let names: Vec<_> = span.events.iter().map(|event| event.name.clone()).collect();
        expect("events", &names, &lines.iter().map(|line| format!("{EVENT}{}", line.event)).collect(), say);
        let mut before = span.start;
        for (event, line) in span.events.iter().zip(lines) {
            within(&format!("time of {}", line.event), event.at, line, before, say);
            before = event.at;
            let expected = if line.child_run_id.is_some() { self.of_child(line) } else { why(line) };
            expect(&line.event, &event.attributes, &expected, say);
        }
        expect("end", &Some(span.end), &span.events.last().map(|event| event.at), say);

        let mut attributes = self.of_run(run);
        attributes.extend(why(last));
        attributes.insert("outcome".into(), json!(last.event));
        attributes.extend(durations(span));
        expect("attributes", &span.attributes, &attributes, say);
    }

    fn compare_queue_span(&self, run: &Run, line: &Line, span: &Span, say: &mut impl FnMut(String)) {
        expect("queue span's parent", &span.parent_span_id, &span_id(run.id), say);
        expect("queue span's name", &span.name, &format!("{} queued", run.row.workflow_name), say);
        expect("queue span's kind", &span.kind, &1, say);
        run.expect_start("queue span's start", span, say);
        within("end of the queue span", span.end, line, span.start, say);
        let mut attributes = self.of_run(run);
        attributes.insert("queueWaitMs".into(), json!((span.end - span.start) / 1_000));
        expect("queue span's attributes", &span.attributes, &attributes, say);
    }

    fn compare_records(&self, records: Vec<Record>, wrong: &mut Vec<String>) {
        let mut refusals: HashMap<String, Record> = HashMap::new();
        let mut by_run: HashMap<Uuid, Vec<Record>> = HashMap::new();
        for record in records {
            let text = |key: &str| record.attributes.get(key).and_then(Value::as_str).unwrap_or_default();
            if record.event_name == format!("{EVENT}dispatch_refused") {
                let delivery = text("deliveryId").to_owned();
                if refusals.insert(delivery, record).is_some() {
                    wrong.push("a refusal is there twice".to_owned());
                }
            } else {
                by_run.entry(text("runId").parse().unwrap_or_default()).or_default().push(record);
            }
        }
        for line in &self.refusals {
            let delivery = line.delivery_id.clone().unwrap_or_default();
            let mut say = |what: String| wrong.push(format!("refusal {delivery}: {what}"));
            match refusals.remove(&delivery) {
                Some(record) => self.compare_refusal(line, &record, &mut say),
                None => say("no record".to_owned()),
            }
        }
        for run in self.runs.values() {
            let mut say = |what: String| wrong.push(format!("run {}: {what}", run.id));
            self.compare_records_of(run, &by_run.remove(&run.id).unwrap_or_default(), &mut say);
        }
        wrong.extend(refusals.keys().map(|delivery| format!("refusal {delivery} is nobody's")));
        wrong.extend(by_run.keys().map(|run| format!("records of {run} are nobody's")));
    }

    fn compare_records_of(&self, run: &Run, records: &[Record], say: &mut impl FnMut(String)) {
        let mut expected = Vec::new();
        for (place, line) in run.lines.iter().enumerate() {
            expected.push((line.event.as_str(), line));
            if run.end() == Some(place) {
                expected.push(("completed", line));
            }
        }
        let names: Vec<_> = records.iter().map(|record| record.event_name.clone()).collect();
        expect(
            "records",
            &names,
            &expected.iter().map(|(event, _)| format!("{EVENT}{event}")).collect(),
            say,
        );
        let (trace, span) = (self.root(run).id.simple().to_string(), span_id(run.id));
        let mut before = run.lines[0].began;
        for (record, (event, line)) in records.iter().zip(expected) {
            expect("trace of a record", &record.trace_id, &trace, say);
            expect("span of a record", &record.span_id, &span, say);
            within(&format!("time of the record {event}"), record.at, line, before, say);
            before = record.at;
            expect(&format!("severity of {event}"), &record.severity_number, &severity(event, line), say);
            let mut attributes = if run.is_after_end(line) && line.child_run_id.is_some() {
                self.of_ended_parent(run)
            } else {
                self.of_run(run)
            };
            attributes.insert("event".into(), json!(record.event_name));
            attributes.extend(match event {
                _ if line.child_run_id.is_some() => self.of_child(line),
                "completed" => Attributes::new(),
                _ => why(line),
            });
            // Times and states of these are compared on the span.
            let own = ["durationMs", "queueWaitMs", "executionMs", "outcome", "fromStatus", "toStatus"];
            let mut found = record.attributes.clone();
            found.retain(|key, _| !own.contains(&key.as_str()));
            expect(&format!("attributes of the record {event}"), &found, &attributes, say);
        }
    }

    fn compare_refusal(&self, line: &Line, record: &Record, say: &mut impl FnMut(String)) {
        let run = &self.runs[&line.run_id];
        expect("trace", &record.trace_id, &self.root(run).id.simple().to_string(), say);
        expect("span", &record.span_id, &span_id(run.id), say);
        within("time", record.at, line, line.began, say);
        let reason = "workflow-dispatch-inflight";
        let mut attributes = of_row(&run.row);
        attributes.insert("event".into(), json!(record.event_name));
        attributes.insert("deliveryId".into(), json!(line.delivery_id));
        attributes.insert("inflightRunId".into(), json!(run.id));
        attributes.extend([("reason".into(), json!(reason)), ("error.type".into(), json!(reason))]);
        expect("attributes", &record.attributes, &attributes, say);
    }

    fn root<'a>(&'a self, run: &'a Run) -> &'a Run {
        run.row.parent_run_id.map_or(run, |parent| self.root(&self.runs[&parent]))
    }

    /// What every span and record of a run carries.
    fn of_run(&self, run: &Run) -> Attributes {
        let root = self.root(run);
        let mut attributes = of_row(&run.row);
        attributes.insert("runId".into(), json!(run.id));
        attributes.insert("rootRunId".into(), json!(root.id));
        attributes.insert("rootWorkflowName".into(), json!(root.row.workflow_name));
        if let Some(parent) = run.row.parent_run_id {
            attributes.insert("parentRunId".into(), json!(parent));
            attributes.extend(root.row.delivery_id.iter().map(|id| ("rootDeliveryId".into(), json!(id))));
        }
        attributes
    }

    /// The little that a late child's entry says of its parent, which here is a root.
    fn of_ended_parent(&self, run: &Run) -> Attributes {
        let mut attributes = self.of_run(run);
        attributes.retain(|key, _| {
            ["runId", "workflowName", "rootRunId", "rootWorkflowName"].contains(&key.as_str())
        });
        attributes
    }

    fn of_child(&self, line: &Line) -> Attributes {
        let child = line.child_run_id.expect("a line of handed_off");
        let name = &self.runs[&child].row.workflow_name;
        [("childRunId".into(), json!(child)), ("childWorkflowName".into(), json!(name))].into()
    }
}

impl Run {
    fn expect_start(&self, what: &str, span: &Span, say: &mut impl FnMut(String)) {
        let first = &self.lines[0];
        if self.row.is_ahead {
            within(what, span.start, first, first.began, say);
        } else {
            expect(what, &span.start, &first.began, say);
        }
    }

    /// The line of its end: the last one before any conflict.
    fn end(&self) -> Option<usize> {
        let ends = ["succeeded", "failed", "incomplete", "deleted"];
        self.lines.iter().position(|line| ends.contains(&line.event.as_str()))
    }

    fn is_after_end(&self, line: &Line) -> bool {
        self.end().is_some_and(|end| self.lines[end].ended < line.began)
    }

    fn first_wait_end(&self) -> Option<&Line> {
        self.lines
            .iter()
            .find(|line| line.event == "running")
            .or_else(|| self.end().map(|end| &self.lines[end]))
    }
}

fn of_row(row: &Row) -> Attributes {
    let Row { target_owner, target_repo, target_number, .. } = row;
    let mut attributes: Attributes = [
        ("workflowName".into(), json!(row.workflow_name)),
        ("target".into(), json!(format!("{target_owner}/{target_repo}#{target_number}"))),
        ("targetType".into(), json!(row.target_type)),
        ("targetOwner".into(), json!(target_owner)),
        ("targetRepo".into(), json!(target_repo)),
        ("targetNumber".into(), json!(target_number)),
    ]
    .into();
    attributes.extend(row.delivery_id.as_ref().map(|delivery| ("deliveryId".into(), json!(delivery))));
    attributes
}

/// Reason and class of a line, where it has them.
fn why(line: &Line) -> Attributes {
    let pairs = [("reason", &line.reason), ("error.type", &line.error_type)];
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))).collect()
}

/// The durations that a span's own times give.
fn durations(span: &Span) -> Attributes {
    let millis = |from: i64, to: i64| json!((to - from) / 1_000);
    let began = span.events.iter().find(|event| event.name == "workflow.run.running").map(|event| event.at);
    let mut durations: Attributes = [
        ("durationMs".into(), millis(span.start, span.end)),
        ("queueWaitMs".into(), millis(span.start, began.unwrap_or(span.end))),
    ]
    .into();
    durations.extend(began.map(|began| ("executionMs".into(), millis(began, span.end))));
    durations
}

/// OTLP's severity numbers of info, warn and error, as the contract has them.
fn severity(event: &str, line: &Line) -> u8 {
    let outcome = if event == "completed" { line.event.as_str() } else { event };
    match outcome {
        "failed" if line.error_type.as_deref() == Some("uncaught") => 17,
        "enqueue_failed" => 17,
        "failed" | "incomplete" | "deleted" | "conflict" => 13,
        _ => 9,
    }
}

fn span_id(run: Uuid) -> String {
    run.simple().to_string()[16..].to_owned()
}

fn queue_span_id(run: Uuid) -> String {
    let mut bytes = *run.as_bytes();
    bytes[8] ^= 0xc0;
    span_id(Uuid::from_bytes(bytes))
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T, say: &mut impl FnMut(String)) {
    if found != expected {
        say(format!("{what}: {found:?}, and should be {expected:?}"));
    }
}

/// A time lies within its transaction, or is the one before it.
fn within(what: &str, at: i64, line: &Line, before: i64, say: &mut impl FnMut(String)) {
    if at < before || at > line.ended.max(before) || at < line.began {
        say(format!("{what}: {at} is not between {} and {}, or below {before}", line.began, line.ended));
    }
}
