//! Journal and open runs: what is read, and what one transaction of the projector changes.
//!
//! Projecting is exactly once because [`JournalStore::commit`] is one transaction.

use std::collections::HashMap;

use async_trait::async_trait;

use super::{Lease, NewRequest, Position, StoreError};
use crate::journal::{Entry, Unreadable};
use crate::projection::Tracked;
use crate::run::RunId;
use crate::series::Totals;

/// Entries of the journal, in order, with their positions.
#[derive(Debug, Default)]
pub struct Batch {
    /// Each entry, or why it cannot be parsed.
    pub entries: Vec<(i64, Result<Entry, Unreadable>)>,
    /// The position once they are consumed.
    pub position: Position,
}

/// What the projector changes in one transaction.
#[derive(Debug, Default)]
pub struct Commit {
    /// The entries consumed, all of them.
    pub consumed: Vec<i64>,
    /// Those of them that cannot be parsed, with the error: set aside.
    pub set_aside: Vec<(i64, String)>,
    /// Open runs, new or changed.
    pub opened: Vec<(RunId, Tracked)>,
    /// Runs that are no longer open.
    pub closed: Vec<RunId>,
    /// Requests for the outbox.
    pub requests: Vec<NewRequest>,
    /// What the batch adds to the series.
    pub totals: Totals,
    /// The position after this commit.
    pub position: Position,
}

/// What a reconciliation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Entries that it wrote.
    pub entries: u64,
    /// Those of them that end a run whose row is gone without a `DELETE` that the triggers saw.
    pub vanished: u64,
}

/// Reads and consumes the journal.
#[async_trait]
pub trait JournalStore: Send + Sync + 'static {
    /// The position that the last commit left.
    async fn position(&self, instance: &str) -> Result<Position, StoreError>;

    /// Up to `limit` unread entries at `position`, oldest first.
    async fn read(&self, position: Position, limit: usize) -> Result<Batch, StoreError>;

    /// Those of `runs` that are open.
    async fn open_runs(&self, runs: &[RunId]) -> Result<HashMap<RunId, Tracked>, StoreError>;

    /// Commits a projected batch: all of `commit`, or nothing.
    async fn commit(&self, lease: &Lease, instance: &str, commit: &Commit) -> Result<(), StoreError>;

    /// Journals the transitions that the journal missed, in short transactions: it blocks no writer, and may be dropped
    /// between two of them.
    async fn reconcile(&self) -> Result<Reconciled, StoreError>;

    /// Gives back the journal's room of entries that are gone ([`journal_limit`](super::StoreStatus::journal_limit)).
    async fn make_room(&self) -> Result<(), StoreError>;

    /// Moves entries that no read would find above the position, in their order: the journal's sequence was set back, and
    /// their positions were read long ago. How many there were, if it was. Call it while nothing that was read is still in
    /// the journal.
    ///
    /// Searches where such entries are unless they were committed late; `everywhere` finds these too, but passes over every
    /// dead row that PostgreSQL has not vacuumed.
    async fn bring_forward(&self, position: &Position, everywhere: bool) -> Result<Option<u64>, StoreError>;
}
