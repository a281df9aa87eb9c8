//! Metric points as a receiver sees them, and what `increase()` makes of them.

use crate::otlp::text;
use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, NumberDataPoint, number_data_point,
};
use runspan::otlp::Signal;

use crate::receiver::{Received, Receiver};

/// A series, as text: `workflow.run.events{workflowName=triage event=workflow.run.queued}`.
pub type Series = String;

/// Samples by series and millisecond, as Prometheus keeps them; of a histogram its count.
pub struct Samples(BTreeMap<Series, BTreeMap<u64, f64>>);

impl Samples {
    /// Everything that `receiver` has got. A sample that goes back in time, or says something else for the same
    /// moment, is one that Prometheus would refuse.
    pub fn of(receiver: &Receiver) -> Self {
        let mut samples = Self(BTreeMap::new());
        for (series, at, value) in metrics(receiver).iter().flat_map(points) {
            let known = samples.0.entry(series.clone()).or_default();
            let newest = known.last_key_value().map_or(0, |(at, _)| *at);
            match known.get(&at) {
                Some(same) => assert!((same - value).abs() < 1e-9, "{series} has two values at {at}"),
                None => assert!(at > newest, "{series} goes back in time: {newest}, {at}"),
            }
            known.insert(at, value);
        }
        samples
    }

    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.0.keys()
    }

    /// The last value of a series.
    pub fn last(&self, series: &str) -> Option<f64> {
        self.0.get(series).and_then(|samples| samples.last_key_value()).map(|(_, value)| *value)
    }

    /// By how much all series of `metric` together rose since their first samples, resets counted as Prometheus does.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    pub fn increase(&self, metric: &str) -> u64 {
        let of_metric = self.0.iter().filter(|(series, _)| series.starts_with(&format!("{metric}{{")));
        let rise = |samples: &BTreeMap<u64, f64>| -> f64 {
            let values: Vec<f64> = samples.values().copied().collect();
            let rises = values.windows(2).map(|pair| match pair {
                [before, after] if after >= before => after - before,
                [_, after] => *after,
                _ => 0.0,
            });
            rises.sum()
        };
        of_metric.map(|(_, samples)| rise(samples)).sum::<f64>().round() as u64
    }
}

/// The requests that hold metrics.
pub fn metrics(receiver: &Receiver) -> Vec<Received> {
    receiver.requests().into_iter().filter(|request| request.signal == Signal::Metrics).collect()
}

/// The points of a request, in order. Those that only grow say since when, and began at zero then.
pub fn points(request: &Received) -> Vec<(Series, u64, f64)> {
    let mut all = Vec::new();
    let metrics = request.metrics().resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    for metric in metrics.flat_map(|scope| scope.metrics) {
        let numbers = |points: Vec<NumberDataPoint>| {
            let value = |point: &NumberDataPoint| match point.value {
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                Some(number_data_point::Value::AsInt(number)) => number as f64,
                Some(number_data_point::Value::AsDouble(number)) => number,
                None => f64::NAN,
            };
            let read =
                points.into_iter().map(|point| (value(&point), point.time_unix_nano, point.attributes));
            read.collect::<Vec<_>>()
        };
        let grows = |since: u64, at: u64| {
            assert!(0 < since && since / 1_000_000 < at / 1_000_000, "{}: {since}, {at}", metric.name);
        };
        let read = match metric.data.unwrap() {
            Data::Sum(sum) => {
                assert_eq!(sum.aggregation_temporality, i32::from(AggregationTemporality::Cumulative));
                assert_eq!(sum.is_monotonic, metric.name != "workflow.run.active", "{}", metric.name);
                for point in sum.data_points.iter().filter(|_| sum.is_monotonic) {
                    grows(point.start_time_unix_nano, point.time_unix_nano);
                }
                numbers(sum.data_points)
            }
            Data::Gauge(gauge) => numbers(gauge.data_points),
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, i32::from(AggregationTemporality::Cumulative));
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let read = |point: HistogramDataPoint| {
                    grows(point.start_time_unix_nano, point.time_unix_nano);
                    assert_eq!(point.count, point.bucket_counts.iter().sum::<u64>());
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                    (point.count as f64, point.time_unix_nano, point.attributes)
                };
                histogram.data_points.into_iter().map(read).collect()
            }
            other => panic!("{other:?}"),
        };
        let series = |attributes: &[KeyValue]| format!("{}{{{}}}", metric.name, labels(attributes));
        all.extend(
            read.into_iter()
                .map(|(value, nanos, attributes)| (series(&attributes), nanos / 1_000_000, value)),
        );
    }
    all
}

fn labels(attributes: &[KeyValue]) -> String {
    let label = |attribute: &KeyValue| format!("{}={}", attribute.key, text(attribute));
    attributes.iter().map(label).collect::<Vec<_>>().join(" ")
}
