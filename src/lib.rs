//! runspan turns every durable workflow run into one OpenTelemetry span.

pub mod cli;
pub mod journal;
pub mod otlp;
pub mod projection;
pub mod redact;
pub mod relay;
pub mod run;
pub mod runs;
pub mod semconv;
pub mod store;
pub mod trace_context;
