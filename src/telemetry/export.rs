//! The exporter of live spans.
//!
//! `opentelemetry-otlp` does not report spans that the receiver rejected from an accepted batch (`partial_success`).

use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::TelemetryError;
use super::transport::{self, Reloading};
use crate::otlp::client::ClientError;
use crate::otlp::config::{Protocol, SignalConfig};

/// For the SDK's batch processor, which calls it from a thread of its own.
#[derive(Debug)]
pub(super) struct Exporter {
    otlp: Reloading<Otlp>,
    resource: Option<Resource>,
    /// Spans lost since the last successful export.
    lost: AtomicU64,
}

impl Exporter {
    pub(super) fn new(config: SignalConfig) -> Result<Self, TelemetryError> {
        let otlp = Reloading::new(config, otlp)?;
        Ok(Self { otlp, resource: None, lost: AtomicU64::new(0) })
    }

    /// Logs once when exports start to fail, and once, with the number of lost spans, when they succeed again.
    fn record(&self, spans: u64, sent: Result<(), String>) -> OTelSdkResult {
        let Err(problem) = sent else {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::info!(lost, "export of handler spans recovered; some were lost");
            }
            return Ok(());
        };
        if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
            tracing::warn!("failed to export handler spans; they are lost: {problem}");
        }
        Err(OTelSdkError::InternalFailure(problem))
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let prepare = |otlp: &mut Otlp| {
            if let Some(resource) = &self.resource {
                otlp.set_resource(resource);
            }
        };
        self.record(spans, self.otlp.send(prepare, async |otlp| otlp.export(batch).await))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = Some(resource.clone());
        self.otlp.with(|otlp| otlp.set_resource(resource));
    }
}

fn otlp(config: &SignalConfig) -> Result<Otlp, ClientError> {
    let built = match config.protocol {
        Protocol::Grpc => transport::grpc(Otlp::builder().with_tonic(), config)?.build(),
        Protocol::HttpProtobuf => transport::http(Otlp::builder().with_http(), config)?.build(),
    };
    built.map_err(transport::setup)
}
