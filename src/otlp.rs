//! OTLP: encodes requests, sends them, and classifies the receivers' answers.
//!
//! The relay must know exactly why a request was not accepted, which `opentelemetry-otlp` hides. So [`config`] reads the
//! standard `OTEL_*` variables, [`encode`] makes requests, [`client`] sends one over gRPC or HTTP, and [`answer`]
//! classifies its answer.

pub mod answer;
pub mod body;
pub mod client;
pub mod config;
pub mod encode;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One of the three kinds of telemetry, each with its own requests, endpoint and sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Spans.
    Traces,
    /// Log records.
    Logs,
    /// Metric points.
    Metrics,
}

impl Signal {
    /// Every signal, in a fixed order.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Logs, Self::Metrics];

    /// The lowercase name, as in `/v1/traces`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }

    /// The name inside environment variables, as in `OTEL_TRACES_EXPORTER`.
    const fn in_variables(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Logs => "LOGS",
            Self::Metrics => "METRICS",
        }
    }

    /// The path of the gRPC method for this signal's requests.
    const fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is none of `traces`, `logs` and `metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a signal: use traces, logs or metrics")]
pub struct UnknownSignal;

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        Self::ALL.into_iter().find(|signal| signal.as_str() == text).ok_or(UnknownSignal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_everywhere() {
        for signal in Signal::ALL {
            assert_eq!(signal.to_string().parse(), Ok(signal));
            assert_eq!(serde_json::to_string(&signal).unwrap(), format!("\"{signal}\""));
            assert_eq!(signal.in_variables().to_lowercase(), signal.as_str());
        }
        assert_eq!("Traces".parse::<Signal>(), Err(UnknownSignal));
    }
}
