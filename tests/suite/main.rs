//! The integration tests, in one binary: linking is what takes the time.
//!
//! A test lies where its subject lies in `src/`: `store`, `relay`, `runtime`, `otlp`, `series`, `semconv`, `telemetry`, `cli`,
//! `demo`. The others:
//!
//! | module | tests |
//! |---|---|
//! | `end_to_end` | real processes: psql, pgbench, `runspan relay`, the Collector, Prometheus |
//! | `collector`, `dashboards`, `rules`, `promql` | the files of `collector/` and `dashboards/` |
//! | `docs`, `module_order`, `public_api` | documents, layering and the public API against the code |
//! | `fan_out` | one application with many workflows |
//! | `fuzz` | properties of everything that parses |
//! | `golden` | the telemetry of a fixed journal, which must not change |
//!
//! Helpers with more than one user are in `tests/support`.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows test functions, but not the helpers of an integration test"
)]

#[macro_use]
extern crate runspan_test_support;

#[cfg(feature = "services")]
mod collector;
mod cli;
mod dashboards;
mod demo;
mod docs;
#[cfg(feature = "services")]
mod end_to_end;
mod fan_out;
mod fuzz;
mod golden;
mod module_order;
mod otlp;
mod promql;
mod public_api;
mod relay;
mod rules;
mod runs;
mod runtime;
mod semconv;
mod series;
mod store;
mod telemetry;
#[cfg(feature = "services")]
mod trace_context;

use runspan_test_support::{database, hooked, logged, points, projector, receiver, scoped};
