//! What arrived, in the words that the ledger is compared with.

use runspan_test_support::otlp::{self, hex};
use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::Value;

use crate::output::{Attributes, Link, Record, Span, SpanEvent, Status};
use crate::points::{self, Series};
use crate::receiver::Received;

/// The spans of a request.
pub(crate) fn spans(request: &Received) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in request.traces().resource_spans {
        is_the_applications(resource.resource.as_ref());
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let status = span.status.unwrap_or_default();
            let event = |event: opentelemetry_proto::tonic::trace::v1::span::Event| SpanEvent {
                at: micros(event.time_unix_nano),
                name: event.name,
                attributes: attributes(event.attributes),
            };
            spans.push(Span {
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent_span_id: hex(&span.parent_span_id),
                name: span.name,
                kind: span.kind.try_into().unwrap(),
                start: micros(span.start_time_unix_nano),
                end: micros(span.end_time_unix_nano),
                attributes: attributes(span.attributes),
                events: span.events.into_iter().map(event).collect(),
                links: span
                    .links
                    .into_iter()
                    .map(|link| Link { trace_id: hex(&link.trace_id), span_id: hex(&link.span_id) })
                    .collect(),
                status: Status { code: status.code.try_into().unwrap(), message: status.message },
            });
        }
    }
    spans
}

/// The records of a request.
pub(crate) fn records(request: &Received) -> Vec<Record> {
    let mut records = Vec::new();
    for resource in request.logs().resource_logs {
        is_the_applications(resource.resource.as_ref());
        for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            records.push(Record {
                at: micros(record.time_unix_nano),
                event_name: record.event_name,
                severity_number: record.severity_number.try_into().unwrap(),
                trace_id: hex(&record.trace_id),
                span_id: hex(&record.span_id),
                attributes: attributes(record.attributes),
            });
        }
    }
    records
}

fn is_the_applications(resource: Option<&Resource>) {
    let attributes = resource.map(|resource| attributes(resource.attributes.clone())).unwrap_or_default();
    assert_eq!(attributes["service.name"], "shop", "a resource that is not the application's");
}

fn micros(nanos: u64) -> i64 {
    assert_eq!(nanos % 1_000, 0, "below a microsecond");
    i64::try_from(nanos / 1_000).unwrap()
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let mut map = Attributes::new();
    for pair in pairs {
        assert!(
            map.insert(pair.key.clone(), otlp::value(&pair)).is_none(),
            "attribute {} is there twice",
            pair.key
        );
    }
    map
}

/// A metric point: its series, its time in milliseconds, its value; of a histogram the count.
pub(crate) type Point = (Series, u64, f64);

/// The points of a request.
pub(crate) fn points(request: &Received) -> Vec<Point> {
    points::points(request)
}

/// The same of a line that the Collector wrote.
pub(crate) fn points_of_line(line: &str) -> Vec<Point> {
    let request: Value = serde_json::from_str(line).unwrap();
    let mut all = Vec::new();
    let each = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    for resource in each(&request, "resourceMetrics") {
        for scope in each(&resource, "scopeMetrics") {
            for metric in each(&scope, "metrics") {
                let name = metric["name"].as_str().unwrap().to_owned();
                for kind in ["sum", "gauge", "histogram"] {
                    for point in each(&metric[kind], "dataPoints") {
                        all.push((series(&name, &point), millis(&point), value(&point)));
                    }
                }
            }
        }
    }
    all
}

/// As tests/suite/points.rs has it.
fn series(name: &str, point: &Value) -> Series {
    let label = |pair: &Value| {
        format!("{}={}", pair["key"].as_str().unwrap(), pair["value"]["stringValue"].as_str().unwrap())
    };
    let labels: Vec<_> = point["attributes"].as_array().into_iter().flatten().map(label).collect();
    format!("{name}{{{}}}", labels.join(" "))
}

fn millis(point: &Value) -> u64 {
    point["timeUnixNano"].as_str().unwrap().parse::<u64>().unwrap() / 1_000_000
}

fn value(point: &Value) -> f64 {
    // 64-bit integers are strings.
    let text = |key: &str| point[key].as_str().map(|text| text.parse().unwrap());
    text("count").or_else(|| text("asInt")).or_else(|| point["asDouble"].as_f64()).unwrap_or(0.0)
}

/// The last value of each series of a metric, by its labels.
pub(crate) fn last_values(
    samples: &crate::oracle::Samples,
    metric: &str,
) -> BTreeMap<Vec<(String, String)>, f64> {
    let prefix = format!("{metric}{{");
    let of_metric = samples.iter().filter_map(|(series, values)| {
        let labels = series.strip_prefix(&prefix)?.strip_suffix('}')?;
        let pair = |label: &str| label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Some((labels.split(' ').filter_map(pair).collect(), *values.last_key_value()?.1))
    });
    of_metric.collect()
}
