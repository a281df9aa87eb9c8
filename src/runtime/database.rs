//! The application's database, as the runtime uses it: connections and transactions that [`runs`](crate::runs) accepts.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{Connection as _, Transaction};

use crate::database_url::DatabaseUrl;
use crate::runs::{Connection, RunsError};

/// How long to wait for a connection, or for SQLite's lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// A suspended process must release its locks before others consider it dead.
const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// A pool of connections to the database that holds `workflow_runs`. Clones share it.
#[derive(Clone, Debug)]
pub enum Database {
    /// PostgreSQL.
    Postgres(PgPool),
    /// SQLite.
    Sqlite(SqlitePool),
}

impl Database {
    /// Connects with at most `connections` connections; with one to SQLite, which has one writer: several connections
    /// would starve each other. Creates a missing SQLite file.
    pub async fn connect(url: &DatabaseUrl, connections: u32) -> Result<Self, RunsError> {
        Ok(match url {
            DatabaseUrl::Postgres { options, connect_timeout } => {
                // A pool would retry until its timeout and hide the cause.
                PgConnection::connect_with(options).await?.close().await?;
                let pool = PgPoolOptions::new()
                    .acquire_timeout(connect_timeout.unwrap_or(ACQUIRE_TIMEOUT))
                    .max_connections(connections);
                Self::Postgres(pool.connect_with((**options).clone()).await?)
            }
            DatabaseUrl::Sqlite(path) => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(ACQUIRE_TIMEOUT);
                let pool = SqlitePoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).max_connections(1);
                Self::Sqlite(pool.connect_with(options).await?)
            }
        })
    }

    /// A connection for statements outside of a transaction.
    pub async fn acquire(&self) -> Result<Session, sqlx::Error> {
        Ok(match self {
            Self::Postgres(pool) => Session::Postgres(pool.acquire().await?),
            Self::Sqlite(pool) => Session::Sqlite(pool.acquire().await?),
        })
    }

    /// Begins a READ COMMITTED transaction; on SQLite, one that holds the write lock.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Self::Postgres(pool) => Tx::Postgres(pool.begin_with(BEGIN).await?),
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
        })
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite(pool) => pool.close().await,
        }
    }
}

/// A connection of the pool.
#[derive(Debug)]
pub enum Session {
    /// To PostgreSQL.
    Postgres(PoolConnection<Postgres>),
    /// To SQLite.
    Sqlite(PoolConnection<Sqlite>),
}

impl Session {
    /// As an argument for [`runs`](crate::runs).
    pub fn runs(&mut self) -> Connection<'_> {
        match self {
            Self::Postgres(connection) => Connection::Postgres(connection),
            Self::Sqlite(connection) => Connection::Sqlite(connection),
        }
    }
}

/// A transaction, rolled back unless it is committed.
#[derive(Debug)]
pub enum Tx {
    /// On PostgreSQL.
    Postgres(Transaction<'static, Postgres>),
    /// On SQLite.
    Sqlite(Transaction<'static, Sqlite>),
}

impl Tx {
    /// As an argument for [`runs`](crate::runs).
    pub fn runs(&mut self) -> Connection<'_> {
        match self {
            Self::Postgres(tx) => Connection::Postgres(tx),
            Self::Sqlite(tx) => Connection::Sqlite(tx),
        }
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(tx) => tx.commit().await,
            Self::Sqlite(tx) => tx.commit().await,
        }
    }
}
