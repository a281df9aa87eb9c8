//! The integration tests of the whole project, in one binary: linking is what takes the time.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows test functions, but not the helpers of an integration test"
)]

#[macro_use]
mod database;
mod hooked;
mod points;
mod receiver;
#[macro_use]
mod relay;

mod attach;
mod capture;
#[cfg(feature = "services")]
mod collector;
mod command;
mod contract;
mod dashboards;
mod delivery;
mod demo;
mod docs;
#[cfg(feature = "services")]
mod end_to_end;
mod fan_out;
mod fuzz;
mod golden;
mod journal;
mod lease;
mod logged;
mod module_order;
mod newer;
mod otlp;
mod outbox;
#[cfg(feature = "services")]
mod postgres;
#[cfg(feature = "services")]
mod processes;
mod promql;
mod queue;
mod reconcile;
mod relay_metrics;
mod rules;
mod runs;
mod runtime;
mod scoped;
mod series;
mod set_back;
mod sqlite_file;
mod stuck;
mod telemetry;
#[cfg(feature = "services")]
mod traceparent;
