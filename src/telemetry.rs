//! Telemetry of this process: JSON log lines, live spans as children of the runs it executes, a relay's own metrics.
//!
//! [`run_span`] and [`traceparent`] serve any handler, whatever executes it and whichever subscriber the process has: they
//! need no feature. [`init`] sets up a process that has no subscriber yet; [`Telemetry`] is the same exporter for a process
//! that has one. Live spans are best effort, unlike the spans of runs: nothing stores them until they are acknowledged.

#[cfg(feature = "relay")]
mod export;
#[cfg(feature = "relay")]
mod json_log;
#[cfg(feature = "relay")]
mod live;
#[cfg(feature = "relay")]
mod log_filter;
#[cfg(any(feature = "relay", feature = "runtime"))]
mod panics;
#[cfg(feature = "relay")]
mod relay_metrics;
#[cfg(feature = "relay")]
mod sampler;
mod span;
#[cfg(feature = "relay")]
mod transport;

#[cfg(feature = "relay")]
pub use self::live::{Telemetry, TelemetryError, init};
#[cfg(feature = "relay")]
pub use self::log_filter::log_filter;
#[cfg(any(feature = "relay", feature = "runtime"))]
pub use self::panics::log_panics;
#[cfg(feature = "relay")]
pub use self::relay_metrics::RelayMetrics;
#[cfg(feature = "relay")]
pub use self::sampler::SamplerError;
pub use self::span::{outgoing_traceparent, run_span, traceparent};
