//! A PostgreSQL database whose journal holds a backlog that its own triggers wrote.

use std::sync::Arc;

use runspan::runs;
use runspan::runtime::Database;
use runspan::store::{self, Plan, Store};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::Failure;

/// A database of its own on the server of tests/with-services.
pub(crate) struct Backlog {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pool: PgPool,
    url: String,
    admin: String,
    name: String,
}

impl Backlog {
    /// An attached database, empty; `None` without a server.
    pub(crate) async fn new(part: &str) -> Result<Option<Self>, Failure> {
        let Ok(admin) = std::env::var("RUNSPAN_TEST_POSTGRES_URL") else {
            eprintln!("there is no PostgreSQL to measure: run make bench ARGS={part}");
            return Ok(None);
        };
        let name = format!("bench_{}", uuid::Uuid::new_v4().simple());
        let mut server = PgConnection::connect(&admin).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut server).await?;
        let mut url = url::Url::parse(&admin)?;
        url.set_path(&name);
        let database = Database::connect(&url.as_str().parse()?, 16).await?;
        runs::migrate(database.acquire().await?.runs()).await?;
        let Database::Postgres(pool) = database else {
            return Err("the server of the tests is no PostgreSQL".into());
        };
        let store = store::open(&url.as_str().parse()?)?;
        store.attach(&Plan::of("workflow_runs")).await?;
        Ok(Some(Self { store, pool, url: url.into(), admin, name }))
    }

    /// As `DATABASE_URL` has it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn remove(self) -> Result<(), Failure> {
        self.pool.close().await;
        let mut server = PgConnection::connect(&self.admin).await?;
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        sqlx::query(AssertSqlSafe(sql)).execute(&mut server).await?;
        Ok(())
    }

    /// `runs` that succeed, `in_flight` of them at a time, of `workflows` names: three entries each, which are put
    /// aside in `backlog`.
    pub(crate) async fn write(&self, runs: u32, in_flight: u32, workflows: u32) -> Result<(), Failure> {
        self.execute(&format!(
            "DO $$
             DECLARE ids uuid[];
             BEGIN
                 -- A plan is made once, for a table that is still empty: it would read all of it ever after.
                 PERFORM set_config('enable_seqscan', 'off', false);
                 FOR head IN 1..{runs} BY {in_flight} LOOP
                     WITH begun AS (
                         INSERT INTO workflow_runs
                             (id, workflow_name, target_type, target_owner, target_repo, target_number, delivery_id)
                         SELECT gen_random_uuid(), 'workflow-' || n % {workflows}, 'issue', 'acme', 'widgets', n,
                             gen_random_uuid()::text
                         FROM generate_series(head, least(head + {in_flight} - 1, {runs})) n
                         RETURNING id)
                     SELECT array_agg(id) INTO ids FROM begun;
                     UPDATE workflow_runs SET status = 'running' WHERE id = ANY(ids);
                     UPDATE workflow_runs SET status = 'succeeded' WHERE id = ANY(ids);
                     COMMIT;
                 END LOOP;
                 PERFORM set_config('enable_seqscan', 'on', false);
             END $$"
        ))
        .await?;
        self.execute("CREATE TABLE backlog AS SELECT * FROM runspan.journal ORDER BY seq").await?;
        self.execute("DELETE FROM workflow_runs WHERE target_repo = 'widgets'").await?;
        self.restore().await
    }

    /// Rows that no trigger sees: runs that ended, and runs that wait, which reconciliation finds.
    pub(crate) async fn fill_table(&self, ended: u32, waiting: u32) -> Result<(), Failure> {
        self.execute(&format!(
            "BEGIN;
             SET LOCAL session_replication_role = replica;
             INSERT INTO workflow_runs
                 (id, workflow_name, target_type, target_owner, target_repo, target_number, status, delivery_id)
             SELECT gen_random_uuid(), 'old-' || n % 20, 'issue', 'acme', 'gadgets', n,
                 CASE WHEN n <= {ended} THEN 'succeeded' ELSE 'queued' END, gen_random_uuid()::text
             FROM generate_series(1, {ended} + {waiting}) n;
             COMMIT;
             ANALYZE workflow_runs"
        ))
        .await
    }

    /// Whether the journal is empty.
    pub(crate) async fn is_drained(&self) -> Result<bool, Failure> {
        Ok(sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM runspan.journal)")
            .fetch_one(&self.pool)
            .await?)
    }

    /// How many transactions the database has had, how many bytes its log, and how many blocks were read.
    pub(crate) async fn told(&self) -> Result<(f64, f64, f64), Failure> {
        Ok(sqlx::query_as(
            "SELECT xact_commit::float8, (pg_current_wal_insert_lsn() - '0/0')::float8, (blks_hit + blks_read)::float8
             FROM pg_stat_database WHERE datname = current_database()",
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// The backlog as it was written, and nothing else.
    pub(crate) async fn restore(&self) -> Result<(), Failure> {
        for sql in [
            "TRUNCATE runspan.journal, runspan.outbox, runspan.commits, runspan.deltas, runspan.series",
            "DELETE FROM runspan.open_runs o USING backlog b WHERE b.run_id = o.run_id",
            "INSERT INTO runspan.journal SELECT * FROM backlog ORDER BY seq",
            "UPDATE runspan.lease SET expires_at = 'epoch'",
            "ANALYZE runspan.journal",
            "CHECKPOINT",
        ] {
            self.execute(sql).await?;
        }
        Ok(())
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<(), Failure> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await?;
        Ok(())
    }
}
