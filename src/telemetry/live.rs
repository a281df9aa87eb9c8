//! The export of live spans, and the log of a process of its own.

use std::io;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, LevelFilter, ParseError, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::export::Exporter;
use super::json_log::JsonLog;
use super::sampler::{self, SamplerError};
use crate::otlp::Signal;
use crate::otlp::client::ClientError;
use crate::otlp::config::{ConfigError, Env, Resource, SignalConfig};

/// How long the end waits for the exporter's thread, which has had the SDK's 5 seconds to send what was left.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(1);

/// What carries our own spans to their receiver: spans of it would beget more of it.
const TRANSPORT: [&str; 8] =
    ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_sdk", "reqwest", "tonic", "tower"];

/// Sets up a process of its own: JSON lines on standard output, `RUST_LOG` saying which (default `info`), and spans
/// to the receiver of the `OTEL_*` variables, if one is named.
///
/// # Errors
/// A variable that cannot be understood, or a subscriber that the process has already: it is never overruled.
pub fn init(env: Env<'_>) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(set(env, "RUST_LOG").as_deref().unwrap_or("info"))?;
    let telemetry = Telemetry::from_env(env)?;
    // A line below a run's span names the run, also where RUST_LOG lets only errors through.
    let spans = filter_fn(|metadata| metadata.is_span() && *metadata.level() <= Level::INFO);
    tracing_subscriber::registry()
        .with(JsonLog::to(io::stdout).with_filter(filter.or(spans.with_max_level_hint(Level::INFO))))
        .with(telemetry.layer())
        .try_init()
        .map_err(|_| TelemetryError::SubscriberSet)?;
    Ok(telemetry)
}

/// Live spans on their way to an OTLP receiver, in batches, from a thread of its own.
///
/// They are best effort, unlike those of runs: what the receiver does not take within a few seconds is lost, and
/// the log says so.
#[must_use = "call shutdown at the end: the last spans are sent then"]
#[derive(Debug)]
pub struct Telemetry {
    /// `None` where spans are turned off, or nobody has named a receiver.
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// For the receiver, the resource and the sampler of the standard `OTEL_*` variables. Nothing global is set.
    ///
    /// # Errors
    /// A variable that cannot be understood, or a client that cannot be made of them.
    pub fn from_env(env: Env<'_>) -> Result<Self, TelemetryError> {
        let sampler = sampler::from_env(env)?;
        let disabled = set(env, "OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let config = if disabled { None } else { SignalConfig::if_endpoint_named(Signal::Traces, env)? };
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

    /// The layer that turns `tracing` spans into live ones, for a `tracing_subscriber::registry()`.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
    {
        let tracer = self.provider.as_ref()?.tracer(env!("CARGO_PKG_NAME"));
        let quiet = TRANSPORT.map(|target| (target, LevelFilter::OFF));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // The attribute `target` is the run's.
            .with_target(false)
            // Where a build lay and which worker polled are no news of the run.
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_default(LevelFilter::INFO).with_targets(quiet));
        Some(layer)
    }

    /// Sends the spans that have ended.
    ///
    /// # Errors
    /// They were not taken.
    pub async fn flush(&self) -> Result<(), TelemetryError> {
        self.blocking(|provider| provider.force_flush()).await
    }

    /// Sends what is left, and ends; within 6 seconds, whatever the receiver does.
    ///
    /// # Errors
    /// Not all was taken.
    pub async fn shutdown(self) -> Result<(), TelemetryError> {
        // Shutting down sends too, but does not say what became of it.
        self.blocking(|provider| {
            let flushed = provider.force_flush();
            flushed.and(provider.shutdown_with_timeout(LONGEST_SHUTDOWN))
        })
        .await
    }

    /// The SDK waits for its thread: not on one of the runtime's workers.
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

/// A variable's value; an empty one is unset.
pub(super) fn set(env: Env<'_>, variable: &str) -> Option<String> {
    env(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Telemetry that cannot be set up, or was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// A variable of the exporter or the resource.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A variable of the sampler.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Certificates, keys.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// `RUST_LOG`.
    #[error("RUST_LOG cannot be understood ({0}): set it to e.g. info or warn,runspan=debug")]
    Filter(#[from] ParseError),
    /// The process has a subscriber.
    #[error("this process has a tracing subscriber already: add Telemetry::layer to it instead")]
    SubscriberSet,
    /// No thread, no file handles.
    #[error("the exporter of this process's own telemetry cannot start: {0}")]
    Start(#[from] io::Error),
    /// Spans did not reach their receiver.
    #[error("spans of handlers were not sent: {0}")]
    Unsent(String),
}
