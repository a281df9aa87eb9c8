//! One term: the time from taking the lease to losing it or giving it back, and what its tasks share.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;

use super::self_metrics::Counts;
use super::settings::Settings;
use super::status::RelayStatus;
use super::warned::Warned;
use crate::otlp::encode::Encoder;
use crate::store::{Lease, Store};

/// What the tasks of one term share. All of it ends with the lease, so nothing here outlives the right to write.
pub(super) struct Term {
    pub(super) store: Arc<dyn Store>,
    pub(super) lease: Lease,
    /// `service.instance.id` of the database.
    pub(super) instance: String,
    pub(super) settings: Settings,
    pub(super) encoder: Encoder,
    pub(super) status: RelayStatus,
    /// What this relay has warned of, in this term or an earlier one.
    pub(super) warned: Arc<Warned>,
    pub(super) counts: Counts,
    /// The relay is asked to stop: finish the batch in progress.
    pub(super) stop: CancellationToken,
    /// The projector has finished: outbox and series grow no more.
    pub(super) projected: CancellationToken,
    /// The journal was found empty: entries no longer hide a difference between table and journal.
    pub(super) journal_empty: Notify,
    /// The table was reconciled after the journal was empty. What that found is in the journal.
    pub(super) reconciled: CancellationToken,
    /// A batch was committed: the outbox may have grown.
    pub(super) committed: Notify,
}

impl Term {
    /// The result of `work`, unless the relay is asked to stop first.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Pauses, or until the relay is asked to stop.
    pub(super) async fn pause(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.stop.cancelled()).await;
    }
}
