//! The journal, read in batches.
//!
//! The reader owns the position, and the one exception to it: entries that no read at the position would find, since
//! somebody has set the journal's sequence back (`setval`, a logical cut-over).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::term::Term;
use crate::store::{Batch, Position, StoreError, StoreStatus};

/// A transaction that was in progress when the sequence was set back may commit this much later. Until then entries
/// are looked for on every read, so that they are read in order.
const SET_BACK_WINDOW: Duration = Duration::from_secs(10);

/// How often an empty journal is searched for entries whose positions were set back.
const IDLE_SEARCH: Duration = Duration::from_secs(2);

/// A batch, as read.
pub(super) struct ReadBatch {
    pub(super) began: Instant,
    /// Whether the table had been reconciled before the read.
    pub(super) is_reconciled: bool,
    pub(super) batch: Batch,
}

pub(super) struct Reader {
    term: Arc<Term>,
    position: Position,
    last_search: Instant,
    last_full_search: Option<Instant>,
    last_set_back: Option<Instant>,
}

impl Reader {
    pub(super) async fn open(term: Arc<Term>) -> Result<Self, StoreError> {
        let position = term.store.position(&term.instance).await?;
        Ok(Self { term, position, last_search: Instant::now(), last_full_search: None, last_set_back: None })
    }

    /// Reads the next batch and moves the position behind it.
    pub(super) async fn read(&mut self) -> Result<ReadBatch, StoreError> {
        let began = Instant::now();
        let is_reconciled = self.term.reconciled.is_cancelled();
        let batch = self.term.store.read(self.position.clone(), self.term.settings.batch.get()).await?;
        self.position.clone_from(&batch.position);
        Ok(ReadBatch { began, is_reconciled, batch })
    }

    /// Reads the next batch where nothing is in progress, that is, where everything read before is gone from the journal.
    ///
    /// Only then does an entry that no read would find show that the sequence was set back. The search comes after the
    /// read, since the entry may have been committed just before it; then everything is read again, in order: an end must
    /// not come before its beginning.
    pub(super) async fn read_alone(&mut self) -> Result<ReadBatch, StoreError> {
        let before = self.position.clone();
        let read = self.read().await?;
        if read.batch.entries.is_empty() && self.last_search.elapsed() < IDLE_SEARCH {
            return Ok(read);
        }
        self.last_search = Instant::now();
        if !self.bring_forward(&before).await? {
            return Ok(read);
        }
        self.position = before;
        self.read().await
    }

    /// Whether the position has so many gaps that they have to be merged before more is read ahead.
    pub(super) fn has_too_many_gaps(&self) -> bool {
        self.position.has_too_many_gaps()
    }

    /// Merges gaps of the position. Only while nothing that was read is uncommitted: it would be read again.
    pub(super) fn merge_gaps(&mut self) {
        self.position.merge_gaps();
    }

    /// Moves the entries that no read would find to where one does; whether there were any.
    ///
    /// The full search, which finds late commits too, passes over every dead row that PostgreSQL has not vacuumed. So it
    /// runs only once in a while, where the last status had entries, and on every read just after a set-back.
    async fn bring_forward(&mut self, position: &Position) -> Result<bool, StoreError> {
        let term = &self.term;
        let is_due = self.last_full_search.is_none_or(|last| last.elapsed() >= term.settings.look_every);
        let has_entries = |status: &StoreStatus| status.journal_entries > 0;
        let is_new = self.last_set_back.is_none_or(|last| last.elapsed() > SET_BACK_WINDOW);
        let everywhere = !is_new || is_due && term.status.snapshot().status.as_ref().is_some_and(has_entries);
        if everywhere {
            self.last_full_search = Some(Instant::now());
        }
        match term.store.bring_forward(position, everywhere).await {
            Ok(None) => Ok(false),
            Ok(Some(entries)) => {
                self.last_set_back = Some(Instant::now());
                if is_new {
                    tracing::warn!(
                        entries,
                        read_up_to = position.highest(),
                        "the journal's sequence was set back (setval() or a restore): entries below the position were \
                         moved above it"
                    );
                }
                Ok(entries > 0)
            }
            // An older runspan attached here, or the relay's role lacks a grant. Everything else is still read.
            Err(error) if error.refusal().is_some() => {
                tracing::debug!("cannot search for entries below the position: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
