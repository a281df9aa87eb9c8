//! The SDK's environment variables for metrics, as far as they apply to the durable metrics.
//!
//! A variable that requests what runspan cannot export is an error: a backend that expects deltas would compute wrong
//! rates from cumulative points.

use std::time::Duration;

use super::{ConfigError, Env, Problem, Variables, excerpt, parse_timeout};
use crate::otlp::Signal;

/// The specification's default (`sdk-environment-variables.md`, "Periodic exporting `MetricReader`").
const DEFAULT_INTERVAL: Duration = Duration::from_mins(1);

/// When and how points are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The time between two exports.
    pub interval: Duration,
    /// Whether histograms carry exemplars.
    pub exemplars: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { interval: DEFAULT_INTERVAL, exemplars: true }
    }
}

impl MetricsConfig {
    /// Reads the configuration. A variable that requests another kind of points is an error.
    pub fn from_env(env: Env<'_>) -> Result<Self, ConfigError> {
        fn read<T>(
            variables: &Variables<'_>,
            variable: &str,
            parse: impl Fn(&str) -> Result<T, Problem>,
        ) -> Result<Option<T>, ConfigError> {
            let parsed = variables.value(variable).map(|value| parse(&value)).transpose();
            parsed.map_err(|problem| ConfigError { variable: variable.to_owned(), problem })
        }
        let variables = Variables { signal: Signal::Metrics, env };
        read(&variables, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", cumulative)?;
        read(&variables, "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", explicit_buckets)?;
        Ok(Self {
            interval: read(&variables, "OTEL_METRIC_EXPORT_INTERVAL", parse_timeout)?
                .unwrap_or(DEFAULT_INTERVAL),
            exemplars: read(&variables, "OTEL_METRICS_EXEMPLAR_FILTER", exemplars)?.unwrap_or(true),
        })
    }
}

fn cumulative(value: &str) -> Result<(), Problem> {
    match value.to_ascii_lowercase().as_str() {
        "cumulative" => Ok(()),
        "delta" | "lowmemory" => Err(Problem::Delta),
        _ => Err(Problem::Temporality { value: excerpt(value) }),
    }
}

fn explicit_buckets(value: &str) -> Result<(), Problem> {
    match value.to_ascii_lowercase().as_str() {
        "explicit_bucket_histogram" => Ok(()),
        _ => Err(Problem::HistogramAggregation { value: excerpt(value) }),
    }
}

fn exemplars(value: &str) -> Result<bool, Problem> {
    match value.to_ascii_lowercase().as_str() {
        // Every run is in a trace.
        "always_on" | "trace_based" => Ok(true),
        "always_off" => Ok(false),
        _ => Err(Problem::ExemplarFilter { value: excerpt(value) }),
    }
}
