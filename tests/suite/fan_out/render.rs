//! What a receiver got, as text: run by run, with names in the place of ids.

use runspan_test_support::otlp::{find, hex};
use std::collections::BTreeMap;
use std::fmt::Write as _;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use runspan::otlp::Signal;
use runspan::run::RunId;
use runspan::trace_context::SpanContext;

use crate::database::Database;
use crate::receiver::Receiver;

/// A run's name, by its ids as they appear: as a UUID, and as the ids of its span.
pub(super) struct Names {
    /// In the order of the runs' beginnings.
    names: Vec<String>,
    by_id: BTreeMap<String, String>,
}

/// `ship#9`, its children `ship#9/0 triage`, and a second run on the same target `triage#7 again`. One row is gone.
pub(super) async fn names(database: &Database, deleted: RunId) -> Names {
    let mut session = database.connect().await;
    let order = "string_agg(CAST(id AS text) || ' ' || coalesce(CAST(parent_run_id AS text), '-') || ' ' || \
                 coalesce(parent_step_index, 0) || ' ' || workflow_name || ' ' || target_number, ',' \
                 ORDER BY created_at, id)";
    let rows = session.text(&format!("SELECT {order} FROM workflow_runs")).await.unwrap();
    let mut names = Names { names: Vec::new(), by_id: BTreeMap::new() };
    names.add(&deleted.to_string(), "-", "the deleted triage#16");
    for row in rows.split(',') {
        let [id, parent, step, workflow, number] =
            <[&str; 5]>::try_from(row.split(' ').collect::<Vec<_>>()).unwrap();
        let mut name = match names.by_id.get(parent) {
            Some(parent) => format!("{parent}/{step} {workflow}"),
            None => format!("{workflow}#{number}"),
        };
        if names.names.contains(&name) {
            name += " again";
        }
        names.add(id, parent, &name);
    }
    names
}

impl Names {
    fn add(&mut self, id: &str, parent: &str, name: &str) {
        let run: RunId = id.parse().unwrap();
        // Chains are one deep here.
        let root = parent.parse().unwrap_or(run);
        let context = SpanContext::of_run(run, root);
        self.names.push(name.to_owned());
        self.by_id.insert(id.to_owned(), name.to_owned());
        self.by_id.insert(context.span_id.to_string(), name.to_owned());
        self.by_id.insert(context.queue_span().span_id.to_string(), format!("the wait of {name}"));
        if root == run {
            self.by_id.insert(context.trace_id.to_string(), name.to_owned());
        }
    }

    fn of(&self, id: &str) -> String {
        self.by_id
            .get(id)
            .cloned()
            .unwrap_or_else(|| if id.is_empty() { "-".to_owned() } else { id.to_owned() })
    }

    /// Without what differs from run to run and from queue to queue.
    fn plain(&self, text: &str) -> String {
        let replace = |text: &str, pattern: &str, by: &str| {
            regex::Regex::new(pattern).unwrap().replace_all(text, by).into_owned()
        };
        let text = self.by_id.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id, name));
        replace(&replace(&text, "enqueue failed: .*", "enqueue failed: …"), "app-[0-9a-f]{8}", "app-…")
    }
}

/// All records and spans, by run. What is the same for every record and span of a run is asserted, not shown.
pub(super) fn render(receiver: &Receiver, names: &Names) -> String {
    let (mut records, mut refusals, mut spans) = (BTreeMap::<_, Vec<_>>::new(), Vec::new(), Vec::new());
    for request in receiver.requests() {
        if request.signal == Signal::Logs {
            let logs = request.logs().resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
            for record in logs.flat_map(|scope| scope.log_records) {
                match value(&record.attributes, "runId") {
                    Some(run) => records.entry(names.of(&run)).or_default().push(record),
                    None => refusals.push(record),
                }
            }
        } else if request.signal == Signal::Traces {
            let traces = request.traces().resource_spans.into_iter();
            spans.extend(traces.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans));
        }
    }

    let mut text = String::new();
    for run in &names.names {
        let records = records.remove(run).unwrap_or_default();
        let context = context(&records[0].attributes, names);
        writeln!(text, "{run}  {}", origin(&context)).unwrap();
        for record in &records {
            assert_eq!(self::context(&record.attributes, names), context, "{record:?}");
            assert_eq!(names.of(&hex(&record.span_id)), *run);
            assert_eq!(names.of(&hex(&record.trace_id)), context["rootRunId"]);
            writeln!(text, "  {}", record_line(record, names)).unwrap();
        }
        for span in spans.iter().filter(|span| names.of(&hex(&span.span_id)) == *run) {
            assert_eq!(self::context(&span.attributes, names), context, "{span:?}");
            assert_eq!(span.kind(), SpanKind::Server);
            assert_eq!(names.of(&hex(&span.trace_id)), context["rootRunId"]);
            assert_eq!(
                names.of(&hex(&span.parent_span_id)),
                context.get("parentRunId").map_or("-", String::as_str)
            );
            writeln!(text, "  {}", span_line(span, &records, names)).unwrap();
            below(&mut text, &spans, span, &context, names);
        }
    }
    assert!(records.is_empty(), "of no run: {records:?}");
    writeln!(text, "refusals").unwrap();
    for record in &refusals {
        let inflight =
            value(&record.attributes, "inflightRunId").map_or("-".to_owned(), |run| names.of(&run));
        assert_eq!(
            [&record.span_id, &record.trace_id].map(|id| names.of(&hex(id))),
            [inflight.clone(), inflight]
        );
        let context = context(&record.attributes, names);
        let what = ["workflowName", "targetType", "target"].map(|key| context[key].as_str()).join(" ");
        writeln!(text, "  {what}  {}", origin(&context)).unwrap();
        writeln!(text, "    {}", record_line(record, names)).unwrap();
    }
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    assert_eq!(text.matches("span \"").count(), spans.len(), "spans of no run");
    text
}

