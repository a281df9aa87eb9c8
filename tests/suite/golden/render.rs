//! Requests as text, with everything that is in them.

use runspan_test_support::otlp::hex;
use std::fmt::Write as _;

use bytes::Bytes;
use flate2::Crc;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Exemplar, NumberDataPoint, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;

pub(super) fn checksum(bytes: &[u8]) -> String {
    let mut crc = Crc::new();
    crc.update(bytes);
    format!("{} bytes, crc32 {:08x}", bytes.len(), crc.sum())
}

/// The text, or of a long one its beginning, its last `end` lines and the checksum of all of it.
pub(super) fn excerpt(text: &str, end: usize) -> String {
    const BEGINNING: usize = 10;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.len() <= 2 * (BEGINNING + end) {
        return text.to_owned();
    }
    let (beginning, rest) = lines.split_at(BEGINNING);
    let last = &rest[rest.len() - end..];
    format!("{}… ({})\n{}", beginning.concat(), checksum(text.as_bytes()), last.concat())
}

/// The counts up to the last that is not zero.
fn counts(buckets: &[u64]) -> String {
    let used = buckets.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    format!("{:?} of {}", &buckets[..used], buckets.len())
}

/// The checksum of what follows the scope, which holds the version of this program.
fn checksum_of_items(wire: &[u8], scope: &InstrumentationScope) -> String {
    let scope = scope.encode_to_vec();
    let scope_ends = wire.windows(scope.len()).position(|part| part == scope).unwrap() + scope.len();
    checksum(&wire[scope_ends..])
}

pub(super) fn spans(wire: &[u8]) -> String {
    let mut request = ExportTraceServiceRequest::decode(wire).unwrap();
    let mut text = String::new();
    for mut resource in std::mem::take(&mut request.resource_spans) {
        text += &origin(resource.resource.take());
        for mut scope in std::mem::take(&mut resource.scope_spans) {
            let scope_itself = scope.scope.take().unwrap();
            writeln!(text, "{}", checksum_of_items(wire, &scope_itself)).unwrap();
            text += &program(scope_itself);
            for mut span in std::mem::take(&mut scope.spans) {
                let attributes = std::mem::take(&mut span.attributes);
                let (events, links) = (std::mem::take(&mut span.events), std::mem::take(&mut span.links));
                let (trace_id, span_id) = (id(&span.trace_id), id(&span.span_id));
                writeln!(
                    text,
                    "span {:?} {:?} {trace_id} {span_id} parent={} flags={} state={:?} {} to {} dropped={},{},{} {:?}",
                    span.name,
                    span.kind(),
                    id(&span.parent_span_id),
                    span.flags,
                    span.trace_state,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.dropped_attributes_count,
                    span.dropped_events_count,
                    span.dropped_links_count,
                    span.status,
                )
                .unwrap();
                writeln!(text, "  {}", pairs(attributes)).unwrap();
                for event in events {
                    writeln!(
                        text,
                        "  event {} {} dropped={} {}",
                        event.name,
                        event.time_unix_nano,
                        event.dropped_attributes_count,
                        pairs(event.attributes)
                    )
                    .unwrap();
                }
                for link in links {
                    writeln!(
                        text,
                        "  link {} {} flags={:#x} state={:?} dropped={} {}",
                        id(&link.trace_id),
                        id(&link.span_id),
                        link.flags,
                        link.trace_state,
                        link.dropped_attributes_count,
                        pairs(link.attributes)
                    )
                    .unwrap();
                }
            }
            assert_eq!(scope, ScopeSpans::default());
        }
        assert_eq!(resource, ResourceSpans::default());
    }
    text
}

pub(super) fn records(wire: &[u8]) -> String {
    let mut request = ExportLogsServiceRequest::decode(wire).unwrap();
    let mut text = String::new();
    for mut resource in std::mem::take(&mut request.resource_logs) {
        text += &origin(resource.resource.take());
        for mut scope in std::mem::take(&mut resource.scope_logs) {
            let scope_itself = scope.scope.take().unwrap();
            writeln!(text, "{}", checksum_of_items(wire, &scope_itself)).unwrap();
            text += &program(scope_itself);
            for record in std::mem::take(&mut scope.log_records) {
                writeln!(
                    text,
                    "record {} {:?} {} observed={} severity={},{:?} {} {} flags={} dropped={}",
                    record.event_name,
                    record.body.unwrap().value.unwrap(),
                    record.time_unix_nano,
                    record.observed_time_unix_nano,
                    record.severity_number,
                    record.severity_text,
                    id(&record.trace_id),
                    id(&record.span_id),
                    record.flags,
                    record.dropped_attributes_count,
                )
                .unwrap();
                writeln!(text, "  {}", pairs(record.attributes)).unwrap();
            }
            assert_eq!(scope, ScopeLogs::default());
        }
        assert_eq!(resource, ResourceLogs::default());
    }
    text
}

