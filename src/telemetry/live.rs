//! The export of live spans, and the log of a process of its own.

use std::io;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::export::Exporter;
use super::json_log::JsonLog;
use super::log_filter::log_filter;
use super::sampler::{self, SamplerError, variable};
use crate::otlp::Signal;
use crate::otlp::client::ClientError;
use crate::otlp::config::{ConfigError, Env, Resource, SignalConfig};

/// How long a shutdown waits for the exporter's thread, after the flush with its own 5 seconds.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The crates that export our own spans: their spans would cause further exports.
const TRANSPORT: [&str; 8] =
    ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_sdk", "reqwest", "tonic", "tower"];

/// Sets up a process without a subscriber: JSON lines on standard output, filtered by `RUST_LOG` (default `info`), and
/// spans to the receiver of the `OTEL_*` variables, if one is set.
///
/// # Errors
/// An invalid variable, or a subscriber that is already set.
pub fn init(env: Env<'_>) -> Result<Telemetry, TelemetryError> {
    // The targets of the application are not known here.
    let filter =
        log_filter(variable(env, "RUST_LOG").as_deref(), "info", |_| true).map_err(TelemetryError::Filter)?;
    let telemetry = Telemetry::from_env(env)?;
    // Lines within a run's span name the run, even if RUST_LOG allows only errors.
    let spans = filter_fn(|metadata| metadata.is_span() && *metadata.level() <= Level::INFO);
    tracing_subscriber::registry()
        .with(JsonLog::to(io::stdout).with_filter(filter.or(spans.with_max_level_hint(Level::INFO))))
        .with(telemetry.layer())
        .try_init()
        .map_err(|_| TelemetryError::SubscriberSet)?;
    Ok(telemetry)
}

/// Exports live spans to an OTLP receiver, in batches, from a thread of its own.
///
/// Unlike the spans of runs, they are best effort: spans that the receiver does not accept within a few seconds are lost
/// and logged.
#[must_use = "call shutdown at the end: it sends the last spans"]
#[derive(Debug)]
pub struct Telemetry {
    /// `None` if spans are turned off or no receiver is set.
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// With the receiver, resource and sampler of the standard `OTEL_*` variables. Sets nothing global.
    ///
    /// # Errors
    /// An invalid variable, or certificates that cannot be loaded.
    pub fn from_env(env: Env<'_>) -> Result<Self, TelemetryError> {
        let sampler = sampler::from_env(env)?;
        let config = SignalConfig::if_endpoint_named(Signal::Traces, env)?;
        let Some(config) = config else { return Ok(Self { provider: None }) };
        let attributes = Resource::from_env(env)?;
        let attributes = attributes.attributes().iter().cloned();
        let resource = opentelemetry_sdk::Resource::builder_empty()
            .with_attributes(attributes.map(|(key, value)| opentelemetry::KeyValue::new(key, value)))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_resource(resource)
            .with_batch_exporter(Exporter::new(config)?)
            .build();
        Ok(Self { provider: Some(provider) })
    }

    /// The layer that exports `tracing` spans, for a `tracing_subscriber::registry()`.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
    {
        let tracer = self.provider.as_ref()?.tracer(env!("CARGO_PKG_NAME"));
        let quiet = TRANSPORT.map(|target| (target, LevelFilter::OFF));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // The attribute `target` is the run's target.
            .with_target(false)
            // Source paths and worker threads say nothing about the run.
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_default(LevelFilter::INFO).with_targets(quiet));
        Some(layer)
    }

    /// Sends the spans that have ended.
    ///
    /// # Errors
    /// The receiver did not accept them.
    pub async fn flush(&self) -> Result<(), TelemetryError> {
        self.blocking(|provider| provider.force_flush()).await
    }

    /// Sends the remaining spans and stops, within 6 seconds.
    ///
    /// # Errors
    /// The receiver did not accept all of them.
    pub async fn shutdown(self) -> Result<(), TelemetryError> {
        // A shutdown sends too, but does not report the result.
        self.blocking(|provider| {
            let flushed = provider.force_flush();
            flushed.and(provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT))
        })
        .await
    }

    /// The SDK blocks on its thread, which must not happen on a worker of the async runtime.
    async fn blocking(
        &self,
        work: impl FnOnce(SdkTracerProvider) -> opentelemetry_sdk::error::OTelSdkResult + Send + 'static,
    ) -> Result<(), TelemetryError> {
        let Some(provider) = self.provider.clone() else { return Ok(()) };
        let done = tokio::task::spawn_blocking(move || work(provider)).await;
        done.map_err(|error| TelemetryError::Unsent(error.to_string()))?
            .map_err(|error| TelemetryError::Unsent(error.to_string()))
    }
}

/// Why telemetry could not be set up or sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// An invalid variable of the exporter or the resource.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An invalid variable of the sampler.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Certificates or keys that cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An invalid `RUST_LOG`.
    #[error("{0}")]
    Filter(String),
    /// The process already has a subscriber.
    #[error("this process already has a tracing subscriber: add Telemetry::layer to it instead")]
    SubscriberSet,
    /// No thread or file handle is available.
    #[error("cannot start the exporter of this process's own telemetry: {0}")]
    Start(#[from] io::Error),
    /// The receiver did not accept spans.
    #[error("failed to export handler spans: {0}")]
    Unsent(String),
}
