//! The transport of `opentelemetry-otlp`: the same connections as the relay's.
//!
//! So all exports of this process share one parser of the `OTEL_*` variables and one TLS configuration. That crate reads
//! two of the variables from the environment regardless of its configuration. Headers: both transports replace them by the
//! configured ones, so that none is sent twice or to the wrong receiver. Compression: the variable wins if the
//! configuration has none, which its API cannot express.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, header};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::MetadataMap;

use super::TelemetryError;
use crate::otlp::answer;
use crate::otlp::client::{self, ClientError, WatchedFiles};
use crate::otlp::config::{Compression, SignalConfig};

/// Creates an exporter with a runtime of its own, so that it can send even after the application's runtime has ended.
fn on_own_runtime<E>(
    exporter: impl FnOnce() -> Result<E, ClientError>,
) -> Result<(E, Runtime), TelemetryError> {
    // Its one thread drives the connection between exports, so that a closed one is replaced in time.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let exporter = {
        let _entered = runtime.enter();
        exporter()
    };
    match exporter {
        Ok(exporter) => Ok((exporter, runtime)),
        Err(error) => {
            // The caller may be within another runtime, where dropping one panics.
            runtime.shutdown_background();
            Err(error.into())
        }
    }
}

/// An exporter of `opentelemetry-otlp` that is replaced when the certificate files change.
#[derive(Debug)]
pub(super) struct Reloading<E> {
    exporter: Mutex<(E, WatchedFiles)>,
    config: SignalConfig,
    runtime: Runtime,
    create: fn(&SignalConfig) -> Result<E, ClientError>,
}

impl<E> Reloading<E> {
    pub(super) fn new(
        config: SignalConfig,
        create: fn(&SignalConfig) -> Result<E, ClientError>,
    ) -> Result<Self, TelemetryError> {
        let files = WatchedFiles::of(&config);
        let (exporter, runtime) = on_own_runtime(|| create(&config))?;
        Ok(Self { exporter: Mutex::new((exporter, files)), config, runtime, create })
    }

    /// Sends from a thread of the SDK, after `prepare` if the exporter is a new one. The error says why it failed.
    pub(super) fn send(
        &self,
        prepare: impl FnOnce(&mut E),
        sending: impl AsyncFnOnce(&E) -> OTelSdkResult,
    ) -> Result<(), String> {
        let mut exporter = self.exporter.lock().unwrap_or_else(PoisonError::into_inner);
        if exporter.1.have_changed() {
            let _entered = self.runtime.enter();
            match (self.create)(&self.config) {
                Ok(mut new) => {
                    prepare(&mut new);
                    exporter.0 = new;
                }
                Err(error) => client::keep_certificates(&error),
            }
        }
        send(&self.config, &self.runtime, sending(&exporter.0))
    }

    pub(super) fn with<T>(&self, call: impl FnOnce(&mut E) -> T) -> T {
        call(&mut self.exporter.lock().unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// Sends from a thread of the SDK. The error says why it failed.
fn send(
    config: &SignalConfig,
    runtime: &Runtime,
    sending: impl Future<Output = OTelSdkResult>,
) -> Result<(), String> {
    let timeout = config.timeout;
    // opentelemetry-otlp does not retry after its timeout, but waits for a response indefinitely.
    let problem = match runtime.block_on(async { tokio::time::timeout(timeout, sending).await }) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(OTelSdkError::InternalFailure(problem))) => problem,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no response within {}", humantime::format_duration(timeout)),
    };
    let SignalConfig { signal, endpoint, protocol, .. } = config;
    Err(format!("{signal} to {endpoint} ({protocol}): {problem}"))
}

/// Configures an exporter over gRPC.
pub(super) fn grpc<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    config: &SignalConfig,
) -> Result<B, ClientError> {
    // A half-open connection would swallow requests: a ping detects it before a request times out. Servers in Go
    // tolerate two pings per request and close the connection at the third.
    let keep_alive = config.timeout * 2 / 5;
    let channel = client::grpc_endpoint(config)?
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .connect_lazy();
    let headers = MetadataMap::from_headers(config.headers.as_map().clone());
    let builder = builder
        .with_channel(channel)
        .with_timeout(config.timeout)
        // Applied last, after the headers from the environment.
        .with_interceptor(move |mut request: tonic::Request<()>| {
            request.metadata_mut().clone_from(&headers);
            Ok(request)
        });
    Ok(match compression(config) {
        Some(compression) => builder.with_compression(compression),
        None => builder,
    })
}

/// Configures an exporter over HTTP.
pub(super) fn http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    config: &SignalConfig,
) -> Result<B, ClientError> {
    let http = Http { http: client::Http::new(config)?, config: config.clone() };
    let builder = builder
        .with_http_client(http)
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        // Without credentials: for messages only, the client has the full URL.
        .with_endpoint(config.endpoint.to_string())
        .with_timeout(config.timeout);
    Ok(match compression(config) {
        Some(compression) => builder.with_compression(compression),
        None => builder,
    })
}

pub(super) fn setup(error: ExporterBuildError) -> ClientError {
    ClientError::Setup(error.to_string())
}

fn compression(config: &SignalConfig) -> Option<opentelemetry_otlp::Compression> {
    (config.compression == Compression::Gzip).then_some(opentelemetry_otlp::Compression::Gzip)
}

/// The relay's client, for bodies that `opentelemetry-otlp` encoded.
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
            // opentelemetry-otlp reports only a network error.
            if let Some(cause) = answer::from_transport(&self.config, &error).cause() {
                tracing::debug!("a request of this process's own telemetry failed: {cause}");
            }
            error.into()
        })
    }
}
