//! span-metrics.yaml: counts runs, and not their waits, nor what else an application serves.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric, metric::Data, number_data_point};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span::SpanKind, status::StatusCode};
use runspan::otlp::Signal;

use super::delivery::metrics;
use super::{Backends, Gateway, text, traces};
use crate::end_to_end::wait_for;

/// In seconds: those of `workflow.run.duration`.
const BUCKETS: [f64; 20] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0,
    14_400.0, 28_800.0, 86_400.0, 172_800.0, 604_800.0,
];
const SECOND: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_counted_and_not_their_waits() {
    counts_runs(&["span-metrics.yaml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_is_counted_all_the_same() {
    counts_runs(&["span-metrics.yaml", "sampling.yaml"]).await;
}

async fn counts_runs(overlays: &'static [&'static str]) {
    let backends = Backends::start().await;
    let gateway = Gateway::start(&backends, overlays, &[("SPAN_METRICS_INTERVAL", "200ms")]);
    let mut spans = Vec::new();
    for n in 1..=50_u8 {
        let outcome = if n <= 40 { "succeeded" } else { "failed" };
        spans.push(span(n, 0, "ship", SpanKind::Server, &[("outcome", outcome)]));
        spans.push(span(n, 1, "ship queued", SpanKind::Internal, &[]));
        spans.push(span(n, 2, "POST /hooks", SpanKind::Server, &[]));
    }
    gateway.take(Signal::Traces, &traces(spans)).await;

    let counted = wait_for("all runs in the metrics", || {
        let newest = newest(&backends);
        let counted = newest.get("traces.span.metrics.calls").map(calls)?;
        (counted.values().sum::<i64>() >= 50).then_some(counted)
    });
    let expected = [("ship failed STATUS_CODE_ERROR", 10), ("ship succeeded STATUS_CODE_UNSET", 40)];
    assert_eq!(counted, expected.map(|(of, count)| (of.to_owned(), count)).into());

    let durations = newest(&backends).remove("traces.span.metrics.duration").unwrap();
    assert_eq!(durations.unit, "s");
    let Some(Data::Histogram(histogram)) = durations.data else { panic!("{durations:?}") };
    // 2 is cumulative.
    assert_eq!(histogram.aggregation_temporality, 2);
    let points = histogram.data_points;
    assert_eq!(points.len(), 2);
    for HistogramDataPoint { explicit_bounds, count, sum, .. } in points {
        assert_eq!(explicit_bounds, BUCKETS);
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let expected = 3_600.0 * count as f64;
        assert!((sum.unwrap() - expected).abs() < 1e-3, "{sum:?}");
    }
    // Each is sent once, with the first export after it.
    let exemplars = all(&backends).filter_map(|metric| match metric.data {
        Some(Data::Histogram(histogram)) => Some(histogram.data_points),
        _ => None,
    });
    let exemplars: Vec<_> = exemplars.flatten().flat_map(|point| point.exemplars).collect();
    assert!(exemplars.iter().any(|exemplar| exemplar.trace_id == [exemplar.span_id[0]; 16]), "{exemplars:?}");
}

/// Of an hour.
fn span(run: u8, part: u8, name: &str, kind: SpanKind, attributes: &[(&str, &str)]) -> Span {
    let mut attributes: Vec<_> = attributes.iter().map(|(key, value)| text(key, value)).collect();
    attributes.push(text("runId", &format!("run {run}")));
    let failed = attributes.contains(&text("outcome", "failed"));
    let status = failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() });
    Span {
        trace_id: vec![run; 16],
        span_id: vec![run, part, 1, 1, 1, 1, 1, 1],
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: SECOND,
        end_time_unix_nano: 3_601 * SECOND,
        attributes,
        status,
        ..Span::default()
    }
}

/// The newest of each metric.
fn newest(backends: &Backends) -> BTreeMap<String, Metric> {
    all(backends).map(|metric| (metric.name.clone(), metric)).collect()
}

/// All metrics that have arrived, in their order.
fn all(backends: &Backends) -> impl Iterator<Item = Metric> {
    let requests = backends.prometheus.requests().into_iter();
    let resources = requests.flat_map(|request| metrics(&request).resource_metrics);
    resources.flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics)
}

/// Name, outcome and status → how many.
fn calls(metric: &Metric) -> BTreeMap<String, i64> {
    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    let point = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
        let words = ["span.name", "outcome", "status.code"].map(|key| said(&point.attributes, key));
        let Some(number_data_point::Value::AsInt(count)) = point.value else { panic!("{point:?}") };
        (words.join(" "), count)
    };
    sum.data_points.iter().map(point).collect()
}

fn said(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(value)) => value.clone(),
        other => panic!("{key}: {other:?} in {attributes:?}"),
    }
}
