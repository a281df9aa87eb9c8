//! The state of a database, as health, metrics and commands show it. Reads only.

use async_trait::async_trait;

use super::{CaptureProblem, StoreError, Stuck};

/// The state of journal and outbox.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// Entries not yet projected.
    pub journal_entries: i64,
    /// The oldest of them, in seconds of age.
    pub journal_oldest_seconds: Option<f64>,
    /// Pending requests.
    pub waiting_requests: i64,
    /// Their size, in bytes.
    pub waiting_bytes: i64,
    /// The oldest of them, in seconds of age.
    pub waiting_oldest_seconds: Option<f64>,
    /// Dead requests.
    pub dead_requests: i64,
    /// Entries that were set aside.
    pub set_aside_entries: i64,
    /// Entries that the triggers could not write, since attach.
    pub skipped_entries: i64,
    /// Runs in flight.
    pub open_runs: i64,
    /// The most entries of the journal: beyond it the triggers skip them.
    pub journal_limit: i64,
}

impl StoreStatus {
    /// How full the journal is, in percent, rounded down.
    pub fn journal_percent(&self) -> i64 {
        self.journal_entries.saturating_mul(100) / self.journal_limit.max(1)
    }
}

/// Reads the state of a database.
#[async_trait]
pub trait StatusStore: Send + Sync + 'static {
    /// Checks that runspan is attached, in a version that this program knows.
    async fn check(&self) -> Result<(), StoreError>;

    /// The state of journal and outbox.
    async fn status(&self) -> Result<StoreStatus, StoreError>;

    /// The runs that are stuck now, at most `limit` of them, the oldest first.
    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError>;

    /// The table that has runspan's triggers, as the database names it now; none after a detach.
    async fn attached_table(&self) -> Result<Option<String>, StoreError>;

    /// Why transitions do not reach the journal; empty while they do.
    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError>;
}
