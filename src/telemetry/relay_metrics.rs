//! The relay's own metrics, on their way to their receiver.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::MetricExporter as Otlp;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use tokio::runtime::Runtime;

use super::live::set;
use super::{TelemetryError, transport};
use crate::otlp::Signal;
use crate::otlp::client::ClientError;
use crate::otlp::config::{Env, MetricsConfig, Protocol, SignalConfig};

/// What the relay is called where its metrics arrive: the application's are another service's.
const SERVICE_NAME: &str = "runspan-relay";

/// How long the end waits for the last export.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(2);

/// The metrics that a relay has of itself, on their way to an OTLP receiver, every `OTEL_METRIC_EXPORT_INTERVAL`.
///
/// They are cumulative: what the receiver does not take, the next export tells.
#[must_use = "call shutdown at the end: the last points are sent then"]
#[derive(Debug)]
pub struct RelayMetrics {
    /// `None` where metrics are turned off.
    provider: Option<SdkMeterProvider>,
}

impl RelayMetrics {
    /// To the receiver of the standard `OTEL_*` variables. Becomes the process's global meter provider, whose
    /// instruments the relays use that are made from now on.
    ///
    /// # Errors
    /// A variable that cannot be understood, or a client that cannot be made of them.
    pub fn install(env: Env<'_>) -> Result<Self, TelemetryError> {
        let disabled = set(env, "OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let config = SignalConfig::from_env(Signal::Metrics, env)?.filter(|_| !disabled);
        let interval = MetricsConfig::from_env(env)?.interval;
        let Some(config) = config else { return Ok(Self { provider: None }) };
        let resource = opentelemetry_sdk::Resource::builder_empty()
            .with_service_name(SERVICE_NAME)
            .with_attribute(opentelemetry::KeyValue::new(
                "service.instance.id",
                uuid::Uuid::now_v7().to_string(),
            ))
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let reader = PeriodicReader::builder(Exporter::new(config)?).with_interval(interval).build();
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        opentelemetry::global::set_meter_provider(provider.clone());
        Ok(Self { provider: Some(provider) })
    }

    /// Sends the last points and ends; within 2 seconds, whatever the receiver does.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The SDK waits for its thread, which tells the log itself what is not taken.
        let last = tokio::task::spawn_blocking(move || provider.shutdown());
        if tokio::time::timeout(LONGEST_SHUTDOWN, last).await.is_err() {
            tracing::warn!("the relay's own last metrics were not taken in time");
        }
    }
}

/// For the SDK's reader, which calls it from a thread of its own.
#[derive(Debug)]
struct Exporter {
    otlp: Otlp,
    config: SignalConfig,
    runtime: Runtime,
    /// The receiver did not take the last export.
    failing: AtomicBool,
}

impl Exporter {
    fn new(config: SignalConfig) -> Result<Self, TelemetryError> {
        let (otlp, runtime) = transport::on_its_own(|| otlp(&config))?;
        Ok(Self { otlp, config, runtime, failing: AtomicBool::new(false) })
    }

    /// Says once that the receiver does not take them, and once that it does again.
    fn settle(&self, sent: Result<(), String>) -> OTelSdkResult {
        let failed_before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(problem) if !failed_before => {
                tracing::warn!("the relay's own metrics are not taken: {problem}");
            }
            Ok(()) if failed_before => tracing::info!("the receiver takes the relay's own metrics again"),
            _ => {}
        }
        sent.map_err(OTelSdkError::InternalFailure)
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.settle(transport::send(&self.config, &self.runtime, self.otlp.export(metrics)))
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.otlp.temporality()
    }
}

fn otlp(config: &SignalConfig) -> Result<Otlp, ClientError> {
    // Said here, as the crate would ask the environment.
    let builder = Otlp::builder().with_temporality(Temporality::Cumulative);
    let built = match config.protocol {
        Protocol::Grpc => transport::grpc(builder.with_tonic(), config)?.build(),
        Protocol::HttpProtobuf => transport::http(builder.with_http(), config)?.build(),
    };
    built.map_err(transport::setup)
}
