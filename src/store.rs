//! Where journal, open runs, outbox and lease live: one trait, for PostgreSQL and for SQLite.
//!
//! Projecting is exactly once because [`Store::commit`] is one transaction; every transaction of a relay
//! begins by locking the lease's row, so one that has lost the lease changes nothing.

mod attach;
mod capture;
mod columns;
mod outbox;
mod position;
mod postgres;
mod reach;
mod rows;
mod series;
mod sqlite;
mod stuck;
mod template;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::sqlite::SqliteError;

pub use self::attach::{Attach, Attached, Detached, Plan, PurgeLoss};
pub use self::capture::CaptureProblem;
pub use self::outbox::{Channel, Listed, NewRequest, Request, Selection, Settlement, Trimmed};
pub use self::position::{Pending, Position, Unread};
use self::postgres::as_owner::Refused;
pub use self::series::{Fresh, SeriesStore};
pub use self::stuck::{Stuck, StuckRun};
use crate::database_url::DatabaseUrl;
use crate::journal::{Entry, Unreadable};
use crate::projection::Tracked;
use crate::run::RunId;
use crate::series::Totals;

/// The version of runspan's own schema that this program knows.
pub const SCHEMA_VERSION: i32 = 2;

/// Opens the database that `url` names. Connects lazily: a database that is away is an error of the first call.
pub fn open(url: &DatabaseUrl) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match url {
        DatabaseUrl::Postgres(options) => Arc::new(postgres::PgStore::new(options.as_ref().clone())),
        DatabaseUrl::Sqlite(path) => Arc::new(sqlite::SqliteStore::new(path)),
    })
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another relay has the lease. Nothing was changed.
    #[error("another relay has taken the lease")]
    LeaseLost,
    /// Entries that were read are gone: read again.
    #[error("the journal changed under the relay: {deleted} of {read} entries were still there")]
    JournalChanged {
        /// How many entries the batch held.
        read: usize,
        /// How many of them were still there.
        deleted: usize,
    },
    /// There is no runspan in this database.
    #[error("runspan is not attached to this database: run `runspan attach --database-url …` first")]
    NotAttached,
    /// A newer runspan has been here.
    #[error(
        "the runspan schema has version {found}, this program knows {SCHEMA_VERSION}: install a newer runspan"
    )]
    SchemaNewer {
        /// The version in the database.
        found: i32,
    },
    /// An older runspan attached this database.
    #[error(
        "the runspan schema has version {found}, this program needs {SCHEMA_VERSION}: run `runspan attach --database-url …` again, which keeps what is there"
    )]
    SchemaOlder {
        /// The version in the database.
        found: i32,
    },
    /// The table cannot be attached to.
    #[error("{0}")]
    Unfit(String),
    /// What is stored cannot be read.
    #[error("{what} is corrupt: {cause}")]
    Corrupt {
        /// Which thing.
        what: String,
        /// How so.
        cause: String,
    },
    /// The database refused, or is away.
    #[error("{}", reach::describe(.0))]
    Database(#[from] sqlx::Error),
}

/// That a schema of version `found` is the one that this program knows.
fn fits(found: i32) -> Result<(), StoreError> {
    match found.cmp(&SCHEMA_VERSION) {
        Ordering::Less if found == 0 => Err(StoreError::NotAttached),
        Ordering::Less => Err(StoreError::SchemaOlder { found }),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(StoreError::SchemaNewer { found }),
    }
}

impl StoreError {
    /// What the database says of a statement that it refused. Not of a connection that it refused or ended (`FATAL`):
    /// that is no word on the statement.
    pub fn refusal(&self) -> Option<&str> {
        let Self::Database(sqlx::Error::Database(error)) = self else { return None };
        let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
        let is_of_the_connection = matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic));
        (!is_of_the_connection).then(|| error.message())
    }

    /// Whether trying again later may help without anyone's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotAttached
            | Self::SchemaNewer { .. }
            | Self::SchemaOlder { .. }
            | Self::Unfit(_)
            | Self::Corrupt { .. } => false,
            Self::Database(sqlx::Error::Configuration(error)) => !error.is::<Refused>(),
            Self::Database(sqlx::Error::Database(error)) => !error.code().is_some_and(|code| {
                if error.try_downcast_ref::<SqliteError>().is_some() {
                    // The low byte is the kind. READONLY, CORRUPT, NOTADB.
                    matches!(code.parse().map(|code: i32| code & 0xff), Ok(8 | 11 | 26))
                } else {
                    // Class 28: invalid authorization; 3D000: no such database; 42501: insufficient privilege.
                    code.starts_with("28") || matches!(code.as_ref(), "3D000" | "42501")
                }
            }),
            Self::LeaseLost | Self::JournalChanged { .. } | Self::Database(_) => true,
        }
    }
}

