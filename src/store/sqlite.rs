//! One SQLite file that its writers and the relay share: the embedded default.
//!
//! Write-ahead log, so that readers and the writer do not block each other; writes are `BEGIN IMMEDIATE` and
//! short, since while they last every other writer waits.

mod attach;
mod capture;
mod identity;
mod ids;
mod journal;
mod lease;
mod outbox;
mod reconcile;
mod rows;
mod series;
mod set_aside;
mod sql;
mod status;
mod stuck;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};

use self::ids::Ids;
use super::StoreError;

/// How long a statement waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite file.
#[derive(Clone)]
pub(super) struct SqliteStore {
    path: PathBuf,
    pool: SqlitePool,
    requests: Ids,
    deltas: Ids,
}

impl SqliteStore {
    pub(super) fn new(path: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            // A mistyped path is an error, not an empty database.
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            // What a receiver has acknowledged must not be sent otherwise after a power cut. At a process kill
            // alone NORMAL would lose nothing either; the relay commits seldom enough to afford the sync.
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(6)
            .acquire_timeout(BUSY_TIMEOUT)
            .idle_timeout(Duration::from_mins(1))
            .connect_lazy_with(options);
        Self {
            path: path.to_owned(),
            pool,
            requests: Ids::new("runspan_outbox"),
            deltas: Ids::new("runspan_deltas"),
        }
    }

    /// Begins a transaction that no other writer can interrupt.
    async fn writing(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// That there is a file: SQLite's own words do not name it.
    fn file(&self) -> Result<(), StoreError> {
        if self.path.is_file() {
            return Ok(());
        }
        Err(StoreError::Unfit(format!(
            "there is no database file {}: create it with your table first, or name yours with --database-url \
             sqlite:PATH",
            self.path.display()
        )))
    }
}
