//! The caller's connection or transaction, of either database.

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

/// A connection to the database that holds the table. Made from `&mut *connection`, `&mut *tx`.
#[derive(Debug)]
pub enum Connection<'c> {
    /// To PostgreSQL.
    Postgres(&'c mut PgConnection),
    /// To SQLite.
    Sqlite(&'c mut SqliteConnection),
}

impl Connection<'_> {
    /// The same connection, for a shorter time.
    pub fn reborrow(&mut self) -> Connection<'_> {
        match self {
            Self::Postgres(connection) => Connection::Postgres(connection),
            Self::Sqlite(connection) => Connection::Sqlite(connection),
        }
    }
}

impl<'c> From<&'c mut PgConnection> for Connection<'c> {
    fn from(connection: &'c mut PgConnection) -> Self {
        Self::Postgres(connection)
    }
}

impl<'c> From<&'c mut SqliteConnection> for Connection<'c> {
    fn from(connection: &'c mut SqliteConnection) -> Self {
        Self::Sqlite(connection)
    }
}
