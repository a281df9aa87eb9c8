//! The database: journal, open runs, outbox, series and lease, in PostgreSQL and in SQLite.
//!
//! There is one trait per capability, and most callers need one: a sender uses [`OutboxStore`], the exporter
//! [`SeriesStore`]. [`Store`] combines them. Each backend has a file per capability, which contains the SQL and the
//! code that runs it. Callers see no type of a database driver but `sqlx::Error`.
//!
//! Every method is cancel safe: a dropped call changed everything that it should, or nothing. Which of the two is unknown
//! after a dropped or failed [`commit`](JournalStore::commit): take the lease again and read again.

mod admin;
mod capture;
mod columns;
mod connect_error;
mod error;
mod identity;
mod journal;
mod lease;
mod outbox;
mod own_statuses;
mod position;
mod postgres;
mod refused;
mod rows;
mod series;
mod set_aside;
mod sqlite;
mod status;
mod stuck;
mod template;

use std::sync::Arc;

pub use self::admin::{Admin, Attached, Detached, Plan, PurgeLoss};
pub use self::capture::CaptureProblem;
pub use self::error::StoreError;
pub use self::identity::IdentityStore;
pub use self::journal::{Batch, Commit, JournalStore, Reconciled};
pub use self::lease::{Lease, LeaseStore, LeaseView};
pub use self::outbox::{
    Channel, NewRequest, OutboxEntry, OutboxStore, Request, Selection, Settlement, Trimmed,
};
pub use self::position::{Pending, Position, Unread};
pub use self::series::{PendingTotals, SeriesStore};
pub use self::set_aside::{SetAside, SetAsideStore};
pub use self::status::{StatusStore, StoreStatus};
pub use self::stuck::{Stuck, StuckRun};
use crate::database_url::DatabaseUrl;

/// The version of runspan's own schema that this program knows.
pub const SCHEMA_VERSION: i32 = 3;

/// A database that runspan works on.
pub trait Store:
    Admin + IdentityStore + StatusStore + LeaseStore + JournalStore + OutboxStore + SetAsideStore + SeriesStore
{
}

impl<T> Store for T where
    T: Admin
        + IdentityStore
        + StatusStore
        + LeaseStore
        + JournalStore
        + OutboxStore
        + SetAsideStore
        + SeriesStore
{
}

/// Opens the database that `url` names. Connects lazily: a database that is away is an error of the first call.
pub fn open(url: &DatabaseUrl) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match url {
        DatabaseUrl::Postgres { options, connect_timeout } => {
            Arc::new(postgres::PgStore::new(options.as_ref().clone(), *connect_timeout))
        }
        DatabaseUrl::Sqlite(path) => Arc::new(sqlite::SqliteStore::new(path)),
    })
}
