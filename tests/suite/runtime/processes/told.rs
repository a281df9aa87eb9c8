//! What the relay sends, beside what the rows say.

use runspan_test_support::otlp::{find, hex};
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use runspan::otlp::Signal;
use runspan::relay::{Ended, Logs, Relay};
use runspan::run::RunId;
use runspan::semconv::ErrorType;
use runspan::store::Store;
use runspan::trace_context::SpanContext;

use crate::database::Database;
use crate::points::Samples;
use crate::receiver::Receiver;

/// Everything that is wrong with it, one line each.
pub(super) async fn compare(database: &Database, rows: &[Row]) -> Vec<String> {
    let receiver = Receiver::http().await;
    relay(database.store(), &receiver.endpoint()).await;
    let (mut spans, mut completed, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for request in receiver.requests() {
        match request.signal {
            Signal::Traces => {
                let resources = request.traces().resource_spans.into_iter();
                let all = resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans);
                spans.extend(all.filter(|span| span.kind == SpanKind::Server as i32).map(|span| {
                    let told = |key| text(&span.attributes, key);
                    format!(
                        "{} {} under {}: {} {} {} {}",
                        hex(&span.trace_id),
                        hex(&span.span_id),
                        hex(&span.parent_span_id),
                        span.name,
                        told("runId"),
                        told("outcome"),
                        told("error.type"),
                    )
                }));
            }
            Signal::Metrics => {}
            Signal::Logs => {
                let resources = request.logs().resource_logs.into_iter();
                let all = resources.flat_map(|it| it.scope_logs).flat_map(|it| it.log_records);
                for record in all {
                    let run = text(&record.attributes, "runId");
                    match &*record.event_name {
                        "workflow.run.completed" => completed.push(run),
                        "workflow.run.conflict" => wrong.push(format!("a conflict: {run}")),
                        _ => {}
                    }
                }
            }
        }
    }
    let measured = Samples::of(&receiver).increase("workflow.run.duration");
    if measured != rows.len() as u64 {
        wrong.push(format!("{measured} runs were measured, and there are {}", rows.len()));
    }
    differ("span", spans, rows.iter().map(Row::span), &mut wrong);
    differ("completed", completed, rows.iter().map(|row| row.id.to_string()), &mut wrong);
    wrong
}

async fn relay(store: Arc<dyn Store>, endpoint: &str) {
    let relay = Relay::new(store, Logs::Otlp, &|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.to_owned()),
        "OTEL_SERVICE_NAME" => Some("bot".to_owned()),
        _ => None,
    });
    assert_eq!(relay.unwrap().spawn().drain().await.unwrap(), Ended::Idle);
}

/// A row of the table, as it ended.
pub(super) struct Row {
    pub(super) id: RunId,
    pub(super) parent: Option<RunId>,
    pub(super) workflow: String,
    pub(super) number: i64,
    pub(super) status: String,
    pub(super) reason: Option<String>,
}

impl Row {
    fn span(&self) -> String {
        // The bot's composite workflow has steps, and those have none.
        let root = self.parent.unwrap_or(self.id);
        let context = SpanContext::of_run(self.id, root);
        let parent = self.parent.map(|parent| SpanContext::of_run(parent, root).span_id.to_string());
        let error = (self.status == "failed").then(|| ErrorType::of_failure(self.reason.as_deref()).as_str());
        format!(
            "{} {} under {}: {} {} {} {}",
            context.trace_id,
            context.span_id,
            parent.unwrap_or_default(),
            self.workflow,
            self.id,
            self.status,
            error.unwrap_or_default(),
        )
    }
}

/// What is in one and not in the other, as often as it is there.
fn differ(what: &str, mut told: Vec<String>, rows: impl Iterator<Item = String>, wrong: &mut Vec<String>) {
    for row in rows {
        match told.iter().position(|line| *line == row) {
            Some(at) => drop(told.swap_remove(at)),
            None => wrong.push(format!("no {what}: {row}")),
        }
    }
    wrong.extend(told.iter().map(|line| format!("{what} too much: {line}")));
}

/// The text of an attribute; empty where there is none.
fn text(attributes: &[KeyValue], key: &str) -> String {
    find(attributes, key).and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}
