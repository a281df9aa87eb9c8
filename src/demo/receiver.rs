//! An OTLP/gRPC receiver in this process, on a loopback socket: it keeps what it receives, and reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric as ReceivedMetric};
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use runspan::otlp::Signal;
use runspan::run::Timestamp;
use runspan::semconv::metric::Metric;
use runspan::semconv::{Level, field};
use runspan::trace_context::SpanContext;

/// Attributes, by key.
pub(crate) type Attributes = BTreeMap<String, Value>;

/// What a received span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A run: SERVER.
    Run,
    /// A run's first wait: INTERNAL, with an id that follows from the run's.
    Queue,
    /// What a handler did: INTERNAL, below its run.
    Handler,
    /// The taking of a delivery, to which the run's span links: SERVER, in a trace of its own.
    Delivery,
}

/// A span, as it was received.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span {
    /// Its trace, in hex.
    #[serde(rename = "trace_id")]
    pub trace_id: String,
    /// Its id, in hex.
    #[serde(rename = "span_id")]
    pub id: String,
    /// The span it is a child of, in hex.
    #[serde(rename = "parent_span_id", skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its name.
    pub name: String,
    /// A run or a wait.
    pub kind: Kind,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub start: Timestamp,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub end: Timestamp,
    /// The names of its events.
    pub events: Vec<String>,
    /// The traceparents of the spans that it links to.
    pub links: Vec<String>,
    /// Its attributes.
    pub attributes: Attributes,
}

/// A log record, as it was received. As JSON it is the line that the relay prints with `--logs stdout`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// When it happened.
    #[serde(rename = "timestamp", serialize_with = "rfc3339")]
    pub at: Timestamp,
    /// Its severity, as in JSON lines.
    pub level: &'static str,
    /// Its attributes, `event` among them.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// Its trace, in hex; empty on a refusal without a run in flight.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// Its run's span, in hex.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub span_id: String,
    /// Its body.
    #[serde(rename = "message")]
    pub body: String,
}

impl Span {
    /// The text of an attribute.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).and_then(Value::as_str)
    }

    /// How long it took, in milliseconds.
    pub(crate) fn millis(&self) -> i64 {
        self.end.millis_since(self.start)
    }
}

impl Record {
    /// The text of an attribute.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).and_then(Value::as_str)
    }

    /// The event's name.
    pub(crate) fn event(&self) -> &str {
        self.text(field::EVENT).unwrap_or_default()
    }
}

/// A receiver that listens until it is dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    inbox: Arc<Inbox>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Inbox {
    traces: Mutex<Vec<ExportTraceServiceRequest>>,
    logs: Mutex<Vec<ExportLogsServiceRequest>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
}

