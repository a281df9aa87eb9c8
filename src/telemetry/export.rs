//! Finished spans, on their way by `opentelemetry-otlp` over connections like the relay's.
//!
//! So there is one reading of the `OTEL_*` variables and one TLS for both kinds of spans. Two of the variables that
//! crate reads from the environment of the process, whatever it is told. For the headers both transports put the
//! configured ones, so that none is sent twice, or to a receiver that it is not meant for. The compression counts
//! where the configuration has none, which cannot be said to it.
//!
//! Of a batch that was taken, it tells nobody what the receiver threw away (`partial_success`).

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, header};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::MetadataMap;

use super::TelemetryError;
use crate::otlp::answer;
use crate::otlp::client::{self, ClientError};
use crate::otlp::config::{Compression, Protocol, SignalConfig};

/// For the SDK's batch processor, which calls it from a thread of its own.
#[derive(Debug)]
pub(super) struct Exporter {
    otlp: Otlp,
    config: SignalConfig,
    /// Our own, so that sending needs nothing of the application's, also when that has ended.
    runtime: Runtime,
    /// Spans lost since the receiver last took some.
    lost: AtomicU64,
}

impl Exporter {
    pub(super) fn new(config: SignalConfig) -> Result<Self, TelemetryError> {
        // Its one thread looks after the connection between exports: one that the receiver closes is replaced in time.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let otlp = {
            let _entered = runtime.enter();
            otlp(&config)
        };
        match otlp {
            Ok(otlp) => Ok(Self { otlp, config, runtime, lost: AtomicU64::new(0) }),
            Err(error) => {
                // The caller may be on another runtime, where dropping one is not allowed.
                runtime.shutdown_background();
                Err(error.into())
            }
        }
    }

    /// Says once that spans are being lost, and once how many it were.
    fn settle(&self, spans: u64, problem: Option<String>) -> OTelSdkResult {
        let Some(problem) = problem else {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::info!(lost, "the receiver takes spans of handlers again; some were lost");
            }
            return Ok(());
        };
        let SignalConfig { signal, endpoint, protocol, .. } = &self.config;
        let problem = format!("{signal} to {endpoint} ({protocol}): {problem}");
        if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
            tracing::warn!("spans of handlers are being lost: {problem}");
        }
        Err(OTelSdkError::InternalFailure(problem))
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let timeout = self.config.timeout;
        // opentelemetry-otlp starts no retry after it, but would wait for an answer for ever.
        let sending = async { tokio::time::timeout(timeout, self.otlp.export(batch)).await };
        let problem = match self.runtime.block_on(sending) {
            Ok(Ok(())) => None,
            Ok(Err(OTelSdkError::InternalFailure(problem))) => Some(problem),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {}", humantime::format_duration(timeout))),
        };
        self.settle(spans, problem)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

fn otlp(config: &SignalConfig) -> Result<Otlp, ClientError> {
    let gzip = (config.compression == Compression::Gzip).then_some(opentelemetry_otlp::Compression::Gzip);
    let setup = |error: ExporterBuildError| ClientError::Setup(error.to_string());
    match config.protocol {
        Protocol::Grpc => {
            // A connection that is only half there would swallow request after request: a ping finds it out before
            // the time for one is over. Servers in Go put up with two pings a request, and hang up at the third.
            let silence = config.timeout * 2 / 5;
            let channel = client::grpc_endpoint(config)?
                .http2_keep_alive_interval(silence)
                .keep_alive_timeout(silence)
                .connect_lazy();
            let headers = MetadataMap::from_headers(config.headers.as_map().clone());
            let mut builder = Otlp::builder()
                .with_tonic()
                .with_channel(channel)
                .with_timeout(config.timeout)
                // It has the last word, after the headers of the environment.
                .with_interceptor(move |mut request: tonic::Request<()>| {
                    request.metadata_mut().clone_from(&headers);
                    Ok(request)
                });
            if let Some(gzip) = gzip {
                builder = builder.with_compression(gzip);
            }
            builder.build().map_err(setup)
        }
        Protocol::HttpProtobuf => {
            let http = Http { http: client::Http::new(config)?, config: config.clone() };
            let mut builder = Otlp::builder()
                .with_http()
                .with_http_client(http)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                // As it is shown, without credentials: the client knows the whole.
                .with_endpoint(config.endpoint.to_string())
                .with_timeout(config.timeout);
            if let Some(gzip) = gzip {
                builder = builder.with_compression(gzip);
            }
            builder.build().map_err(setup)
        }
    }
}

/// The relay's client for bodies that `opentelemetry-otlp` has made.
#[derive(Debug)]
struct Http {
    http: client::Http,
    config: SignalConfig,
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        let encoding = head.headers.remove(header::CONTENT_ENCODING);
        self.http.post(&self.config, encoding, body).await.map_err(|error| {
            // opentelemetry-otlp calls it a network error and keeps the rest to itself.
            if let Some(cause) = answer::from_transport(&self.config, &error).cause() {
                tracing::debug!("a request with spans of handlers failed: {cause}");
            }
            error.into()
        })
    }
}
