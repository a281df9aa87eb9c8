//! What sends spans today: the opentelemetry SDK and `opentelemetry-otlp`, from memory, without a database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::{
    Event, Link, SpanBuilder, SpanId, Status, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use runspan::otlp::config::Protocol;
use runspan::projection::{Attributes, Span, SpanKind, Value};
use runspan::run::Timestamp;
use runspan::trace_context::SpanContext;

use crate::Failure;

/// The SDK's own default, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`.
const BATCH: usize = 512;

/// Sends `count` spans, copies of `spans` in turn, one request at a time; how many a second.
pub(crate) async fn export(
    protocol: Protocol,
    endpoint: &str,
    spans: &[Span],
    count: usize,
) -> Result<f64, Failure> {
    let exporter = exporter(protocol, endpoint)?;
    let spans: Vec<SpanData> = spans.iter().map(span_data).collect();
    let mut endless = spans.iter().cycle();
    let (mut sent, mut took) = (0, Duration::ZERO);
    while sent < count {
        let batch: Vec<SpanData> = endless.by_ref().take(BATCH.min(count - sent)).cloned().collect();
        sent += batch.len();
        // What the application's own spans would hold already is not the exporter's work.
        let began = Instant::now();
        exporter.export(batch).await?;
        took += began.elapsed();
    }
    Ok(per_second(count, took))
}

/// What became of spans that an application made as fast as it could.
pub(crate) struct Made {
    pub(crate) per_second: f64,
    /// How many of 100 never arrived: the batch processor's queue was full.
    pub(crate) lost: f64,
}

/// One SDK span a run, with its attributes and events, through the batch processor with its defaults.
pub(crate) async fn in_process(endpoint: &str, spans: &[Span], count: usize) -> Result<Made, Failure> {
    let exported = Arc::new(AtomicU64::new(0));
    let counting = Counting {
        otlp: exporter(Protocol::Grpc, endpoint)?,
        exported: Arc::clone(&exported),
        runtime: tokio::runtime::Handle::current(),
    };
    let provider = SdkTracerProvider::builder().with_batch_exporter(counting).build();
    let tracer = provider.tracer("bench");
    let runs: Vec<SpanData> =
        spans.iter().filter(|span| span.kind != SpanKind::Queue).map(span_data).collect();
    let took = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        for run in runs.iter().cycle().take(count) {
            let span = SpanBuilder::from_name(run.name.clone())
                .with_kind(run.span_kind.clone())
                .with_start_time(run.start_time)
                .with_attributes(run.attributes.iter().cloned())
                .with_events(run.events.events.clone());
            drop(tracer.build(span));
        }
        let flushed = provider.force_flush();
        let took = began.elapsed();
        flushed.and_then(|()| provider.shutdown()).map(|()| took)
    })
    .await??;
    let arrived = exported.load(Ordering::Relaxed);
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let (arrived, count) = (arrived as f64, count as f64);
    Ok(Made { per_second: arrived / took.as_secs_f64(), lost: 100.0 * (count - arrived) / count })
}

/// Counts what its receiver took.
#[derive(Debug)]
struct Counting {
    otlp: SpanExporter,
    exported: Arc<AtomicU64>,
    /// The SDK's thread has none of its own.
    runtime: tokio::runtime::Handle,
}

impl opentelemetry_sdk::trace::SpanExporter for Counting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.runtime.block_on(self.otlp.export(batch));
        if sent.is_ok() {
            self.exported.fetch_add(spans, Ordering::Relaxed);
        }
        sent
    }
}

fn exporter(protocol: Protocol, endpoint: &str) -> Result<SpanExporter, Failure> {
    Ok(match protocol {
        Protocol::Grpc => SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?,
        Protocol::HttpProtobuf => SpanExporter::builder()
            .with_http()
            .with_http_client(Http(client()?))
            .with_endpoint(format!("{endpoint}/v1/traces"))
            .build()?,
    })
}

fn client() -> Result<reqwest::Client, Failure> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?)
}

#[derive(Debug)]
struct Http(reqwest::Client);

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.execute(request.try_into()?).await?;
        let mut answer = Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.clone_from(response.headers());
        }
        Ok(answer.body(response.bytes().await?)?)
    }
}

/// What the SDK would have for the same span.
fn span_data(span: &Span) -> SpanData {
    let mut events = SpanEvents::default();
    events.events = span
        .events
        .iter()
        .map(|event| {
            Event::new(event.event.name(), time(event.at), key_values(span.event_attributes(event)), 0)
        })
        .collect();
    events.dropped_count = span.dropped_events;
    let mut links = SpanLinks::default();
    links.links = span.link.iter().map(|link| Link::new(context(link), Vec::new(), 0)).collect();
    SpanData {
        span_context: context(&span.span_context()),
        parent_span_id: span.parent().map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.bytes())),
        parent_span_is_remote: false,
        span_kind: match span.kind {
            SpanKind::Run(_) => opentelemetry::trace::SpanKind::Server,
            SpanKind::Queue => opentelemetry::trace::SpanKind::Internal,
        },
        name: span.name().into_owned().into(),
        start_time: time(span.start),
        end_time: time(span.end),
        attributes: key_values(span.attributes()),
        dropped_attributes_count: 0,
        events,
        links,
        status: span.error().map_or(Status::Unset, |reason| Status::error(reason.to_owned())),
        instrumentation_scope: InstrumentationScope::builder("runspan").build(),
    }
}

fn context(of: &SpanContext) -> opentelemetry::trace::SpanContext {
    opentelemetry::trace::SpanContext::new(
        TraceId::from_bytes(of.trace_id.bytes()),
        SpanId::from_bytes(of.span_id.bytes()),
        TraceFlags::new(of.flags),
        false,
        TraceState::NONE,
    )
}

fn key_values(attributes: Attributes<'_>) -> Vec<KeyValue> {
    attributes
        .into_iter()
        .map(|(key, value)| match value {
            Value::Text(text) => KeyValue::new(key, text.into_owned()),
            Value::Int(number) => KeyValue::new(key, number),
            Value::Bool(yes) => KeyValue::new(key, yes),
        })
        .collect()
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(at.unix_nanos())
}

fn per_second(count: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let count = count as f64;
    count / took.as_secs_f64()
}