/// What every record and span of a run says.
const CONTEXT: [&str; 11] = [
    "runId",
    "workflowName",
    "target",
    "targetType",
    "targetOwner",
    "targetRepo",
    "targetNumber",
    "deliveryId",
    "parentRunId",
    "rootRunId",
    "rootWorkflowName",
];

fn context(attributes: &[KeyValue], names: &Names) -> BTreeMap<&'static str, String> {
    let context: BTreeMap<_, _> = CONTEXT
        .into_iter()
        .filter_map(|key| Some((key, value(attributes, key)?)))
        .map(|(key, value)| (key, if key.ends_with("unId") { names.of(&value) } else { value }))
        .collect();
    let part = |key| context[key].as_str();
    let target = format!("{}/{}#{}", part("targetOwner"), part("targetRepo"), part("targetNumber"));
    assert_eq!(target, context["target"]);
    context
}

/// Where a run comes from.
fn origin(context: &BTreeMap<&str, String>) -> String {
    let of = |key| context.get(key).map(|value| format!("{key}={value}"));
    [of("deliveryId"), of("parentRunId"), of("rootRunId")].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The spans below a run's own that are no runs: its wait, its handler and what that opened.
fn below(text: &mut String, spans: &[Span], run: &Span, context: &BTreeMap<&str, String>, names: &Names) {
    let children = |parent: &Span| {
        let id = parent.span_id.clone();
        spans.iter().filter(move |span| span.parent_span_id == id && span.kind() != SpanKind::Server)
    };
    let waits = |span: &&Span| names.of(&hex(&span.span_id)).starts_with("the wait of");
    for wait in children(run).filter(waits) {
        assert_eq!(self::context(&wait.attributes, names), *context);
        writeln!(text, "  span {:?} {}", wait.name, own(&wait.attributes, names)).unwrap();
    }
    for handler in children(run).filter(|span| !waits(span)) {
        for (key, value) in context.iter().filter(|(key, _)| ["runId", "target", "deliveryId"].contains(key))
        {
            assert_eq!(
                self::value(&handler.attributes, key).map(|value| names.of(&value)).as_ref(),
                Some(value)
            );
        }
        write!(text, "  span {:?}", handler.name).unwrap();
        for span in children(handler) {
            write!(text, " > span {:?}", span.name).unwrap();
        }
        text.push('\n');
    }
}

fn record_line(record: &LogRecord, names: &Names) -> String {
    let event = value(&record.attributes, "event").unwrap();
    assert_eq!(record.event_name, event);
    assert_eq!(record.observed_time_unix_nano, record.time_unix_nano);
    let Some(any_value::Value::StringValue(body)) = record.body.clone().and_then(|body| body.value) else {
        panic!("no body: {record:?}");
    };
    let run = value(&record.attributes, "runId").unwrap_or_default();
    assert!(body.contains(&event) && body.contains(&run), "{body}");
    let level = match record.severity_number {
        9 => "info",
        13 => "warn",
        17 => "error",
        other => panic!("severity {other}"),
    };
    format!("{} {level} {}", short(&event), own(&record.attributes, names)).trim_end().to_owned()
}

fn short(event: &str) -> &str {
    event.strip_prefix("workflow.run.").expect("of the family")
}

fn span_line(span: &Span, records: &[LogRecord], names: &Names) -> String {
    // Each event is a record too, at the same time and with the same words.
    for event in &span.events {
        let is_event = |record: &&LogRecord| {
            record.event_name == event.name && record.time_unix_nano == event.time_unix_nano
        };
        let told = records
            .iter()
            .filter(is_event)
            .any(|record| event.attributes.iter().all(|attribute| record.attributes.contains(attribute)));
        assert!(told, "{event:?}");
    }
    let events: Vec<_> = span.events.iter().map(|event| short(&event.name)).collect();
    let mut line = format!("span {:?} [{}]", span.name, events.join(" "));
    for link in &span.links {
        write!(line, " links to {}-{}", hex(&link.trace_id), hex(&link.span_id)).unwrap();
    }
    if let Some(status) = span.status.as_ref().filter(|status| status.code != 0) {
        write!(line, " {:?}", status.code()).unwrap();
        assert_eq!(value(&span.attributes, "reason").as_deref(), Some(status.message.as_str()));
    }
    format!("{line} {}", own(&span.attributes, names))
}

/// What is not the context.
fn own(attributes: &[KeyValue], names: &Names) -> String {
    let own = attributes.iter().filter(|attribute| !CONTEXT.contains(&attribute.key.as_str()));
    let shown = own.filter(|attribute| attribute.key != "event").map(|attribute| {
        let value = value(attributes, &attribute.key).unwrap();
        match attribute.key.as_str() {
            key @ ("durationMs" | "queueWaitMs" | "executionMs") => key.to_owned(),
            key => format!("{key}={}", names.plain(&value)),
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = find(attributes, key)?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}
