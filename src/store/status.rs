//! The state of a database, as health, metrics and commands show it. Reads only.

use async_trait::async_trait;

use super::{CaptureProblem, StoreError, Stuck};

/// How a database's journal and outbox stand.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// Entries not yet projected.
    pub journal_entries: i64,
    /// The oldest of them, in seconds of age.
    pub journal_oldest_seconds: Option<f64>,
    /// Requests waiting to be sent.
    pub waiting_requests: i64,
    /// Their size, in bytes.
    pub waiting_bytes: i64,
    /// The oldest of them, in seconds of age.
    pub waiting_oldest_seconds: Option<f64>,
    /// Requests that a receiver will never take.
    pub dead_requests: i64,
    /// Entries that could not be understood.
    pub set_aside_entries: i64,
    /// Entries that the triggers could not write, since attach.
    pub skipped_entries: i64,
    /// Runs in flight.
    pub open_runs: i64,
}

/// Reads the state of a database.
#[async_trait]
pub trait StatusStore: Send + Sync + 'static {
    /// That runspan is attached here, in a version that this program knows.
    async fn check(&self) -> Result<(), StoreError>;

    /// What tells this database, in this stretch of its history, from any other: `service.instance.id`.
    async fn instance(&self) -> Result<String, StoreError>;

    /// How journal and outbox stand.
    async fn status(&self) -> Result<StoreStatus, StoreError>;

    /// The runs that are stuck now, at most `limit` of them, the oldest first.
    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError>;

    /// The table that has runspan's triggers, as the database names it now; none after a detach.
    async fn attached_table(&self) -> Result<Option<String>, StoreError>;

    /// Why transitions do not reach the journal; empty while they do.
    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError>;
}
