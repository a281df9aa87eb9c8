//! The table's migrations. Append-only: released migrations are never edited.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use super::{Connection, RunsError};

const POSTGRES: [&str; 2] =
    [include_str!("0001_workflow_runs.postgres.sql"), include_str!("0002_workflow_leases.postgres.sql")];
const SQLITE: [&str; 2] =
    [include_str!("0001_workflow_runs.sqlite.sql"), include_str!("0002_workflow_leases.sqlite.sql")];

/// Applies the missing migrations of `workflow_runs`, all or none, and returns their number. `connection` must not be in
/// a transaction.
pub async fn migrate<'c>(connection: impl Into<Connection<'c>>) -> Result<usize, RunsError> {
    match connection.into() {
        Connection::Postgres(connection) => postgres(connection).await,
        Connection::Sqlite(connection) => sqlite(connection).await,
    }
}

async fn postgres(connection: &mut PgConnection) -> Result<usize, RunsError> {
    let mut tx = connection.begin().await?;
    // Concurrent CREATE statements would fail.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('workflow_runs_migrations'))")
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS workflow_runs_migrations (
             version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
    )
    .execute(&mut *tx)
    .await?;
    let applied = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM workflow_runs_migrations")
        .fetch_one(&mut *tx)
        .await?;
    let missing = missing(&POSTGRES, applied)?;
    for (version, sql) in &missing {
        sqlx::raw_sql(*sql).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO workflow_runs_migrations (version) VALUES ($1)")
            .bind(version)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(missing.len())
}

async fn sqlite(connection: &mut SqliteConnection) -> Result<usize, RunsError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS workflow_runs_migrations (
             version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)",
    )
    .execute(&mut *tx)
    .await?;
    let applied = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM workflow_runs_migrations")
        .fetch_one(&mut *tx)
        .await?;
    let missing = missing(&SQLITE, applied)?;
    for (version, sql) in &missing {
        sqlx::raw_sql(*sql).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO workflow_runs_migrations (version) VALUES (?1)")
            .bind(version)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(missing.len())
}

/// The migrations after `applied`, with their numbers, which start at 1.
fn missing(all: &[&'static str], applied: i64) -> Result<Vec<(i64, &'static str)>, RunsError> {
    let numbered: Vec<_> = (1..).zip(all.iter().copied()).collect();
    let known = numbered.last().map_or(0, |(version, _)| *version);
    if applied > known {
        return Err(RunsError::Newer { found: applied, known });
    }
    Ok(numbered.into_iter().filter(|(version, _)| *version > applied).collect())
}
