//! The caller's connection or transaction to either database, and macros that run one statement on both.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArgumentsBuffer, SqliteConnection, SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Encode, Type};
use uuid::Uuid;

use crate::run::RunId;

/// A connection to the database of the table, from `&mut *connection` or `&mut *tx`.
#[derive(Debug)]
pub enum Connection<'c> {
    /// To PostgreSQL.
    Postgres(&'c mut PgConnection),
    /// To SQLite.
    Sqlite(&'c mut SqliteConnection),
}

impl Connection<'_> {
    /// The same connection with a shorter lifetime.
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

/// Executes a statement in PostgreSQL's or SQLite's dialect. Returns the number of changed rows.
macro_rules! execute {
    ($connection:expr, $postgres:expr, $sqlite:expr $(, $argument:expr)* $(,)?) => {
        match $connection {
            $crate::runs::Connection::Postgres(connection) => sqlx::query($postgres)
                $(.bind($argument))*.execute(&mut *connection).await.map(|done| done.rows_affected()),
            $crate::runs::Connection::Sqlite(connection) => sqlx::query($sqlite)
                $(.bind($argument))*.execute(&mut *connection).await.map(|done| done.rows_affected()),
        }
    };
}

/// Runs a query by `fetch_one`, `fetch_optional` or `fetch_all`, in PostgreSQL's or SQLite's dialect.
macro_rules! query {
    ($connection:expr, $fetch:ident, $postgres:expr, $sqlite:expr $(, $argument:expr)* $(,)?) => {
        match $connection {
            $crate::runs::Connection::Postgres(connection) => {
                sqlx::query_as($postgres)$(.bind($argument))*.$fetch(&mut *connection).await
            }
            $crate::runs::Connection::Sqlite(connection) => {
                sqlx::query_as($sqlite)$(.bind($argument))*.$fetch(&mut *connection).await
            }
        }
    };
}

// A run's id: a uuid in PostgreSQL, hyphenated text in SQLite.

impl Type<Postgres> for RunId {
    fn type_info() -> PgTypeInfo {
        <Uuid as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for RunId {
    fn array_type_info() -> PgTypeInfo {
        Uuid::array_type_info()
    }
}

impl Encode<'_, Postgres> for RunId {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <Uuid as Encode<'_, Postgres>>::encode_by_ref(&self.uuid(), buffer)
    }
}

impl Decode<'_, Postgres> for RunId {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        <Uuid as Decode<'_, Postgres>>::decode(value).map(Self::from)
    }
}

impl Type<Sqlite> for RunId {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }
}

impl Encode<'_, Sqlite> for RunId {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        <String as Encode<'_, Sqlite>>::encode(self.to_string(), buffer)
    }
}

impl Decode<'_, Sqlite> for RunId {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(<&str as Decode<'_, Sqlite>>::decode(value)?.parse()?)
    }
}
