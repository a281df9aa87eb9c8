//! The exporter of the relay's own metrics, which are a service of their own: `runspan-relay`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::MetricExporter as Otlp;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use super::TelemetryError;
use super::transport::{self, Reloading};
use crate::otlp::Signal;
use crate::otlp::client::ClientError;
use crate::otlp::config::{Env, MetricsConfig, Protocol, Resource, SignalConfig};

/// The relay's metrics are not the application's, whose `service.name` the runs have.
const SERVICE_NAME: &str = "runspan-relay";

/// How long a shutdown waits for the last export.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Exports a relay's own metrics to an OTLP receiver every `OTEL_METRIC_EXPORT_INTERVAL`.
///
/// They are cumulative: the next export includes what a failed one contained.
#[must_use = "call shutdown at the end: it sends the last points"]
#[derive(Debug)]
pub struct RelayMetrics {
    /// `None` if metrics are turned off.
    provider: Option<SdkMeterProvider>,
}

impl RelayMetrics {
    /// Exports to the receiver of the standard `OTEL_*` variables. Sets the process's global meter provider, whose
    /// instruments are used by relays created later.
    ///
    /// # Errors
    /// An invalid variable, or certificates that cannot be loaded.
    pub fn install(env: Env<'_>) -> Result<Self, TelemetryError> {
        Self::install_as(&uuid::Uuid::now_v7().to_string(), env)
    }

    /// The same for a process that is one of many in a row: all have this `service.instance.id`, so that not each of them
    /// begins new series.
    ///
    /// # Errors
    /// As for [`install`](Self::install).
    pub fn install_as(instance_id: &str, env: Env<'_>) -> Result<Self, TelemetryError> {
        let config = SignalConfig::from_env(Signal::Metrics, env)?;
        let interval = MetricsConfig::from_env(env)?.interval;
        let Some(config) = config else { return Ok(Self { provider: None }) };
        let attributes = Resource::from_env(env)?;
        let attributes = attributes.attributes().iter().cloned();
        let resource = opentelemetry_sdk::Resource::builder_empty()
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance_id.to_owned()))
            // Where this process runs: namespace, environment, host, and its own id if there is one.
            .with_attributes(attributes.map(|(key, value)| opentelemetry::KeyValue::new(key, value)))
            .with_service_name(SERVICE_NAME)
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let reader = PeriodicReader::builder(Exporter::new(config)?).with_interval(interval).build();
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        opentelemetry::global::set_meter_provider(provider.clone());
        Ok(Self { provider: Some(provider) })
    }

    /// Sends the last points and stops, within 2 seconds.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The SDK blocks on its thread, which logs failed exports itself.
        let last = tokio::task::spawn_blocking(move || provider.shutdown());
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, last).await.is_err() {
            tracing::warn!("timed out exporting the relay's own final metrics");
        }
    }
}

/// For the SDK's reader, which calls it from a thread of its own.
#[derive(Debug)]
struct Exporter {
    otlp: Reloading<Otlp>,
    /// Whether the last export failed.
    failing: AtomicBool,
}

impl Exporter {
    fn new(config: SignalConfig) -> Result<Self, TelemetryError> {
        Ok(Self { otlp: Reloading::new(config, otlp)?, failing: AtomicBool::new(false) })
    }

    /// Logs once when exports start to fail, and once when they succeed again.
    fn record(&self, sent: Result<(), String>) -> OTelSdkResult {
        let failed_before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(problem) if !failed_before => {
                tracing::warn!("failed to export the relay's own metrics: {problem}");
            }
            Ok(()) if failed_before => tracing::info!("export of the relay's own metrics recovered"),
            _ => {}
        }
        sent.map_err(OTelSdkError::InternalFailure)
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.record(self.otlp.send(|_| (), async |otlp| otlp.export(metrics).await))
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.with(|otlp| otlp.force_flush())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.with(|otlp| otlp.shutdown_with_timeout(timeout))
    }

    fn temporality(&self) -> Temporality {
        self.otlp.with(|otlp| otlp.temporality())
    }
}

fn otlp(config: &SignalConfig) -> Result<Otlp, ClientError> {
    // Set explicitly: the crate would read the environment.
    let builder = Otlp::builder().with_temporality(Temporality::Cumulative);
    let built = match config.protocol {
        Protocol::Grpc => transport::grpc(builder.with_tonic(), config)?.build(),
        Protocol::HttpProtobuf => transport::http(builder.with_http(), config)?.build(),
    };
    built.map_err(transport::setup)
}
