//! A relay that runs in a task, and how to end it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::RelayError;
use super::status::{RelayStatus, SenderState, Snapshot};
use crate::store::{Store, StoreError};

/// How often a standby that runs until idle asks the database whether anything is left.
const STANDBY_POLL: Duration = Duration::from_secs(1);

/// How a relay ended that runs until idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Asked to stop.
    Stopped,
    /// Journal and outbox are empty, or `OTEL_SDK_DISABLED` switches the relay off.
    Idle,
    /// Everything else is sent; this many requests are dead.
    Dead(i64),
    /// A receiver refuses all that is left; its answer.
    Refused(String),
    /// The database cannot be used; the reason.
    DatabaseAway(String),
}

impl Ended {
    /// The same, unless the final metrics were refused.
    #[must_use]
    pub fn and_metrics(self, status: &RelayStatus) -> Self {
        match (self, status.snapshot().metrics) {
            (Self::Idle, Some(SenderState::Refused(answer))) => Self::Refused(answer),
            (ended, _) => ended,
        }
    }
}

/// A relay that runs in a task.
///
/// Dropping the handle leaves the relay running until the runtime ends; a later relay continues where it stopped.
pub struct RelayHandle {
    pub(super) store: Arc<dyn Store>,
    pub(super) status: RelayStatus,
    pub(super) stop: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<Result<(), RelayError>>,
}

impl RelayHandle {
    /// The state of the relay.
    pub fn status(&self) -> &RelayStatus {
        &self.status
    }

    /// Finishes the batch in progress, releases the lease, and ends.
    pub async fn stop(self) -> Result<(), RelayError> {
        self.stop.cancel();
        self.task.await.map_err(|_| RelayError::Panicked)?
    }

    /// Waits until journal and outbox are empty, or only dead or refused requests are left; then stops.
    pub async fn drain(self) -> Result<Ended, RelayError> {
        let Self { store, status, stop, mut task } = self;
        let ended = tokio::select! {
            ended = until_idle(&*store, &status) => ended,
            ended = &mut task => {
                return ended.map_err(|_| RelayError::Panicked)?.map(|()| Ended::Stopped);
            }
        };
        stop.cancel();
        task.await.map_err(|_| RelayError::Panicked)??;
        Ok(ended?.and_metrics(&status))
    }
}

/// Waits until nothing is left to do, or nothing more can be done.
pub async fn until_idle(store: &dyn Store, status: &RelayStatus) -> Result<Ended, StoreError> {
    let mut changes = status.subscribe();
    loop {
        let state = changes.borrow_and_update().clone();
        if state.is_disabled {
            return Ok(Ended::Idle);
        }
        if let Some(problem) = state.database_problem {
            return Ok(Ended::DatabaseAway(problem));
        }
        // The state of the tasks may be a moment old; the database is certain. A standby asks only the database.
        if state.is_idle() || state.stands_by {
            let stored = store.status().await?;
            if let Some(answer) = state.refusal().filter(|_| stored.journal_entries == 0) {
                return Ok(Ended::Refused(answer.to_owned()));
            }
            if stored.journal_entries == 0 && !has_pending_requests(store, &state).await? {
                let dead = stored.dead_requests;
                return Ok(if dead == 0 { Ended::Idle } else { Ended::Dead(dead) });
            }
        }
        let _ = tokio::time::timeout(STANDBY_POLL, changes.changed()).await;
    }
}

/// Whether a request is pending that this relay would send.
async fn has_pending_requests(store: &dyn Store, state: &Snapshot) -> Result<bool, StoreError> {
    for channel in state.senders.keys() {
        if store.next_request(*channel, None).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
