//! Real processes and real services: psql and pgbench, `runspan relay`, the OpenTelemetry Collector, and what they leave.

pub mod collector;
mod common;
pub mod database;
pub mod ledger;
pub mod output;
pub mod pooler;
pub mod process;

pub use self::common::{DEADLINE, LOOK, MIX, service, test_file, wait_for, wait_within};
