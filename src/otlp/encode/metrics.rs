//! Encodes series as OTLP metrics.
//!
//! The points of a series stay in one request, as requests may overtake each other behind the receiver; and exemplars are
//! bounded, as they make most of an export's size.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as ProtoExemplar, Gauge, Histogram, HistogramDataPoint,
    Metric as ProtoMetric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric::Data,
    number_data_point,
};
use prost::Message as _;

use super::{Encoder, key_value};
use crate::run::Timestamp;
use crate::semconv::field;
use crate::semconv::metric::{self, Instrument, Metric};
use crate::series::{Exemplar, InFlight, Point, Series, Value, seconds};

/// Always cumulative: a delta whose acknowledgement is lost would count twice.
const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// An encoded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// How many points it holds.
    pub items: usize,
    /// The request.
    pub wire: Bytes,
}

/// The most exemplars of one export: about 33 bytes each after gzip, most of its size.
const MAX_EXEMPLARS: usize = 20_000;

enum DataPoint {
    Number(NumberDataPoint),
    Histogram(HistogramDataPoint),
}

impl DataPoint {
    fn size(&self) -> usize {
        // With its tag and length.
        8 + match self {
            Self::Number(point) => point.encoded_len(),
            Self::Histogram(point) => point.encoded_len(),
        }
    }
}

impl Encoder {
    /// Series as `ExportMetricsServiceRequest`s of at most about `size` bytes, in order. The points of a series stay
    /// together: requests may overtake each other behind the receiver, and a point must arrive after its predecessor.
    ///
    /// If there are too many exemplars, each histogram keeps those of its highest buckets.
    pub fn series(&self, series: &[Series], exemplars: bool, size: usize) -> Vec<Points> {
        let exemplars = if exemplars { exemplars_each(series) } else { 0 };
        let points = series.iter().map(|series| {
            let metric = series.key.kind.metric();
            let attributes: Vec<KeyValue> =
                series.key.attributes().into_iter().map(|(key, value)| key_value(key, value)).collect();
            let points =
                series.points.iter().map(|point| data_point(point, attributes.clone(), exemplars)).collect();
            (metric, points)
        });
        self.requests(points, size)
    }

    /// The runs in flight at `at`, in the same form.
    pub fn in_flight(&self, rows: &[InFlight], at: Timestamp, size: usize) -> Vec<Points> {
        let time_unix_nano = at.unix_nanos();
        let point = |row: &InFlight, value| {
            let attributes =
                [(field::WORKFLOW_NAME, row.workflow.as_str()), (metric::STATUS, row.status.as_str())];
            vec![DataPoint::Number(NumberDataPoint {
                attributes: attributes.map(|(key, value)| key_value(key, value)).into(),
                time_unix_nano,
                value: Some(value),
                ..NumberDataPoint::default()
            })]
        };
        let active =
            rows.iter().map(|row| (&metric::ACTIVE, point(row, number_data_point::Value::AsInt(row.runs))));
        let oldest = rows
            .iter()
            .map(|row| (&metric::OLDEST_AGE, point(row, number_data_point::Value::AsDouble(row.oldest_age))));
        self.requests(active.chain(oldest), size)
    }

    fn requests(
        &self,
        series: impl Iterator<Item = (&'static Metric, Vec<DataPoint>)>,
        size: usize,
    ) -> Vec<Points> {
        let mut requests = Vec::new();
        let (mut batch, mut length) = (Vec::new(), 0);
        for (metric, points) in series {
            let added: usize = points.iter().map(DataPoint::size).sum();
            length += added;
            if length > size && !batch.is_empty() {
                requests.push(self.request(std::mem::take(&mut batch)));
                length = added;
            }
            batch.extend(points.into_iter().map(|point| (metric, point)));
        }
        if !batch.is_empty() {
            requests.push(self.request(batch));
        }
        requests
    }

    fn request(&self, points: Vec<(&'static Metric, DataPoint)>) -> Points {
        let items = points.len();
        let mut metrics: Vec<ProtoMetric> = Vec::new();
        for (metric, point) in points {
            if metrics.last().is_none_or(|last| last.name != metric.name) {
                metrics.push(envelope(metric));
            }
            match (metrics.last_mut().and_then(|metric| metric.data.as_mut()), point) {
                (Some(Data::Histogram(data)), DataPoint::Histogram(point)) => data.data_points.push(point),
                (Some(Data::Sum(data)), DataPoint::Number(point)) => data.data_points.push(point),
                (Some(Data::Gauge(data)), DataPoint::Number(point)) => data.data_points.push(point),
                // An instrument has points of one kind only: see `MetricKind::metric`.
                _ => debug_assert!(false, "{} has a point of another instrument", metric.name),
            }
        }
        let scope = ScopeMetrics { scope: Some(self.scope.clone()), metrics, ..ScopeMetrics::default() };
        let resource = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![resource] };
        Points { items, wire: request.encode_to_vec().into() }
    }
}

fn envelope(metric: &Metric) -> ProtoMetric {
    let data = match metric.instrument {
        Instrument::Histogram => {
            Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality: CUMULATIVE })
        }
        Instrument::Counter => sum(true),
        Instrument::UpDownCounter => sum(false),
        Instrument::Gauge => Data::Gauge(Gauge::default()),
    };
    ProtoMetric {
        name: metric.name.to_owned(),
        description: metric.meaning.to_owned(),
        unit: metric.unit.to_owned(),
        data: Some(data),
        ..ProtoMetric::default()
    }
}

