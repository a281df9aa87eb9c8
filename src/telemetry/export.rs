//! Finished spans, encoded as the OpenTelemetry SDK has them, sent by the relay's client.
//!
//! So there is one reading of the `OTEL_*` variables, one TLS and one judgement of answers for both kinds of spans.
//! (`opentelemetry-otlp` reads the headers and the compression of the environment whatever it is told, which would
//! hand one receiver's credentials to another, and is silent about spans that a receiver throws away.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};

use super::TelemetryError;
use crate::otlp::answer::{Answer, Kind};
use crate::otlp::client::Client;
use crate::otlp::config::SignalConfig;

/// The longest wait that is granted to a receiver which asks for one: meanwhile new spans queue up in memory.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// For the SDK's batch processor, which calls it from a thread of its own.
#[derive(Debug)]
pub(super) struct Exporter {
    client: Client,
    /// The thread's own, so that sending needs nothing of the application's runtime, also when that has ended.
    runtime: Runtime,
    resource: ResourceAttributesWithSchema,
    /// Spans lost since the receiver last took some.
    lost: AtomicU64,
}

impl Exporter {
    pub(super) fn new(config: &SignalConfig) -> Result<Self, TelemetryError> {
        Ok(Self {
            client: Client::new(config)?,
            runtime: Builder::new_current_thread().enable_all().build()?,
            resource: ResourceAttributesWithSchema::default(),
            lost: AtomicU64::new(0),
        })
    }

    /// Sends, and tries again for a few seconds: long enough for a Collector that restarts.
    async fn send(&self, request: Bytes) -> Answer {
        let attempt = || async {
            match self.client.send(request.clone()).await {
                accepted @ Answer::Accepted { .. } => Ok(accepted),
                refused => Err(refused),
            }
        };
        let patience = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(200))
            .with_max_times(3);
        attempt
            .retry(patience)
            .sleep(tokio::time::sleep)
            .when(may_pass)
            .adjust(|refused, wait| match refused {
                Answer::Retry { after: Some(after), .. } => wait.map(|wait| wait.max(*after)),
                _ => wait,
            })
            .await
            .unwrap_or_else(|refused| refused)
    }

    /// Says once that spans are being lost, and once how many it were.
    fn settle(&self, spans: u64, answer: &Answer) -> OTelSdkResult {
        let Some(cause) = answer.cause() else {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::info!(lost, "the receiver takes spans of handlers again; some were lost");
            }
            if let Answer::Accepted { rejected: rejected @ 1.., message } = answer {
                tracing::warn!(rejected, "the receiver threw spans of handlers away: {message}");
            }
            return Ok(());
        };
        if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
            tracing::warn!("spans of handlers are being lost: {cause}");
        }
        Err(OTelSdkError::InternalFailure(cause.to_string()))
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let answer = self.runtime.block_on(self.send(request.into()));
        self.settle(spans, &answer)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Whether the next attempt may fare better. A receiver that was silent for the whole of a timeout has had its time.
fn may_pass(refused: &Answer) -> bool {
    match refused {
        Answer::Retry { cause, after } => {
            cause.kind() != Kind::Timeout && after.is_none_or(|after| after <= LONGEST_WAIT)
        }
        _ => false,
    }
}
