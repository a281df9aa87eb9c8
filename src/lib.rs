#![doc = include_str!("../README.md")]

mod backoff;
pub mod run;
pub mod runs;
pub mod semconv;
pub mod trace_context;
pub mod redact;
pub mod journal;
pub mod series;
pub mod projection;
pub mod otlp;
pub mod store;
pub mod relay;
pub mod telemetry;
pub mod runtime;
pub mod demo;
pub mod cli;

pub use telemetry::{run_span, traceparent};
