//! The demo's own queries, and what an operator changes by hand.

use runspan::run::RunId;
use runspan::runs::{self, RunsError};
use runspan::runtime::Database;

/// What the names of the demo's processes begin with, and so the owners of its runs: what else is in the table is
/// none of its business.
pub(super) const NAME: &str = "runspan-demo";

/// How many connections the demo needs at most.
pub(super) const CONNECTIONS: u32 = 8;

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

/// Whose table `workflow_runs` is.
pub(super) async fn owner(database: &Database) -> Result<TableOwner, sqlx::Error> {
    const OTHERS: &str =
        "SELECT EXISTS (SELECT 1 FROM workflow_runs WHERE coalesce(owner_id, '') NOT LIKE $1)";
    let (table, migrations): (bool, bool) = match database {
        Database::Postgres(pool) => {
            sqlx::query_as(
                "SELECT to_regclass('workflow_runs') IS NOT NULL,
                        to_regclass('workflow_runs_migrations') IS NOT NULL",
            )
            .fetch_one(pool)
            .await?
        }
        Database::Sqlite(pool) => {
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
    let others: bool = match database {
        // Not made by this crate's migrations: it may lack the column.
        _ if !migrations => true,
        Database::Postgres(pool) => sqlx::query_scalar(OTHERS).bind(of(NAME)).fetch_one(pool).await?,
        Database::Sqlite(pool) => sqlx::query_scalar(OTHERS).bind(of(NAME)).fetch_one(pool).await?,
    };
    Ok(if others { TableOwner::Application } else { TableOwner::Demo })
}

/// The owners whose name begins so, as a pattern.
fn of(name: &str) -> String {
    format!("{name}-%")
}

/// Creates the table if it is missing, and ends what an interrupted demo has left in flight.
pub(super) async fn prepare(database: &Database) -> Result<(), RunsError> {
    const IN_FLIGHT: &str = "SELECT CAST(id AS text) FROM workflow_runs
        WHERE owner_id LIKE $1 AND status IN ('queued', 'running')";
    runs::migrate(database.acquire().await?.runs()).await?;
    for run in ids(database, IN_FLIGHT, NAME).await? {
        let mut session = database.acquire().await?;
        runs::mark_failed(session.runs(), run, "owner lost: the demo was interrupted").await?;
    }
    Ok(())
}

/// The runs that have ended of the processes whose name begins so.
pub(super) async fn ended(database: &Database, name: &str) -> Result<Vec<RunId>, sqlx::Error> {
    const ENDED: &str = "SELECT CAST(id AS text) FROM workflow_runs
        WHERE owner_id LIKE $1 AND status IN ('succeeded', 'failed', 'incomplete')";
    ids(database, ENDED, name).await
}

async fn ids(database: &Database, sql: &'static str, name: &str) -> Result<Vec<RunId>, sqlx::Error> {
    let ids: Vec<String> = match database {
        Database::Postgres(pool) => sqlx::query_scalar(sql).bind(of(name)).fetch_all(pool).await?,
        Database::Sqlite(pool) => sqlx::query_scalar(sql).bind(of(name)).fetch_all(pool).await?,
    };
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

/// What somebody does to a run's row who knows SQL, and no runtime.
#[derive(Clone, Copy, Debug)]
pub(super) enum ByHand {
    /// Deletes it.
    Delete,
    /// Fails it, for no reason.
    Fail,
    /// Ends it well, whatever it was.
    Succeed,
}

impl ByHand {
    pub(super) async fn to(self, run: RunId, database: &Database) -> Result<(), sqlx::Error> {
        let sql = match self {
            Self::Delete => "DELETE FROM workflow_runs WHERE CAST(id AS text) = $1",
            Self::Fail => "UPDATE workflow_runs SET status = 'failed' WHERE CAST(id AS text) = $1",
            Self::Succeed => "UPDATE workflow_runs SET status = 'succeeded' WHERE CAST(id AS text) = $1",
        };
        match database {
            Database::Postgres(pool) => sqlx::query(sql).bind(run.to_string()).execute(pool).await.map(drop),
            Database::Sqlite(pool) => sqlx::query(sql).bind(run.to_string()).execute(pool).await.map(drop),
        }
    }
}
