//! One isolated database a test, of either kind, with an empty `workflow_runs`.

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use runspan::run::{RunId, Target, TargetKind};
use runspan::runs::{self, NewRun};
use runspan::store::{self, Attached, Plan, Store};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tempfile::TempDir;

/// Makes a test of each function, for SQLite and (with the feature `services`) for PostgreSQL.
#[macro_export]
macro_rules! on_every_database {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                $crate::database::Database::sqlite().await.run(super::$test).await;
            })+
        }
        #[cfg(feature = "services")]
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                $crate::database::Database::postgres().await.run(super::$test).await;
            })+
        }
    };
}

/// Makes a test of each function, for PostgreSQL alone.
#[macro_export]
macro_rules! on_postgres {
    ($($test:ident),+ $(,)?) => {
        mod tests {
            $(#[tokio::test]
            async fn $test() {
                $crate::database::Database::postgres().await.run(super::$test).await;
            })+
        }
    };
}

pub struct Database {
    /// As `--database-url` takes it.
    pub url: String,
    home: Home,
}

enum Home {
    #[expect(dead_code, reason = "removed when dropped")]
    File(TempDir),
    Server {
        name: String,
        admin: String,
    },
}

impl Database {
    pub async fn sqlite() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("app.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        runs::migrate(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        Self { url: format!("sqlite:{}", path.display()), home: Home::File(home) }
    }

    pub async fn postgres() -> Self {
        let admin = std::env::var("RUNSPAN_TEST_POSTGRES_URL")
            .expect("RUNSPAN_TEST_POSTGRES_URL names no PostgreSQL server: run `make test`");
        let name = format!("runspan_test_{}", uuid::Uuid::new_v4().simple());
        let mut server = PgConnection::connect(&admin).await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut server).await.unwrap();
        let mut url = url::Url::parse(&admin).unwrap();
        url.set_path(&name);
        let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
        runs::migrate(&mut connection).await.unwrap();
        Self { url: url.into(), home: Home::Server { name, admin } }
    }

    /// Runs a test, and removes the database whether it fails or not.
    pub async fn run(self, test: impl AsyncFnOnce(&Self)) {
        let result = AssertUnwindSafe(test(&self)).catch_unwind().await;
        self.remove().await;
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    async fn remove(self) {
        if let Home::Server { name, admin } = &self.home {
            let mut server = PgConnection::connect(admin).await.unwrap();
            for sql in [
                format!("DROP DATABASE {name} WITH (FORCE)"),
                format!("DROP ROLE IF EXISTS {name}_app, {name}_owner"),
            ] {
                sqlx::query(AssertSqlSafe(sql)).execute(&mut server).await.unwrap();
            }
        }
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.home, Home::Server { .. })
    }

    /// The database's name (PostgreSQL): a prefix for roles, which the whole server shares.
    pub fn name(&self) -> &str {
        match &self.home {
            Home::Server { name, .. } => name,
            Home::File(_) => unreachable!("a file has no roles"),
        }
    }

    /// One of runspan's own tables.
    pub fn own(&self, table: &str) -> String {
        if self.is_postgres() { format!("runspan.{table}") } else { format!("runspan_{table}") }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        store::open(&self.url.parse().unwrap()).unwrap()
    }

    /// Attaches to `workflow_runs`.
    pub async fn attach(&self) -> (Arc<dyn Store>, Attached) {
        let store = self.store();
        let attached = store.attach(&plan()).await.unwrap();
        (store, attached)
    }

    pub async fn connect(&self) -> Session {
        connect(&self.url).await
    }
}

pub fn plan() -> Plan {
    Plan::of("workflow_runs")
}

/// A connection as the application has one.
pub enum Session {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

pub async fn connect(url: &str) -> Session {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(20));
        Session::Sqlite(SqliteConnection::connect_with(&options).await.unwrap())
    } else {
        let options: PgConnectOptions = url.parse().unwrap();
        Session::Postgres(PgConnection::connect_with(&options).await.unwrap())
    }
}

impl Session {
    pub fn runs(&mut self) -> runs::Connection<'_> {
        match self {
            Self::Postgres(connection) => connection.into(),
            Self::Sqlite(connection) => connection.into(),
        }
    }

    /// Runs statements; how many rows they changed.
    pub async fn try_execute(&mut self, sql: &str) -> Result<u64, sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        Ok(match self {
            Self::Postgres(connection) => sql.execute(connection).await?.rows_affected(),
            Self::Sqlite(connection) => sql.execute(connection).await?.rows_affected(),
        })
    }

    pub async fn execute(&mut self, sql: &str) -> u64 {
        self.try_execute(sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// The one value of a statement, as text.
    pub async fn text(&mut self, sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(format!("SELECT CAST(({sql}) AS TEXT)"));
        match self {
            Self::Postgres(connection) => {
                sqlx::query(sql).fetch_one(connection).await.unwrap().try_get(0).unwrap()
            }
            Self::Sqlite(connection) => {
                sqlx::query(sql).fetch_one(connection).await.unwrap().try_get(0).unwrap()
            }
        }
    }

    pub async fn count(&mut self, from: &str) -> u64 {
        let count = self.text(&format!("SELECT count(*) FROM {from}")).await.unwrap();
        count.parse().unwrap()
    }

    /// Queues a run.
    pub async fn queue(&mut self, workflow: &str, number: i64) -> RunId {
        runs::insert_queued(self.runs(), &new_run(workflow, number)).await.unwrap()
    }
}

pub fn new_run(workflow: &str, number: i64) -> NewRun {
    let target = Target { kind: TargetKind::Issue, owner: "acme".into(), repo: "widgets".into(), number };
    NewRun::new(workflow, target)
}

/// Waits until `condition` holds; half a minute is more than any takes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
