//! The durable metrics: sums that were acknowledged, and totals that are pending.

use async_trait::async_trait;

use super::{Lease, StoreError};
use crate::run::Timestamp;
use crate::series::{Change, InFlight, Recorded, Totals};

/// Totals that the exporter has not merged yet.
#[derive(Debug)]
pub struct PendingTotals {
    /// The database's time: the time of the points, whatever a relay's clock says.
    pub now: Timestamp,
    /// Pending totals, with their places, rising.
    pub totals: Vec<(i64, Totals)>,
    /// How many pending totals there are up to the place that was asked for: those that the caller knows, unless their
    /// sequence was set back.
    pub up_to: usize,
}

/// The durable metrics of a database.
#[async_trait]
pub trait SeriesStore: Send + Sync + 'static {
    /// What was acknowledged; `None` before the first export.
    async fn recorded(&self) -> Result<Option<Recorded>, StoreError>;

    /// The time, and up to `limit` pending totals after the place `after`: one statement, for the lease's holder.
    async fn pending_totals(
        &self,
        lease: &Lease,
        after: i64,
        limit: usize,
    ) -> Result<PendingTotals, StoreError>;

    /// Records what has changed.
    async fn record(&self, lease: &Lease, change: &Change) -> Result<(), StoreError>;

    /// The runs in flight, as the table has them.
    async fn in_flight(&self) -> Result<Vec<InFlight>, StoreError>;

    /// How many entries the triggers could not write, since attach.
    async fn skipped_entries(&self) -> Result<u64, StoreError>;
}
