//! Polls the database every few seconds, for the gauges, the health endpoint and the log.
//!
//! Every relay polls, the standby too. The gauges read what the last poll found, since the metrics SDK calls them on a
//! thread of its own, which must not wait for a database.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::capture;
use super::self_metrics::Instruments;
use super::status::{RelayStatus, Snapshot};
use crate::store::{Store, StoreError, StoreStatus};

/// How long the final poll may take.
const FINAL_POLL_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Poller<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) status: &'a RelayStatus,
    pub(super) instruments: &'a Arc<Instruments>,
    pub(super) capture: &'a capture::Watch,
    /// How full the journal was when that was last reported.
    pub(super) percent: AtomicI64,
}

impl Poller<'_> {
    pub(super) async fn run(&self, every: Duration) -> Infallible {
        loop {
            self.poll().await;
            tokio::time::sleep(every).await;
        }
    }

    /// Polls once more, so that the last export has the state in which the relay left the database.
    pub(super) async fn final_poll(&self) {
        let _ = tokio::time::timeout(FINAL_POLL_TIMEOUT, self.poll()).await;
    }

    /// A status that cannot be read is removed: exporting the old one would look like a fresh one.
    async fn poll(&self) {
        let polled: Result<_, StoreError> =
            async { Ok((self.store.instance().await?, self.store.status().await?)) }.await;
        match polled {
            Ok((database, status)) => {
                let before = self.status.snapshot();
                report_skipped(&before, &status);
                if before.lease_epoch.is_some() {
                    report_fill(self.percent.swap(status.journal_percent(), Ordering::Relaxed), &status);
                }
                if before.database.as_ref() != Some(&database) {
                    self.instruments.of(&database).begin();
                }
                self.status.update(|state| {
                    state.database = Some(database);
                    state.status = Some(status);
                });
                self.capture.check(self.store, self.status).await;
            }
            Err(error) => {
                tracing::debug!("cannot poll the database for the relay's metrics: {error}");
                self.status.update(|state| {
                    state.status = None;
                    state.capture = None;
                });
            }
        }
    }
}

/// Says when the journal passes half of its limit and the limit, and when it is below again.
fn report_fill(percent_before: i64, now: &StoreStatus) {
    let (entries, limit) = (now.journal_entries, now.journal_limit);
    match (percent_before, now.journal_percent()) {
        (..100, 100..) => tracing::error!(
            entries,
            limit,
            "the journal is full: the triggers skip transitions until a relay has consumed entries; reconciliation then \
             recovers runs that are still in flight"
        ),
        (..50, 50..) => tracing::warn!(
            entries,
            limit,
            "the journal is more than half full: find out what keeps the relay from consuming it, or raise the limit with \
             `runspan attach --max-journal-entries`"
        ),
        (50.., ..50) => tracing::info!(entries, limit, "the journal is less than half full again"),
        _ => {}
    }
}

/// Triggers never fail a writer: they only count the entries that they could not write.
fn report_skipped(before: &Snapshot, now: &StoreStatus) {
    let Some(known) = before.status.as_ref().filter(|_| before.lease_epoch.is_some()) else { return };
    let entries = now.skipped_entries - known.skipped_entries;
    if entries > 0 {
        tracing::error!(
            entries,
            "the triggers could not write transitions to the journal, which was locked or refused them: check what was \
             added to runspan.journal (constraints, triggers, rights) and its sequence, and run `runspan attach`; \
             reconciliation recovers runs that are still in flight"
        );
    }
}