/// The right to relay, held by this process until another takes it. Only a store makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    holder: String,
    epoch: i64,
}

impl Lease {
    /// Who holds it.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Rises whenever the lease changes hands.
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }
}

/// The lease as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Who holds it, if anyone ever did.
    pub holder: Option<String>,
    /// Rises whenever the lease changes hands.
    pub epoch: i64,
    /// When it expires by the database's clock, in microseconds since the epoch.
    pub expires_at: i64,
    /// Whether it has expired, by the database's clock.
    pub expired: bool,
}

/// Entries of the journal, in order, with their positions.
#[derive(Debug, Default)]
pub struct Batch {
    /// Each entry, or why it cannot be understood.
    pub entries: Vec<(i64, Result<Entry, Unreadable>)>,
    /// Where the journal stands once they are consumed.
    pub position: Position,
}

/// What the projector changes in one transaction.
#[derive(Debug, Default)]
pub struct Commit {
    /// The entries consumed, all of them.
    pub consumed: Vec<i64>,
    /// Those of them that could not be understood, with the error: kept aside.
    pub set_aside: Vec<(i64, String)>,
    /// Open runs, new or changed.
    pub opened: Vec<(RunId, Tracked)>,
    /// Runs that are no longer open.
    pub closed: Vec<RunId>,
    /// Requests for the outbox.
    pub requests: Vec<NewRequest>,
    /// What the batch adds to the series.
    pub totals: Totals,
    /// Where the journal stands now.
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

/// What the relay needs of a database.
///
/// Every method is cancel safe: a dropped call either changed everything it should, or nothing. After a dropped
/// or failed [`commit`](Self::commit) which of the two is unknown: take the lease anew and read again.
#[async_trait]
pub trait Store: Attach + SeriesStore {
    /// That runspan is attached here, in a version that this program knows.
    async fn check(&self) -> Result<(), StoreError>;

    /// What tells this database, in this stretch of its history, from any other: `service.instance.id`.
    async fn instance(&self) -> Result<String, StoreError>;

    /// The lease as it stands.
    async fn lease(&self) -> Result<LeaseView, StoreError>;

    /// Takes the lease if it still is as `seen`.
    async fn take_lease(
        &self,
        seen: &LeaseView,
        holder: &str,
        term: Duration,
    ) -> Result<Option<Lease>, StoreError>;

    /// Prolongs the lease by `term` from now.
    async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<(), StoreError>;

    /// Gives the lease back, so that another may take it at once.
    async fn release_lease(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Where the last commit left the journal.
    async fn position(&self, instance: &str) -> Result<Position, StoreError>;

    /// Up to `limit` entries of what is unread at `position`, oldest first.
    async fn read(&self, position: Position, limit: usize) -> Result<Batch, StoreError>;

    /// Those of `runs` that are open.
    async fn open_runs(&self, runs: &[RunId]) -> Result<HashMap<RunId, Tracked>, StoreError>;

    /// Makes a projected batch true: all of `commit`, or nothing.
    async fn commit(&self, lease: &Lease, instance: &str, commit: &Commit) -> Result<(), StoreError>;

    /// Journals what the journal missed. In short steps, each a transaction: it holds up no writer, and may be dropped
    /// between two of them.
    async fn reconcile(&self) -> Result<Reconciled, StoreError>;

    /// Gives entries that nobody would read a place that is yet to be read, in their order: somebody has set the journal's
    /// positions back, and theirs were read long ago. How many, if that was so. For when nothing that was read is still in
    /// the journal.
    ///
    /// Looks where they have to be unless they were committed late; `everywhere` finds these too, past whatever dead rows
    /// PostgreSQL has not cleaned.
    async fn bring_forward(&self, position: &Position, everywhere: bool) -> Result<Option<u64>, StoreError>;

    /// The first waiting request of a channel after `after` (its place and id), with its body.
    async fn next_request(
        &self,
        channel: Channel,
        after: Option<(i64, i64)>,
    ) -> Result<Option<Request>, StoreError>;

    /// Writes down what became of requests.
    async fn settle(&self, lease: &Lease, settlements: &[Settlement]) -> Result<(), StoreError>;

    /// Drops the oldest requests until the rest is at most `max_bytes`.
    async fn trim(&self, lease: &Lease, max_bytes: u64) -> Result<Trimmed, StoreError>;

    /// How journal and outbox stand.
    async fn status(&self) -> Result<StoreStatus, StoreError>;

    /// The runs that are stuck now, at most `limit` of them, the oldest first.
    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError>;

    /// The requests in the outbox, oldest first, at most `limit`.
    async fn list(&self, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// Makes dead requests wait again; how many.
    async fn retry(&self, selection: &Selection) -> Result<u64, StoreError>;

    /// Removes dead requests for good; how many.
    async fn discard(&self, selection: &Selection) -> Result<u64, StoreError>;
}
