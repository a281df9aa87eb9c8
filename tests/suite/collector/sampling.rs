//! sampling.yaml: every failed run, and a share of the other traces, each whole.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::trace::v1::{Span, Status, span::SpanKind, status::StatusCode};
use runspan::otlp::Signal;
use runspan::run::RunId;
use runspan::trace_context::SpanContext;
use uuid::{Builder, Uuid};

use super::{Backends, Gateway, text, traces};
use crate::end_to_end::wait_for;

const TRACES: usize = 2_000;
const PERCENT: usize = 25;
/// One in so many traces has a run that failed: its root, or a child.
const ONE_IN: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn failed_runs_are_kept_and_the_rest_is_sampled_by_whole_traces() {
    // The low bits are random in version 4, begin with a counter in a burst of 7, and are the machine's in 1.
    type Id = fn(usize) -> Uuid;
    let versions: [(&str, Id); 3] = [
        ("4", |_| Uuid::new_v4()),
        ("7", |_| Uuid::now_v7()),
        ("1", |n| Builder::from_u128((n as u128) << 96 | 0x11ee_a951_0242_ac12_0002).into_uuid()),
    ];
    let backends = Backends::start().await;
    let percent = PERCENT.to_string();
    let gateway = Gateway::start(&backends, &["sampling.yaml"], &[("SAMPLING_PERCENTAGE", &percent)]);
    for (version, id) in versions {
        let traces_sent: Vec<Vec<Span>> = (0..TRACES).map(|n| composite(n, id)).collect();
        // The children end before their root, which is hours later: in requests of their own.
        for run in 0..4 {
            let request = traces(traces_sent.iter().map(|spans| spans[run].clone()).collect());
            gateway.take(Signal::Traces, &request).await;
        }
        wait_for("an empty queue", || {
            let size = "otelcol_exporter_queue_size{";
            let telemetry = gateway.telemetry();
            let mut sizes = telemetry.lines().filter(|line| line.starts_with(size) && line.contains("tempo"));
            sizes.next().filter(|line| line.ends_with(" 0")).map(drop)
        });
        check(version, &traces_sent, &backends.spans());
    }
}

fn check(version: &str, sent: &[Vec<Span>], kept: &[Span]) {
    let keys: BTreeSet<_> = kept.iter().map(key).collect();
    assert!(kept.iter().all(|span| span.attributes.iter().all(|it| it.key != "sampling.priority")));
    let mut sampled = 0;
    for spans in sent {
        let (failures, others): (Vec<_>, Vec<_>) = spans.iter().partition(|span| is_failed(span));
        for span in failures {
            assert!(keys.contains(&key(span)), "version {version}: a failed run is gone");
        }
        let count = others.iter().filter(|span| keys.contains(&key(span))).count();
        assert!(count == 0 || count == others.len(), "version {version}: {count} of {}", others.len());
        sampled += usize::from(count > 0);
    }
    let (least, most) = (TRACES * (PERCENT - 5) / 100, TRACES * (PERCENT + 5) / 100);
    assert!((least..=most).contains(&sampled), "version {version}: {sampled} of {TRACES} traces");
}

/// A root run, its wait, and two children. In one trace of ten the root has failed, or a child.
fn composite(n: usize, id: impl Fn(usize) -> Uuid) -> Vec<Span> {
    let root = RunId::from(id(n));
    let context = SpanContext::of_run(root, root);
    let child = || SpanContext::of_run(RunId::from(Uuid::new_v4()), root);
    let mut spans = vec![
        run("ship", context, SpanKind::Server),
        run("ship queued", context.queue_span(), SpanKind::Internal),
        run("review", child(), SpanKind::Server),
        run("resolve", child(), SpanKind::Server),
    ];
    match n % (2 * ONE_IN) {
        0 => spans[0] = failed(spans[0].clone()),
        ONE_IN => spans[2] = failed(spans[2].clone()),
        _ => {}
    }
    spans
}

fn run(name: &str, context: SpanContext, kind: SpanKind) -> Span {
    Span {
        trace_id: context.trace_id.bytes().to_vec(),
        span_id: context.span_id.bytes().to_vec(),
        flags: u32::from(context.flags),
        name: name.to_owned(),
        kind: kind.into(),
        attributes: vec![text("workflowName", name)],
        ..Span::default()
    }
}

fn failed(span: Span) -> Span {
    Span { status: Some(Status { code: StatusCode::Error.into(), message: "no".to_owned() }), ..span }
}

fn is_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn key(span: &Span) -> (Vec<u8>, Vec<u8>) {
    (span.trace_id.clone(), span.span_id.clone())
}
