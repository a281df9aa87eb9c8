//! Keeps the outbox within its maximum size, and gives back the room of consumed entries: the database is worth more than its
//! telemetry.

use std::sync::Arc;

use super::error::RelayError;
use super::term::Term;
use crate::store::StoreError;

pub(super) struct Housekeeper {
    pub(super) term: Arc<Term>,
}

impl Housekeeper {
    /// Checks the size after commits, at intervals.
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let term = &self.term;
        if let Some(answer) = self.make_room().await? {
            tracing::warn!(
                "cannot give back the room of consumed entries, so the journal may fill up: {answer}"
            );
        }
        while !term.stop.is_cancelled() {
            term.pause(term.settings.trim_every).await;
            if term.unless_stopped(term.committed.notified()).await.is_some() {
                self.trim().await?;
                self.make_room().await?;
            }
        }
        Ok(())
    }

    /// The database's answer, if it refuses. That ends nothing: projecting and sending go on.
    async fn make_room(&self) -> Result<Option<String>, StoreError> {
        match self.term.store.make_room().await {
            Ok(()) => Ok(None),
            Err(error) => match error.refusal() {
                Some(answer) => Ok(Some(answer.to_owned())),
                None => Err(error),
            },
        }
    }

    async fn trim(&self) -> Result<(), StoreError> {
        let term = &self.term;
        let trimmed = term.store.trim(&term.lease, term.settings.max_outbox).await?;
        if trimmed.requests > 0 {
            term.counts.dropped(trimmed.items);
            tracing::error!(
                requests = trimmed.requests,
                items = trimmed.items,
                max_bytes = term.settings.max_outbox,
                "the outbox is full: dropped its oldest requests; their spans and records are lost"
            );
        }
        Ok(())
    }
}
