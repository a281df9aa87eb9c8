//! The demo's side of the database: what an application does to its own table.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{Connection as _, Postgres, Sqlite};

use super::deliveries::Delivery;
use crate::run::RunId;
use crate::runs::{self, Connection, RunsError};
use crate::semconv::ErrorType;
use crate::store::DatabaseUrl;

/// `owner_kind` of every run of the demo: what else is in the table is none of its business.
pub(super) const OWNER: &str = "runspan-demo";

/// How long a connection or another writer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A database with a table of the demo's own.
pub(super) struct Database {
    pool: Pool,
}

enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// Whose runs are in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableOwner {
    /// There is no table.
    Nobody,
    /// An earlier demo's, or nobody's yet.
    Demo,
    /// An application's.
    Application,
}

/// A connection from the pool.
pub(super) enum Pooled {
    Postgres(PoolConnection<Postgres>),
    Sqlite(PoolConnection<Sqlite>),
}

impl Pooled {
    /// As the mutators take it.
    pub(super) fn get(&mut self) -> Connection<'_> {
        match self {
            Self::Postgres(connection) => (&mut **connection).into(),
            Self::Sqlite(connection) => (&mut **connection).into(),
        }
    }
}

impl Database {
    /// Connects, and creates a SQLite file that is not there.
    pub(super) async fn open(url: &DatabaseUrl) -> Result<Self, sqlx::Error> {
        let pool = match url {
            DatabaseUrl::Postgres(options) => {
                // A pool would try again and again, and then only say that time is up.
                PgConnection::connect_with(options).await?.close().await?;
                let pool = PgPoolOptions::new().acquire_timeout(PATIENCE);
                Pool::Postgres(pool.connect_lazy_with(options.as_ref().clone()))
            }
            DatabaseUrl::Sqlite(path) => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new().acquire_timeout(PATIENCE).max_connections(4);
                Pool::Sqlite(pool.connect_with(options).await?)
            }
        };
        Ok(Self { pool })
    }

    pub(super) async fn acquire(&self) -> Result<Pooled, sqlx::Error> {
        Ok(match &self.pool {
            Pool::Postgres(pool) => Pooled::Postgres(pool.acquire().await?),
            Pool::Sqlite(pool) => Pooled::Sqlite(pool.acquire().await?),
        })
    }

    pub(super) async fn close(&self) {
        match &self.pool {
            Pool::Postgres(pool) => pool.close().await,
            Pool::Sqlite(pool) => pool.close().await,
        }
    }

    /// Creates the table if it is missing.
    pub(super) async fn migrate(&self) -> Result<(), RunsError> {
        runs::migrate(self.acquire().await?.get()).await?;
        Ok(())
    }

    /// Ends what an interrupted demo has left in flight.
    pub(super) async fn reap(&self) -> Result<(), RunsError> {
        for run in self.in_flight().await? {
            runs::mark_failed(self.acquire().await?.get(), run, "owner lost: the demo was interrupted")
                .await?;
        }
        Ok(())
    }

    /// Whose table `workflow_runs` is.
    pub(super) async fn owner(&self) -> Result<TableOwner, sqlx::Error> {
        let (table, migrations): (bool, bool) = match &self.pool {
            Pool::Postgres(pool) => {
                sqlx::query_as(
                    "SELECT to_regclass('workflow_runs') IS NOT NULL,
                            to_regclass('workflow_runs_migrations') IS NOT NULL",
                )
                .fetch_one(pool)
                .await?
            }
            Pool::Sqlite(pool) => {
                sqlx::query_as(
                    "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'workflow_runs'),
                            EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'workflow_runs_migrations')",
                )
                .fetch_one(pool)
                .await?
            }
        };
        if !table {
            return Ok(TableOwner::Nobody);
        }
        let others = "SELECT EXISTS (SELECT 1 FROM workflow_runs WHERE coalesce(owner_kind, '') <> $1)";
        let others: bool = match &self.pool {
            // Not made by this crate's migrations: it may lack the column.
            _ if !migrations => true,
            Pool::Postgres(pool) => sqlx::query_scalar(others).bind(OWNER).fetch_one(pool).await?,
            Pool::Sqlite(pool) => sqlx::query_scalar(others).bind(OWNER).fetch_one(pool).await?,
        };
        Ok(if others { TableOwner::Application } else { TableOwner::Demo })
    }

    async fn in_flight(&self) -> Result<Vec<RunId>, sqlx::Error> {
        let sql = "SELECT CAST(id AS text) FROM workflow_runs WHERE status IN ('queued', 'running')";
        let ids: Vec<String> = match &self.pool {
            Pool::Postgres(pool) => sqlx::query_scalar(sql).fetch_all(pool).await?,
            Pool::Sqlite(pool) => sqlx::query_scalar(sql).fetch_all(pool).await?,
        };
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Writes down that a delivery led to no run.
    pub(super) async fn refuse(
        &self,
        workflow: &str,
        delivery: &Delivery,
        reason: ErrorType,
        inflight: Option<RunId>,
    ) -> Result<(), sqlx::Error> {
        let payload = &delivery.payload;
        let kind = payload.target.as_ref().map(|target| target.kind.as_str());
        let number = payload.target.as_ref().map(|target| target.number);
        match &self.pool {
            Pool::Postgres(pool) => {
                sqlx::query("SELECT runspan.dispatch_refused($1, $2, $3, $4, $5, $6, $7, $8)")
                    .bind(workflow)
                    .bind(kind)
                    .bind(&payload.owner)
                    .bind(&payload.repo)
                    .bind(number)
                    .bind(reason.as_str())
                    .bind(&delivery.id)
                    .bind(inflight.map(RunId::uuid))
                    .execute(pool)
                    .await?;
            }
            Pool::Sqlite(pool) => {
                sqlx::query("INSERT INTO runspan_dispatch_refused VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")
                    .bind(workflow)
                    .bind(kind)
                    .bind(&payload.owner)
                    .bind(&payload.repo)
                    .bind(number)
                    .bind(reason.as_str())
                    .bind(&delivery.id)
                    .bind(inflight.map(|run| run.to_string()))
                    .execute(pool)
                    .await?;
            }
        }
        Ok(())
    }

    /// Deletes the row of a run, as an operator might.
    pub(super) async fn delete(&self, run: RunId) -> Result<(), sqlx::Error> {
        self.statement("DELETE FROM workflow_runs WHERE CAST(id AS text) = $1", run).await
    }

    /// Ends a run whatever its state is, as a writer does that knows no mutators.
    pub(super) async fn overwrite(&self, run: RunId) -> Result<(), sqlx::Error> {
        self.statement("UPDATE workflow_runs SET status = 'succeeded' WHERE CAST(id AS text) = $1", run).await
    }

    async fn statement(&self, sql: &'static str, run: RunId) -> Result<(), sqlx::Error> {
        let run = run.to_string();
        match &self.pool {
            Pool::Postgres(pool) => sqlx::query(sql).bind(run).execute(pool).await.map(drop),
            Pool::Sqlite(pool) => sqlx::query(sql).bind(run).execute(pool).await.map(drop),
        }
    }

    /// How many of these runs have ended, by their rows.
    pub(super) async fn ended(&self, runs: &[RunId]) -> Result<usize, sqlx::Error> {
        let rows: i64 = match &self.pool {
            Pool::Postgres(pool) => {
                let ids: Vec<_> = runs.iter().map(|run| run.uuid()).collect();
                sqlx::query_scalar(
                    "SELECT count(*) FROM workflow_runs
                     WHERE id = ANY($1) AND status IN ('succeeded', 'failed', 'incomplete')",
                )
                .bind(ids)
                .fetch_one(pool)
                .await?
            }
            Pool::Sqlite(pool) => {
                sqlx::query_scalar(
                    "SELECT count(*) FROM workflow_runs WHERE id IN (SELECT value FROM json_each(?1))
                     AND status IN ('succeeded', 'failed', 'incomplete')",
                )
                .bind(serde_json::json!(runs).to_string())
                .fetch_one(pool)
                .await?
            }
        };
        Ok(usize::try_from(rows).unwrap_or_default())
    }
}
