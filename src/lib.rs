#![doc = include_str!("../README.md")]
//! # Features of the library
//!
//! | feature | adds |
//! |---|---|
//! | none (`default-features = false`) | [`runs`], the functions that change the table; [`run_span`] and [`traceparent`] |
//! | `relay` | `relay`, `store` and what they consist of; the exporter of live spans in [`telemetry`] |
//! | `runtime` | `runtime`: dispatcher, executor, orchestrator, reaper |
//! | `redis` | `runtime`, with its queue between processes |
//! | `cli` (default) | `relay`, `runtime` and the command `runspan` |

#[cfg(any(feature = "relay", feature = "runtime"))]
mod backoff;
#[cfg(any(feature = "relay", feature = "runtime"))]
mod error_chain;
#[cfg(any(feature = "relay", feature = "runtime"))]
mod outage;
pub mod run;
pub mod runs;
pub mod semconv;
pub mod trace_context;
#[cfg(any(feature = "relay", feature = "runtime"))]
pub mod redact;
#[cfg(any(feature = "relay", feature = "runtime"))]
mod database_url;
#[cfg(feature = "relay")]
pub mod journal;
#[cfg(feature = "relay")]
pub mod series;
#[cfg(feature = "relay")]
pub mod projection;
#[cfg(feature = "relay")]
pub mod store;
#[cfg(feature = "relay")]
pub mod otlp;
#[cfg(feature = "relay")]
pub mod relay;
pub mod telemetry;
#[cfg(feature = "runtime")]
pub mod runtime;

#[cfg(any(feature = "relay", feature = "runtime"))]
pub use database_url::{DatabaseUrl, InvalidDatabaseUrl};
pub use telemetry::{run_span, traceparent};
