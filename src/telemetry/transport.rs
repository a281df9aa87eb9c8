//! What `opentelemetry-otlp` sends by: connections like the relay's.
//!
//! So there is one reading of the `OTEL_*` variables and one TLS for all that leaves this process. Two of the variables
//! that crate reads from the environment of the process, whatever it is told. For the headers both transports put the
//! configured ones, so that none is sent twice, or to a receiver that it is not meant for. The compression counts
//! where the configuration has none, which cannot be said to it.

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
use crate::otlp::client::{self, ClientError};
use crate::otlp::config::{Compression, SignalConfig};

/// Makes an exporter on a runtime of its own, so that sending needs nothing of the application's, also when that has
/// ended.
pub(super) fn on_its_own<E>(
    exporter: impl FnOnce() -> Result<E, ClientError>,
) -> Result<(E, Runtime), TelemetryError> {
    // Its one thread looks after the connection between exports: one that the receiver closes is replaced in time.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let exporter = {
        let _entered = runtime.enter();
        exporter()
    };
    match exporter {
        Ok(exporter) => Ok((exporter, runtime)),
        Err(error) => {
            // The caller may be on another runtime, where dropping one is not allowed.
            runtime.shutdown_background();
            Err(error.into())
        }
    }
}

/// Sends, from a thread of the SDK's; why that failed, if it did.
pub(super) fn send(
    config: &SignalConfig,
    runtime: &Runtime,
    sending: impl Future<Output = OTelSdkResult>,
) -> Result<(), String> {
    let timeout = config.timeout;
    // opentelemetry-otlp starts no retry after it, but would wait for an answer for ever.
    let problem = match runtime.block_on(async { tokio::time::timeout(timeout, sending).await }) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(OTelSdkError::InternalFailure(problem))) => problem,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {}", humantime::format_duration(timeout)),
    };
    let SignalConfig { signal, endpoint, protocol, .. } = config;
    Err(format!("{signal} to {endpoint} ({protocol}): {problem}"))
}

/// The builder of an exporter over gRPC, told all of the configuration.
pub(super) fn grpc<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    config: &SignalConfig,
) -> Result<B, ClientError> {
    // A connection that is only half there would swallow request after request: a ping finds it out before
    // the time for one is over. Servers in Go put up with two pings a request, and hang up at the third.
    let silence = config.timeout * 2 / 5;
    let channel = client::grpc_endpoint(config)?
        .http2_keep_alive_interval(silence)
        .keep_alive_timeout(silence)
        .connect_lazy();
    let headers = MetadataMap::from_headers(config.headers.as_map().clone());
    let builder = builder
        .with_channel(channel)
        .with_timeout(config.timeout)
        // It has the last word, after the headers of the environment.
        .with_interceptor(move |mut request: tonic::Request<()>| {
            request.metadata_mut().clone_from(&headers);
            Ok(request)
        });
    Ok(match compression(config) {
        Some(compression) => builder.with_compression(compression),
        None => builder,
    })
}

/// The builder of an exporter over HTTP, told all of the configuration.
pub(super) fn http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    config: &SignalConfig,
) -> Result<B, ClientError> {
    let http = Http { http: client::Http::new(config)?, config: config.clone() };
    let builder = builder
        .with_http_client(http)
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        // As it is shown, without credentials: the client knows the whole.
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
                tracing::debug!("a request of this process's own telemetry failed: {cause}");
            }
            error.into()
        })
    }
}
