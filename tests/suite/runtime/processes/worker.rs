//! One process of the example, from its beginning to its end.

use opentelemetry_proto::tonic::trace::v1::Span;
use runspan::trace_context::SpanContext;
use runspan_test_support::otlp::hex;

use super::bot::{Worker, dispatch, payload};
use crate::database::Database;
use crate::receiver::Receiver;
use crate::runtime::queue::server::Server;

#[tokio::test]
async fn a_worker_that_is_told_to_stop_lets_its_handlers_end() {
    let (database, server) = (Database::sqlite().await, Server::start(&["--appendonly", "no"]).await);
    let receiver = Receiver::http().await;
    let mut worker = Worker::start(&database, &server.url(), &["--pace", "500ms"], &receiver.endpoint());
    let dispatched = dispatch(&database, &server.url(), "bot:triage", &payload(42, "fix it", ""));
    assert!(dispatched.status.success(), "{dispatched:?}");
    let run = String::from_utf8(dispatched.stdout).unwrap().trim_end().parse().unwrap();
    let call = worker.says("asking a model").await;
    worker.signal("TERM");
    let status = worker.ended().await;
    assert!(status.success(), "{status}: {}", worker.stderr());
    let mut session = database.connect().await;
    assert_eq!(session.count("workflow_runs WHERE status = 'succeeded'").await, 1);
    assert_eq!(session.count("workflow_leases").await, 0);

    // Its last spans are sent too: the handler's under the run, and the call under the handler.
    let spans: Vec<Span> = receiver
        .requests()
        .iter()
        .flat_map(|request| request.traces().resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    let named = |name| spans.iter().find(|span| span.name == name).expect("it is sent");
    let (handler, called) = (named("triage handler"), named("call"));
    let of_run = SpanContext::of_run(run, run);
    assert_eq!(hex(&handler.trace_id), of_run.trace_id.to_string());
    assert_eq!(hex(&handler.parent_span_id), of_run.span_id.to_string());
    assert_eq!(called.parent_span_id, handler.span_id);
    let header = format!("00-{}-{}-03", of_run.trace_id, hex(&called.span_id));
    assert_eq!(call["traceparent"], header);
    assert_eq!(call["runId"], run.to_string());
}
