//! What is acknowledged arrives, as it was sent; what does not fit is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Histogram, HistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics,
    exemplar, metric,
};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span};
use prost::Message;
use runspan::otlp::Signal;
use runspan::otlp::answer::{Answer, FailureKind};
use runspan::otlp::config::Protocol;

use super::{Backends, Gateway, resource, scope, text, traces};
use crate::receiver::{Authority, Received, Receiver, Reply};

/// As much as one batch must be able to hold, and a half: the least that gateway.yaml allows.
const SMALL: &str = "1500000";
const SMALL_QUEUES: [(&str, &str); 3] =
    [("TRACES_QUEUE_BYTES", SMALL), ("METRICS_QUEUE_BYTES", SMALL), ("LOGS_QUEUE_BYTES", SMALL)];
/// Some of these fill a small queue.
const PADDING: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn everything_passes_unchanged_and_with_credentials() {
    let backends = Backends::start().await;
    let headers = [
        ("TEMPO_HEADERS", r#"{authorization: "Bearer tempo's $$1 $${HOME}", x-scope-orgid: "42"}"#),
        ("PROMETHEUS_HEADERS", r#"{authorization: "Bearer prometheus's"}"#),
    ];
    let gateway = Gateway::start(&backends, &[], &headers);
    let (sent_traces, sent_metrics, sent_logs) = (one_run(0), one_metric(0), one_record(0));
    gateway.take(Signal::Traces, &sent_traces).await;
    gateway.take(Signal::Metrics, &sent_metrics).await;
    gateway.take(Signal::Logs, &sent_logs).await;
    for signal in Signal::ALL {
        backends.of(signal).wait_for(1).await;
    }
    let [tempo, prometheus, loki] =
        [&backends.tempo, &backends.prometheus, &backends.loki].map(|receiver| receiver.requests().remove(0));

    assert_eq!(tempo.traces(), sent_traces);
    assert_eq!(metrics(&prometheus), sent_metrics);
    assert_eq!(loki.logs(), sent_logs);
    assert_eq!(tempo.headers["authorization"], "Bearer tempo's $1 ${HOME}");
    assert_eq!(tempo.headers["x-scope-orgid"], "42");
    assert_eq!(prometheus.headers["authorization"], "Bearer prometheus's");
    assert!(!loki.headers.contains_key("authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_with_certificates_of_an_authority_of_ones_own_are_trusted() {
    let authority = Authority::new();
    let backends = Backends {
        tempo: Receiver::start(Protocol::HttpProtobuf, Some(authority.server())).await,
        prometheus: Receiver::start(Protocol::HttpProtobuf, Some(authority.server())).await,
        loki: Receiver::start(Protocol::HttpProtobuf, Some(authority.server())).await,
    };
    let ca = authority.ca_file().display().to_string();
    let trusted = ["TEMPO_CA_FILE", "PROMETHEUS_CA_FILE", "LOKI_CA_FILE"].map(|name| (name, ca.as_str()));
    let gateway = Gateway::start(&backends, &[], &trusted);
    for signal in Signal::ALL {
        send(&gateway, signal, 0).await;
        backends.of(signal).wait_for(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_all_that_it_took_arrives_once() {
    let mut backends = Backends::start().await;
    for receiver in backends.each() {
        receiver.rule(|_| Reply::http(503, &[], "not now"));
    }
    let gateway = Gateway::start(&backends, &[], &SMALL_QUEUES);
    for signal in Signal::ALL {
        let taken = fill(&gateway, signal).await;
        assert!(taken > 5, "{taken} {signal:?}");
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
            let answer = gateway.client(signal, protocol).send(padded(signal, taken)).await;
            let Answer::Retry { cause, .. } = answer else { panic!("{signal:?} {protocol}: {answer:?}") };
            assert_eq!(cause.kind(), FailureKind::Unavailable, "{signal:?} {protocol}: {cause}");
        }
        refusals_are_counted(&gateway, signal);
        backends.of(signal).rule(|_| Reply::Accept);
        arrived(&backends, signal, taken).await;
        let count: usize = backends.of(signal).requests().iter().map(|request| names(request).len()).sum();
        assert_eq!(count, taken, "{signal:?}: each once, and nothing that was refused");
        // There is room again.
        assert!(matches!(send(&gateway, signal, taken).await, Answer::Accepted { .. }));
        arrived(&backends, signal, taken + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_with_full_queues_loses_nothing_that_it_took() {
    loses_nothing(Gateway::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_stopped_with_full_queues_loses_nothing_that_it_took() {
    loses_nothing(Gateway::stop).await;
}

async fn loses_nothing(end: fn(&mut Gateway)) {
    let mut backends = Backends::start().await;
    for receiver in backends.each() {
        receiver.go_away().await;
    }
    let mut gateway = Gateway::start(&backends, &[], &SMALL_QUEUES);
    let mut taken = Vec::new();
    for signal in Signal::ALL {
        taken.push((signal, fill(&gateway, signal).await));
    }
    end(&mut gateway);
    // Once more, half-way: what is under way is not lost either.
    backends.tempo.rule(|_| Reply::Hang);
    backends.tempo.come_back().await;
    let attempts = backends.tempo.attempts();
    gateway.come_back();
    backends.tempo.wait_until("attempt", |tempo| tempo.attempts() > attempts).await;
    end(&mut gateway);
    backends.tempo.rule(|_| Reply::Accept);
    backends.prometheus.come_back().await;
    backends.loki.come_back().await;
    gateway.come_back();
    for (signal, taken) in taken {
        assert!(taken > 5, "{taken} {signal:?}");
        arrived(&backends, signal, taken).await;
    }
}

/// Without a hint when to try again: what Tempo, Mimir and Loki answer above their rate limits.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_busy_store_refuses_arrives_later() {
    let mut backends = Backends::start().await;
    for receiver in backends.each() {
        let mut refusals = 0;
        receiver.rule(move |_| {
            refusals += 1;
            if refusals < 3 { Reply::http(429, &[], "rate limit exceeded") } else { Reply::Accept }
        });
    }
    let gateway = Gateway::start(&backends, &[], &[]);
    for signal in Signal::ALL {
        send(&gateway, signal, 0).await;
        arrived(&backends, signal, 1).await;
        assert_eq!(backends.of(signal).attempts(), 3, "{signal:?}");
    }
}

/// As docs/operate/collector.md says: the file is moved away, and only what was in it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_a_damaged_queue_file_and_delivers_the_others() {
    let mut backends = Backends::start().await;
    for receiver in backends.each() {
        receiver.go_away().await;
    }
    let mut gateway = Gateway::start(&backends, &[], &[]);
    for signal in Signal::ALL {
        send(&gateway, signal, 0).await;
    }
    gateway.kill();
    let files = || fs::read_dir(gateway.queue.path()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let damaged = files().find(|path| name(path).contains("tempo")).unwrap();
    fs::write(&damaged, [0x5a; 16 * 1024]).unwrap();
    let ended = gateway.command().output().unwrap();
    assert!(!ended.status.success());
    assert!(
        String::from_utf8_lossy(&ended.stderr).contains("start \"otlp_http/tempo\" exporter"),
        "{ended:?}"
    );

    fs::rename(&damaged, gateway.queue.path().join(format!("{}.damaged", name(&damaged)))).unwrap();
    for receiver in backends.each() {
        receiver.come_back().await;
    }
    gateway.come_back();
    for signal in [Signal::Metrics, Signal::Logs] {
        arrived(&backends, signal, 1).await;
    }
    send(&gateway, Signal::Traces, 1).await;
    backends.tempo.wait_for(1).await;
    assert_eq!(names(&backends.tempo.requests()[0]), ["n1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_short_of_memory_refuses() {
    let backends = Backends::start().await;
    // It has more than this from its beginning, and sees that when it first looks.
    let gateway = Gateway::start(&backends, &["yaml:processors::memory_limiter::limit_mib: 5"], &[]);
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        for signal in Signal::ALL {
            let client = gateway.client(signal, protocol);
            let refused = async {
                loop {
                    match client.send(padded(signal, 0)).await {
                        Answer::Accepted { .. } => tokio::time::sleep(Duration::from_millis(25)).await,
                        refused => break refused,
                    }
                }
            };
            let answer = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
            let Answer::Retry { cause, .. } = answer else { panic!("{signal:?} {protocol}: {answer:?}") };
            assert_eq!(cause.kind(), FailureKind::Unavailable, "{signal:?} {protocol}: {cause}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_refuses_for_good_is_dropped_and_counted() {
    let backends = Backends::start().await;
    backends.loki.script([Reply::http(401, &[], "who?")]);
    let gateway = Gateway::start(&backends, &[], &[]);
    send(&gateway, Signal::Logs, 0).await;
    backends.loki.wait_until("refusal", |loki| loki.attempts() == 1).await;
    crate::end_to_end::wait_for("count of what is lost", || {
        let telemetry = gateway.telemetry();
        let failed = |line: &&str| line.starts_with("otelcol_exporter_send_failed_log_records");
        telemetry.lines().find(failed).filter(|line| line.ends_with(" 1")).map(drop)
    });
    assert_eq!(backends.loki.attempts(), 1);
}

/// That the Collector tells of them under the names that the alerts ask for.
fn refusals_are_counted(gateway: &Gateway, signal: Signal) {
    let items = match signal {
        Signal::Traces => "spans",
        Signal::Metrics => "metric_points",
        Signal::Logs => "log_records",
    };
    let telemetry = gateway.telemetry();
    for counter in ["receiver_refused", "exporter_enqueue_failed"] {
        let name = format!("otelcol_{counter}_{items}{{");
        let counted = |line: &str| line.starts_with(&name) && !line.ends_with(" 0");
        assert!(telemetry.lines().any(counted), "{name}\n{telemetry}");
    }
}

/// Sends until the queue is full; says how many were taken.
async fn fill(gateway: &Gateway, signal: Signal) -> usize {
    for n in 0..50 {
        if !matches!(send(gateway, signal, n).await, Answer::Accepted { rejected: 0, .. }) {
            return n;
        }
    }
    panic!("a queue of {SMALL} bytes takes 50 requests of {PADDING}");
}

async fn send(gateway: &Gateway, signal: Signal, n: usize) -> Answer {
    gateway.client(signal, Protocol::HttpProtobuf).send(padded(signal, n)).await
}

/// Waits until all that was taken has arrived, and nothing else.
async fn arrived(backends: &Backends, signal: Signal, taken: usize) {
    let expected: BTreeSet<String> = (0..taken).map(|n| format!("n{n}")).collect();
    let receiver = backends.of(signal);
    let is_there =
        |receiver: &Receiver| -> BTreeSet<String> { receiver.requests().iter().flat_map(names).collect() };
    // The gateway waits up to 30 s between two attempts.
    let waiting = async {
        while is_there(receiver) != expected {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_mins(1), waiting).await;
    assert!(in_time.is_ok(), "{signal:?}: {taken} were taken, {:?} arrived", is_there(receiver));
}

/// The names in a request.
fn names(request: &Received) -> Vec<String> {
    match request.signal {
        Signal::Traces => {
            let resources = request.traces().resource_spans.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_spans);
            scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
        }
        Signal::Metrics => {
            let resources = metrics(request).resource_metrics.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_metrics);
            scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name).collect()
        }
        Signal::Logs => {
            let resources = request.logs().resource_logs.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_logs);
            scopes.flat_map(|scope| scope.log_records).map(|record| record.event_name).collect()
        }
    }
}

pub(super) fn metrics(request: &Received) -> ExportMetricsServiceRequest {
    ExportMetricsServiceRequest::decode(request.body.clone()).unwrap()
}

/// A large request with the name of its number.
fn padded(signal: Signal, n: usize) -> Bytes {
    let padding = text("padding", &"x".repeat(PADDING));
    Bytes::from(match signal {
        Signal::Traces => {
            let mut request = one_run(n);
            request.resource_spans[0].scope_spans[0].spans[0].attributes.push(padding);
            request.encode_to_vec()
        }
        Signal::Metrics => {
            let mut request = one_metric(n);
            let metric = &mut request.resource_metrics[0].scope_metrics[0].metrics[0];
            let Some(metric::Data::Histogram(histogram)) = &mut metric.data else { unreachable!() };
            histogram.data_points[0].attributes.push(padding);
            request.encode_to_vec()
        }
        Signal::Logs => {
            let mut request = one_record(n);
            request.resource_logs[0].scope_logs[0].log_records[0].attributes.push(padding);
            request.encode_to_vec()
        }
    })
}

fn one_run(n: usize) -> ExportTraceServiceRequest {
    traces(vec![Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        flags: 0x103,
        name: format!("n{n}"),
        kind: span::SpanKind::Server.into(),
        start_time_unix_nano: 1_000,
        end_time_unix_nano: 2_000,
        attributes: vec![text("workflowName", "ship"), text("outcome", "failed")],
        events: vec![span::Event {
            time_unix_nano: 1_500,
            name: "workflow.run.failed".to_owned(),
            attributes: vec![text("reason", "no")],
            dropped_attributes_count: 0,
        }],
        dropped_events_count: 7,
        links: vec![span::Link { trace_id: vec![4; 16], span_id: vec![5; 8], ..span::Link::default() }],
        status: Some(Status { message: "no".to_owned(), code: 2 }),
        ..Span::default()
    }])
}

fn one_record(n: usize) -> ExportLogsServiceRequest {
    let record = LogRecord {
        time_unix_nano: 1_000,
        observed_time_unix_nano: 1_000,
        severity_number: 13,
        event_name: format!("n{n}"),
        body: Some(AnyValue { value: Some(Value::StringValue("workflow.run.failed ship".to_owned())) }),
        attributes: vec![text("runId", "0190a5d4")],
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        flags: 3,
        ..LogRecord::default()
    };
    let scope = ScopeLogs { log_records: vec![record], scope: Some(scope()), ..ScopeLogs::default() };
    let logs =
        ResourceLogs { resource: Some(resource()), scope_logs: vec![scope], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }
}

/// A cumulative histogram with the exemplar of a run.
fn one_metric(n: usize) -> ExportMetricsServiceRequest {
    let exemplar = Exemplar {
        time_unix_nano: 1_900,
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        value: Some(exemplar::Value::AsDouble(61.5)),
        ..Exemplar::default()
    };
    let point = HistogramDataPoint {
        attributes: vec![text("workflowName", "ship"), text("outcome", "failed")],
        start_time_unix_nano: 1_000,
        time_unix_nano: 2_000,
        count: 3,
        sum: Some(63.0),
        bucket_counts: vec![2, 0, 1],
        explicit_bounds: vec![1.0, 60.0],
        exemplars: vec![exemplar],
        ..HistogramDataPoint::default()
    };
    let histogram = Histogram {
        data_points: vec![point],
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
    };
    let metric = Metric {
        name: format!("n{n}"),
        unit: "s".to_owned(),
        data: Some(metric::Data::Histogram(histogram)),
        ..Metric::default()
    };
    let scope = ScopeMetrics { metrics: vec![metric], scope: Some(scope()), ..ScopeMetrics::default() };
    let metrics = ResourceMetrics {
        resource: Some(resource()),
        scope_metrics: vec![scope],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
}
