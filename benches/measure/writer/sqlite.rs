//! SQLite, in process: the writer is the database. Write-ahead log, `synchronous = NORMAL`: the disk is the same for all.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use runspan::run::RunId;
use runspan::runs;
use runspan::store::{self, Plan, Store};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::server::own_cpu;
use super::{Failure, ROUNDS, Variant, added, cpu_goals, report};
use crate::report::{Bound, Report};
use crate::shown::millis;

const RUNS: u32 = 2_000;
const MANY: u32 = 50_000;
const UPDATES: u32 = 20_000;

const TIME: &str = "a run's time, µs";
const CPU: &str = "CPU of writer and database, µs a run";
const MANY_MS: &str = "50,000 runs in one INSERT, ms";
const UPDATES_MS: &str = "20,000 UPDATEs in one transaction, ms";

const INSERT: &str = "INSERT INTO workflow_runs (
        id, workflow_name, target_type, target_owner, target_repo, target_number, delivery_id, state)
    VALUES ($1, 'triage', 'issue', 'acme', 'widgets', $2, '72d3162e-cc78-11e3-81ab-4c9367dc0958',
        '{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}')";
const RUNNING: &str =
    "UPDATE workflow_runs SET status = 'running', owner_kind = 'executor', owner_id = 'executor-1'
    WHERE id = $1 AND status = 'queued'";
const SUCCEEDED: &str = "UPDATE workflow_runs SET status = 'succeeded' WHERE id = $1 AND status = 'running'";
const MESSAGE: &str =
    "INSERT INTO outbox (event, payload) VALUES ($1, json_object('runId', $2, 'workflowName', 'triage',
    'targetType', 'issue', 'targetOwner', 'acme', 'targetRepo', 'widgets', 'targetNumber', $3,
    'deliveryId', '72d3162e-cc78-11e3-81ab-4c9367dc0958'))";
const INSERT_MANY: &str = "WITH RECURSIVE n (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM n WHERE number < $1)
    INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, delivery_id, state)
    SELECT printf('%08x-0000-4000-8000-000000000000', number), 'triage', 'issue', 'acme', 'widgets', number,
        '72d3162e-cc78-11e3-81ab-4c9367dc0958', '{}' FROM n";
const MESSAGES: &str = "INSERT INTO outbox (event, payload)
    SELECT 'workflow.run.queued', json_object('runId', id, 'workflowName', workflow_name, 'targetType', target_type,
        'targetOwner', target_owner, 'targetRepo', target_repo, 'targetNumber', target_number, 'deliveryId', delivery_id)
    FROM workflow_runs";
const NOTHING: &str = "
    CREATE TRIGGER nothing_inserted AFTER INSERT ON workflow_runs BEGIN SELECT 1; END;
    CREATE TRIGGER nothing_changed AFTER UPDATE ON workflow_runs WHEN OLD.status IS NOT NEW.status BEGIN SELECT 1; END";

pub(super) async fn run() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let mut bench = Bench::new(&directory.path().join("bench.db")).await?;
    let mut report = report("SQLite, in process");
    for round in 0..=ROUNDS {
        for variant in Variant::in_turn(round) {
            bench.round(variant, round > 0, &mut report).await?;
        }
    }
    cpu_goals(&mut report, CPU);
    for (name, rows) in [(MANY_MS, MANY), (UPDATES_MS, UPDATES)] {
        let each =
            added(&report, Variant::Attached, name).iter().map(|ms| ms * 1e3 / f64::from(rows)).collect();
        report.goal(format!("added, µs a row: {name}"), Bound::AtMost(60.0), each);
    }
    report.show()
}

struct Bench {
    connection: SqliteConnection,
    store: Arc<dyn Store>,
}

impl Bench {
    async fn new(path: &Path) -> Result<Self, Failure> {
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .connect()
            .await?;
        runs::migrate(&mut connection).await?;
        sqlx::raw_sql(
            "CREATE TABLE outbox (
                 id INTEGER PRIMARY KEY AUTOINCREMENT,
                 at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
                 event TEXT NOT NULL,
                 payload TEXT NOT NULL
             )",
        )
        .execute(&mut connection)
        .await?;
        let store = store::open(&format!("sqlite:{}", path.display()).parse()?)?;
        Ok(Self { connection, store })
    }

    async fn round(&mut self, variant: Variant, counts: bool, report: &mut Report) -> Result<(), Failure> {
        self.prepare(variant).await?;
        let (began, cpu) = (Instant::now(), own_cpu()?);
        for number in 1..=RUNS {
            self.live(variant, number).await?;
        }
        let (took, cpu) = (began.elapsed(), own_cpu()? - cpu);

        self.prepare(variant).await?;
        let began = Instant::now();
        self.many(variant, MANY).await?;
        let many = began.elapsed();

        self.prepare(variant).await?;
        self.many(Variant::Detached, UPDATES).await?;
        let began = Instant::now();
        self.update_all(variant).await?;
        let updates = began.elapsed();

        if counts {
            let mut add = |name, value| report.add(variant as usize, name, value);
            add(TIME, millis(took) * 1e3 / f64::from(RUNS));
            add(CPU, cpu / f64::from(RUNS));
            add(MANY_MS, millis(many));
            add(UPDATES_MS, millis(updates));
        }
        Ok(())
    }

    /// The life of a run, in three transactions.
    async fn live(&mut self, variant: Variant, number: u32) -> Result<(), Failure> {
        let id = RunId::generate().to_string();
        for (sql, event) in [
            (INSERT, "workflow.run.queued"),
            (RUNNING, "workflow.run.running"),
            (SUCCEEDED, "workflow.run.succeeded"),
        ] {
            let statement = sqlx::query(sql).bind(&id);
            let statement = if sql == INSERT { statement.bind(number) } else { statement };
            if variant == Variant::Outbox {
                let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
                statement.execute(&mut *transaction).await?;
                sqlx::query(MESSAGE).bind(event).bind(&id).bind(number).execute(&mut *transaction).await?;
                transaction.commit().await?;
            } else {
                statement.execute(&mut self.connection).await?;
            }
        }
        Ok(())
    }

    async fn many(&mut self, variant: Variant, rows: u32) -> Result<(), Failure> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(INSERT_MANY).bind(rows).execute(&mut *transaction).await?;
        if variant == Variant::Outbox {
            sqlx::query(MESSAGES).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn update_all(&mut self, variant: Variant) -> Result<(), Failure> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for number in 1..=UPDATES {
            let id = format!("{number:08x}-0000-4000-8000-000000000000");
            sqlx::query(RUNNING).bind(&id).execute(&mut *transaction).await?;
            if variant == Variant::Outbox {
                sqlx::query(MESSAGE)
                    .bind("workflow.run.running")
                    .bind(&id)
                    .bind(number)
                    .execute(&mut *transaction)
                    .await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    /// Tables as new, and what the variant needs.
    async fn prepare(&mut self, variant: Variant) -> Result<(), Failure> {
        self.store.detach(true).await?;
        sqlx::raw_sql(
            "DROP TRIGGER IF EXISTS nothing_inserted; DROP TRIGGER IF EXISTS nothing_changed;
             DELETE FROM workflow_runs; DELETE FROM outbox",
        )
        .execute(&mut self.connection)
        .await?;
        match variant {
            Variant::Detached | Variant::Outbox => {}
            Variant::Empty => {
                sqlx::raw_sql(NOTHING).execute(&mut self.connection).await?;
            }
            Variant::Attached => {
                self.store.attach(&Plan::of("workflow_runs")).await?;
            }
        }
        for sql in ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            sqlx::raw_sql(sql).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}
