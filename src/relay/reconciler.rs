//! Table → journal: recovers the transitions that the triggers missed.
//!
//! Runs beside the projector, since comparing a million runs in flight takes seconds.

use std::sync::Arc;

use super::error::RelayError;
use super::term::Term;
use crate::store::{Reconciled, StoreError};

pub(super) struct Reconciler {
    pub(super) term: Arc<Term>,
}

impl Reconciler {
    /// Reconciles at once, again when the journal was empty, and then at intervals.
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let term = &self.term;
        let every = term.settings.reconcile_every;
        let mut was_empty = false;
        while !term.stop.is_cancelled() {
            // Takes minutes where there are many runs, in steps: it may end between any two.
            if let Some(reconciled) = term.unless_stopped(self.reconcile()).await {
                reconciled?;
            }
            if was_empty {
                term.reconciled.cancel();
                term.pause(every).await;
            } else {
                let empty = tokio::time::timeout(every, term.journal_empty.notified());
                was_empty = term.unless_stopped(empty).await.is_some_and(|empty| empty.is_ok());
            }
        }
        Ok(())
    }

    async fn reconcile(&self) -> Result<(), StoreError> {
        match self.term.store.reconcile().await {
            Ok(Reconciled { entries: 0, .. }) => {}
            Ok(Reconciled { entries, vanished }) => {
                self.term.counts.reconciled(entries);
                tracing::warn!(entries, "reconciliation recovered missing transitions");
                if vanished > 0 {
                    tracing::error!(
                        runs = vanished,
                        "the rows of runs in flight are gone without a DELETE that the triggers saw (TRUNCATE, a dropped or \
                         detached partition, disabled triggers); these runs end as `deleted`"
                    );
                }
            }
            // The table may be renamed, dropped or unreadable. Projecting and sending go on.
            Err(error) => match error.refusal() {
                Some(answer) => tracing::error!(
                    "cannot reconcile the table with the journal; missing transitions stay missing: {answer}"
                ),
                None => return Err(error),
            },
        }
        Ok(())
    }
}