fn sum(is_monotonic: bool) -> Data {
    Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality: CUMULATIVE, is_monotonic })
}

/// How many exemplars a point may carry.
fn exemplars_each(series: &[Series]) -> usize {
    let of_point = |point: &Point| match &point.value {
        Value::Count(_) => None,
        Value::Distribution(_, distribution) => Some(distribution.exemplars().count()),
    };
    let counts = series.iter().flat_map(|series| &series.points).filter_map(of_point);
    let (points, all) = counts.fold((0, 0), |(points, all), count| (points + 1, all + count));
    if all > MAX_EXEMPLARS { MAX_EXEMPLARS / points } else { usize::MAX }
}

fn data_point(point: &Point, attributes: Vec<KeyValue>, exemplars: usize) -> DataPoint {
    let (start_time_unix_nano, time_unix_nano) = (point.since.unix_nanos(), point.at.unix_nanos());
    match &point.value {
        Value::Count(count) => DataPoint::Number(NumberDataPoint {
            attributes,
            start_time_unix_nano,
            time_unix_nano,
            value: Some(number_data_point::Value::AsInt(i64::try_from(*count).unwrap_or(i64::MAX))),
            ..NumberDataPoint::default()
        }),
        Value::Distribution(buckets, distribution) => DataPoint::Histogram(HistogramDataPoint {
            attributes,
            start_time_unix_nano,
            time_unix_nano,
            count: distribution.count(),
            sum: Some(distribution.sum_seconds()),
            bucket_counts: distribution.counts(buckets),
            explicit_bounds: buckets.seconds(),
            exemplars: distribution.exemplars().rev().take(exemplars).map(exemplar).collect(),
            ..HistogramDataPoint::default()
        }),
    }
}

fn exemplar(exemplar: &Exemplar) -> ProtoExemplar {
    ProtoExemplar {
        time_unix_nano: exemplar.at.unix_nanos(),
        trace_id: exemplar.trace_id.bytes().to_vec(),
        span_id: exemplar.span_id.bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(seconds(exemplar.micros))),
        ..ProtoExemplar::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::body::gzip;
    use crate::otlp::config::Resource;
    use crate::run::{Outcome, RunId};
    use crate::series::{Buckets, Key, Totals};
    use crate::trace_context::SpanContext;

    #[test]
    fn large_exports_keep_exemplars_of_slowest_runs() {
        let buckets = Buckets::default();
        let mut totals = Totals::new(buckets.clone());
        // 200 workflows with 14 histograms each, a run in each bucket of each.
        for histogram in 0..2_800 {
            for bound in buckets.micros() {
                let run = RunId::generate();
                let key = Key::duration(&format!("workflow-{histogram}"), Outcome::Succeeded, None);
                totals.observe(key, *bound, Timestamp::from_micros(*bound), SpanContext::of_run(run, run));
            }
        }
        let at = Timestamp::from_micros(1_800_000_000_000_000);
        let value = |distribution: &_| Value::Distribution(buckets.clone(), Clone::clone(distribution));
        let series: Vec<Series> = totals
            .histograms()
            .map(|(key, distribution)| Series {
                key: key.clone(),
                points: vec![Point { since: at, at, value: value(distribution) }],
            })
            .collect();
        let encoder = Encoder::new(&Resource::from_env(&|_| None).unwrap(), "db");
        let requests = encoder.series(&series, true, crate::otlp::encode::MAX_REQUEST);
        let (mut kept, mut gzipped) = (Vec::new(), 0);
        for request in requests {
            gzipped += gzip(&[&request.wire], flate2::Compression::fast()).len();
            let request = ExportMetricsServiceRequest::decode(request.wire).unwrap();
            for metric in &request.resource_metrics[0].scope_metrics[0].metrics {
                let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
                kept.extend(histogram.data_points.iter().map(|point| point.exemplars.clone()));
            }
        }
        assert_eq!(kept.len(), 2_800);
        for exemplars in kept {
            let values: Vec<_> = exemplars.iter().filter_map(|exemplar| exemplar.value).collect();
            let slowest = buckets.seconds().into_iter().rev().take(7).map(exemplar::Value::AsDouble);
            assert_eq!(values, slowest.collect::<Vec<_>>());
        }
        assert!(gzipped < 1 << 20, "{gzipped} bytes");
    }
}