impl Receiver {
    /// Listens on a free port of the loopback interface.
    pub(super) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let inbox = Arc::new(Inbox::default());
        let serving = Server::builder()
            .add_service(TraceServiceServer::from_arc(Arc::clone(&inbox)))
            .add_service(LogsServiceServer::from_arc(Arc::clone(&inbox)))
            .add_service(MetricsServiceServer::from_arc(Arc::clone(&inbox)))
            .serve_with_incoming(TcpIncoming::from(listener));
        let serving = async {
            if let Err(error) = serving.await {
                tracing::error!("the demo's receiver stopped: {error}");
            }
        };
        Ok(Self { address, inbox, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has received, the oldest first.
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = kept(&self.inbox.traces).iter().flat_map(spans_of).map(span).collect();
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// What it has received, in the order of arrival: the journal's.
    pub(super) fn records(&self) -> Vec<Record> {
        kept(&self.inbox.logs).iter().flat_map(records_of).map(record).collect()
    }

    /// How much the counts of a histogram rose, all its series together: from their first points to their last.
    pub(super) fn increase(&self, metric: &Metric) -> u64 {
        let requests = kept(&self.inbox.metrics);
        let mut series: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let points = requests.iter().flat_map(metrics_of).filter(|received| received.name == metric.name);
        for point in points.flat_map(distributions) {
            let key = format!("{:?}", attributes(&point.attributes));
            series.entry(key).or_insert((point.count, point.count)).1 = point.count;
        }
        series.values().map(|(first, last)| last - first).sum()
    }

    /// The requests of a signal as they came, each with the number of its items. (prost encodes a message in one
    /// way only, so these are the bytes that were received.)
    pub(super) fn requests(&self, signal: Signal) -> Vec<(usize, Bytes)> {
        match signal {
            Signal::Traces => kept(&self.inbox.traces)
                .iter()
                .map(|request| (spans_of(request).count(), request.encode_to_vec().into()))
                .collect(),
            Signal::Logs => kept(&self.inbox.logs)
                .iter()
                .map(|request| (records_of(request).count(), request.encode_to_vec().into()))
                .collect(),
            Signal::Metrics => kept(&self.inbox.metrics)
                .iter()
                .map(|request| (metrics_of(request).map(points).sum(), request.encode_to_vec().into()))
                .collect(),
        }
    }
}

/// A vector that is only ever pushed to is sound whoever panicked.
fn kept<T>(requests: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spans_of(request: &ExportTraceServiceRequest) -> impl Iterator<Item = &trace::Span> {
    request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
}

fn records_of(request: &ExportLogsServiceRequest) -> impl Iterator<Item = &LogRecord> {
    request
        .resource_logs
        .iter()
        .flat_map(|resource| &resource.scope_logs)
        .flat_map(|scope| &scope.log_records)
}

fn metrics_of(request: &ExportMetricsServiceRequest) -> impl Iterator<Item = &ReceivedMetric> {
    request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics)
        .flat_map(|scope| &scope.metrics)
}

fn distributions(metric: &ReceivedMetric) -> &[HistogramDataPoint] {
    match &metric.data {
        Some(Data::Histogram(histogram)) => &histogram.data_points,
        _ => &[],
    }
}

fn points(metric: &ReceivedMetric) -> usize {
    match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        _ => distributions(metric).len(),
    }
}

#[tonic::async_trait]
impl MetricsService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        kept(&self.metrics).push(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        kept(&self.traces).push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        kept(&self.logs).push(request.into_inner());
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

fn span(span: &trace::Span) -> Span {
    let attributes = attributes(&span.attributes);
    Span {
        trace_id: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        name: span.name.clone(),
        kind: kind(span, &attributes),
        start: timestamp(span.start_time_unix_nano),
        end: timestamp(span.end_time_unix_nano),
        events: span.events.iter().map(|event| event.name.clone()).collect(),
        links: span
            .links
            .iter()
            .map(|link| {
                format!("00-{}-{}-{:02x}", hex(&link.trace_id), hex(&link.span_id), link.flags & 0xff)
            })
            .collect(),
        attributes,
    }
}

/// By their ids: a run's wait has the one that follows from the run's.
fn kind(span: &trace::Span, attributes: &Attributes) -> Kind {
    let parent = format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.parent_span_id));
    let is_wait = parent
        .parse::<SpanContext>()
        .is_ok_and(|parent| parent.queue_span().span_id.bytes() == span.span_id[..]);
    if span.kind != i32::from(trace::span::SpanKind::Server) {
        return if is_wait { Kind::Queue } else { Kind::Handler };
    }
    if attributes.contains_key(field::RUN_ID) { Kind::Run } else { Kind::Delivery }
}

fn record(record: &LogRecord) -> Record {
    let level = [Level::Error, Level::Warn, Level::Info]
        .into_iter()
        .find(|level| level.severity_number() <= record.severity_number)
        .map_or("", Level::as_str);
    Record {
        at: timestamp(record.time_unix_nano),
        level,
        attributes: attributes(&record.attributes),
        trace_id: hex(&record.trace_id),
        span_id: hex(&record.span_id),
        body: match record.body.as_ref().and_then(|body| body.value.as_ref()) {
            Some(any_value::Value::StringValue(text)) => text.clone(),
            _ => String::new(),
        },
    }
}

fn attributes(pairs: &[KeyValue]) -> Attributes {
    let value = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => Value::from(text.as_str()),
        Some(any_value::Value::IntValue(number)) => Value::from(*number),
        Some(any_value::Value::BoolValue(yes)) => Value::from(*yes),
        // Neither runspan nor the handlers send others.
        _ => Value::Null,
    };
    pairs.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_micros(i64::try_from(nanos / 1_000).unwrap_or(i64::MAX))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}