/// All but the descriptions.
pub(super) fn metrics(wire: Bytes) -> String {
    let mut request = ExportMetricsServiceRequest::decode(wire).unwrap();
    let mut text = String::new();
    for mut resource in std::mem::take(&mut request.resource_metrics) {
        text += &origin(resource.resource.take());
        for mut scope in std::mem::take(&mut resource.scope_metrics) {
            text += &program(scope.scope.take().unwrap());
            for metric in std::mem::take(&mut scope.metrics) {
                assert!(!metric.description.is_empty() && metric.metadata.is_empty());
                let head = format!("{} [{}]", metric.name, metric.unit);
                match metric.data.unwrap() {
                    Data::Sum(sum) => {
                        let kind = format!("{head} sum,{},{}", sum.aggregation_temporality, sum.is_monotonic);
                        sum.data_points.into_iter().for_each(|point| text += &number(&kind, point));
                    }
                    Data::Gauge(gauge) => {
                        let kind = format!("{head} gauge");
                        gauge.data_points.into_iter().for_each(|point| text += &number(&kind, point));
                    }
                    Data::Histogram(histogram) => {
                        for point in histogram.data_points {
                            writeln!(
                                text,
                                "{head} histogram,{} {} {} to {} count={} sum={:?} {:?}..{} {} flags={} {:?} {:?}{}",
                                histogram.aggregation_temporality,
                                pairs(point.attributes),
                                point.start_time_unix_nano,
                                point.time_unix_nano,
                                point.count,
                                point.sum,
                                point.explicit_bounds.first(),
                                point.explicit_bounds.len(),
                                counts(&point.bucket_counts),
                                point.flags,
                                point.min,
                                point.max,
                                exemplars(point.exemplars),
                            )
                            .unwrap();
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(scope, ScopeMetrics::default());
        }
        assert_eq!(resource, ResourceMetrics::default());
    }
    text
}

fn number(kind: &str, point: NumberDataPoint) -> String {
    format!(
        "{kind} {} {} to {} {:?} flags={}{}\n",
        pairs(point.attributes),
        point.start_time_unix_nano,
        point.time_unix_nano,
        point.value.unwrap(),
        point.flags,
        exemplars(point.exemplars),
    )
}

fn exemplars(exemplars: Vec<Exemplar>) -> String {
    let exemplar = |exemplar: Exemplar| {
        format!(
            " exemplar({} {} {} {:?} {})",
            exemplar.time_unix_nano,
            id(&exemplar.trace_id),
            id(&exemplar.span_id),
            exemplar.value.unwrap(),
            pairs(exemplar.filtered_attributes)
        )
    };
    exemplars.into_iter().map(exemplar).collect()
}

fn origin(resource: Option<Resource>) -> String {
    let resource = resource.unwrap();
    assert!(resource.entity_refs.is_empty());
    format!("resource dropped={} {}\n", resource.dropped_attributes_count, pairs(resource.attributes))
}

fn program(scope: InstrumentationScope) -> String {
    assert_eq!((scope.name.as_str(), scope.version.as_str()), ("runspan", env!("CARGO_PKG_VERSION")));
    format!("scope dropped={} {}\n", scope.dropped_attributes_count, pairs(scope.attributes))
}

fn pairs(attributes: Vec<KeyValue>) -> String {
    let mut text = String::from("{");
    for KeyValue { key, value, .. } in attributes {
        let separator = if text.len() > 1 { " " } else { "" };
        match value.unwrap().value.unwrap() {
            any_value::Value::StringValue(value) => write!(text, "{separator}{key}={value:?}"),
            any_value::Value::IntValue(value) => write!(text, "{separator}{key}={value}"),
            any_value::Value::BoolValue(value) => write!(text, "{separator}{key}={value}"),
            other => panic!("{key}: {other:?}"),
        }
        .unwrap();
    }
    text + "}"
}

fn id(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { hex(bytes) }
}
