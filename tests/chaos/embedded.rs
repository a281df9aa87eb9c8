//! The embedded default: a process that writes runs into a SQLite file and relays them itself. It dies at a boundary.

use std::sync::Arc;
use std::time::Duration;

use runspan::relay::{Ended, Logs, Relay, Settings};
use runspan::run::{RunId, Target, TargetKind};
use runspan::runs::{self, NewRun, Parent, Refusal, RunsError};
use runspan::store::{self, Plan};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::fate::{Boundary, Fate};
use crate::hooked::Hooked;
use crate::ledger::Ledger;

/// tests/sql/ledger.sql for SQLite. Times in microseconds.
const LEDGER: &str = "CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY, run_id TEXT, event TEXT NOT NULL, reason TEXT, error_type TEXT, child_run_id TEXT,
    delivery_id TEXT, run TEXT, began INTEGER NOT NULL, ended INTEGER NOT NULL)";

/// `created_at`, in microseconds.
const CREATED: &str = "CAST(strftime('%s', created_at) AS INTEGER) * 1000000 + CAST(substr(created_at, 21, 3) AS INTEGER) * 1000";

/// The process: makes its rounds, sends all of it, and prints which boundaries it came to, unless it dies first.
pub(crate) fn run(file: &str, endpoint: &str, protocol: &str, rounds: i64, end: Option<Boundary>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fate = Fate::at(end);
    runtime.block_on(live(file, endpoint, protocol, rounds, &fate));
    for (name, times) in fate.reached() {
        println!("{}", Boundary { name, time: times });
    }
}

async fn live(file: &str, endpoint: &str, protocol: &str, rounds: i64, fate: &Arc<Fate>) {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(20));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    fate.reach("before migrate");
    runs::migrate(&mut connection).await.unwrap();
    sqlx::query(LEDGER).execute(&mut connection).await.unwrap();
    fate.reach("after migrate");
    let inner = store::open(&format!("sqlite:{file}").parse().unwrap()).unwrap();
    let store = Arc::new(Hooked { store: inner, hooks: Arc::clone(fate) });
    store::Admin::attach(&*store, &Plan::of("workflow_runs")).await.unwrap();
    let env = |name: &str| {
        let value = match name {
            "OTEL_SERVICE_NAME" => "shop",
            "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL" => protocol,
            "OTEL_METRIC_EXPORT_INTERVAL" => "20",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let settings = Settings {
        lease_term: Duration::from_secs(3),
        // Its writers are quick, and so is it: each round has its own batches.
        idle_poll: Duration::from_millis(5),
        trim_every: Duration::from_millis(5),
        ..Settings::default()
    };
    let relay = Relay::new(store, Logs::Otlp, &env).unwrap().with(settings).spawn();
    let mut writer = Writer { connection, fate: Arc::clone(fate), number: 0 };
    for _ in 0..rounds {
        writer.round().await.unwrap();
    }
    let ended = relay.drain().await.unwrap();
    assert_eq!(ended, Ended::Idle);
}

/// The application: src/runs where it has a word for it, plain SQL otherwise.
struct Writer {
    connection: SqliteConnection,
    fate: Arc<Fate>,
    number: i64,
}

impl Writer {
    /// A run of each fate.
    async fn round(&mut self) -> Result<(), RunsError> {
        let well = self.queued("triage", None, true).await?;
        self.running(well).await?;
        self.succeeded(well).await?;

        let failed = self.queued("triage", None, false).await?;
        self.running(failed).await?;
        self.failed(failed, "push to https://bot:correct-horse-battery@git.example/acme refused", "handler")
            .await?;

        let uncaught = self.queued("implement", None, false).await?;
        self.running(uncaught).await?;
        self.failed(uncaught, "uncaught: index out of bounds", "uncaught").await?;

        let unqueued = self.queued("review", None, false).await?;
        self.failed(unqueued, "enqueue failed: connection refused", "enqueue_failed").await?;

        let deleted = self.queued("triage", None, false).await?;
        self.running(deleted).await?;
        self.sql(deleted, "DELETE FROM workflow_runs WHERE id = ", "deleted").await?;

        let again = self.queued("implement", None, false).await?;
        self.running(again).await?;
        self.sql(again, "UPDATE workflow_runs SET status = 'queued' WHERE id = ", "queued").await?;
        self.running(again).await?;
        self.succeeded(again).await?;
        self.sql(again, "UPDATE workflow_runs SET status = 'failed' WHERE id = ", "conflict").await?;

        self.rolled_back().await?;
        self.refused(well).await?;

        let ship = self.queued("ship", None, false).await?;
        self.running(ship).await?;
        let child = self.queued("plan", Some(ship), false).await?;
        self.running(child).await?;
        self.incomplete(child, "1 test is red").await?;
        self.incomplete(ship, "plan is incomplete").await?;
        // By the clock, which ticks in milliseconds, too.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let late = self.queued("review", Some(ship), false).await?;
        self.running(late).await?;
        self.succeeded(late).await
    }

    async fn execute(&mut self, sql: &str) -> Result<(), RunsError> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await?;
        Ok(())
    }

    async fn begin(&mut self) -> Result<i64, RunsError> {
        self.fate.reach("before the application's BEGIN");
        let began = now();
        self.execute("BEGIN IMMEDIATE").await?;
        self.fate.reach("after the application's BEGIN");
        Ok(began)
    }

    async fn commit(&mut self) -> Result<(), RunsError> {
        self.fate.reach("before the application's COMMIT");
        self.execute("COMMIT").await?;
        self.fate.reach("after the application's COMMIT");
        Ok(())
    }

    /// Notes what the transaction did, in it.
    async fn note(
        &mut self,
        run: RunId,
        event: &str,
        why: Option<(&str, Option<&str>)>,
        began: i64,
    ) -> Result<(), RunsError> {
        self.fate.reach("after the application's statement");
        let (reason, error_type) = why.unzip();
        sqlx::query(
            "INSERT INTO ledger (run_id, event, reason, error_type, began, ended) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(run.to_string())
        .bind(event)
        .bind(reason)
        .bind(error_type.flatten())
        .bind(began)
        .bind(now() + 1_000)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn queued(
        &mut self,
        workflow: &str,
        parent: Option<RunId>,
        is_caused: bool,
    ) -> Result<RunId, RunsError> {
        self.begin().await?;
        // Whatever died before has its own.
        let count = "SELECT coalesce(max(target_number), 0) + 1 FROM workflow_runs";
        self.number =
            sqlx::query_scalar::<_, i64>(count).fetch_one(&mut self.connection).await?.max(self.number + 1);
        let target = Target {
            kind: TargetKind::Issue,
            owner: "acme".into(),
            repo: "widgets".into(),
            number: self.number,
        };
        let mut new = NewRun::new(workflow, target);
        new.parent = parent.map(|run| Parent { run, step_index: 0 });
        if is_caused {
            new.delivery_id = Some(format!("delivery-{}", self.number));
            let cause = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            new.state.insert("traceparent".to_owned(), cause.into());
        }
        let run = runs::insert_queued(&mut self.connection, &new).await?;
        self.fate.reach("after the application's statement");
        let noted = format!(
            "INSERT INTO ledger (run_id, event, run, began, ended)
             SELECT id, 'queued', json_object('workflow_name', workflow_name, 'target_type', target_type,
                 'target_owner', target_owner, 'target_repo', target_repo, 'target_number', target_number,
                 'parent_run_id', parent_run_id, 'delivery_id', delivery_id, 'state', json(state)),
                 {CREATED}, {} FROM workflow_runs WHERE id = '{run}'",
            now() + 1_000
        );
        self.execute(&noted).await?;
        if parent.is_some() {
            let noted = format!(
                "INSERT INTO ledger (run_id, event, child_run_id, began, ended)
                 SELECT parent_run_id, 'handed_off', id, {CREATED}, {} FROM workflow_runs WHERE id = '{run}'",
                now() + 1_000
            );
            self.execute(&noted).await?;
        }
        self.commit().await?;
        Ok(run)
    }

    async fn running(&mut self, run: RunId) -> Result<(), RunsError> {
        let began = self.begin().await?;
        runs::mark_running(&mut self.connection, run).await?;
        self.note(run, "running", None, began).await?;
        self.commit().await
    }

    async fn succeeded(&mut self, run: RunId) -> Result<(), RunsError> {
        let began = self.begin().await?;
        runs::mark_succeeded(&mut self.connection, run).await?;
        self.note(run, "succeeded", None, began).await?;
        self.commit().await
    }

    async fn incomplete(&mut self, run: RunId, reason: &str) -> Result<(), RunsError> {
        let began = self.begin().await?;
        runs::mark_incomplete(&mut self.connection, run, reason).await?;
        self.note(run, "incomplete", Some((reason, None)), began).await?;
        self.commit().await
    }

    async fn failed(&mut self, run: RunId, reason: &str, error_type: &str) -> Result<(), RunsError> {
        let began = self.begin().await?;
        runs::mark_failed(&mut self.connection, run, reason).await?;
        let told = reason.replace("bot:correct-horse-battery", "[redacted]");
        let why = Some((&*told, Some(error_type)));
        if error_type == "enqueue_failed" {
            self.note(run, "enqueue_failed", why, began).await?;
        }
        self.note(run, "failed", why, began).await?;
        self.commit().await
    }

    async fn sql(&mut self, run: RunId, sql: &str, event: &str) -> Result<(), RunsError> {
        let began = self.begin().await?;
        self.execute(&format!("{sql}'{run}'")).await?;
        self.note(run, event, None, began).await?;
        self.commit().await
    }

    /// What is rolled back never was.
    async fn rolled_back(&mut self) -> Result<(), RunsError> {
        self.begin().await?;
        let target = Target {
            kind: TargetKind::Pr,
            owner: "acme".into(),
            repo: "widgets".into(),
            number: self.number + 1_000_000,
        };
        let run = runs::insert_queued(&mut self.connection, &NewRun::new("rolled_back", target)).await?;
        runs::mark_running(&mut self.connection, run).await?;
        self.fate.reach("before the application's ROLLBACK");
        self.execute("ROLLBACK").await
    }

    async fn refused(&mut self, run: RunId) -> Result<(), RunsError> {
        let began = self.begin().await?;
        let row = runs::load(&mut self.connection, run).await?;
        let delivery = format!("refused-{run}");
        let refusal = Refusal {
            workflow_name: row.workflow_name,
            target_owner: row.target.owner,
            target_repo: row.target.repo,
            target: Some((row.target.kind, row.target.number)),
            reason: "workflow-dispatch-inflight",
            delivery_id: Some(delivery.clone()),
            inflight: Some(run),
        };
        runs::dispatch_refused(&mut self.connection, &refusal).await?;
        self.note(run, "dispatch_refused", None, began).await?;
        self.execute(&format!("UPDATE ledger SET delivery_id = '{delivery}' WHERE id = last_insert_rowid()"))
            .await?;
        self.commit().await
    }
}

/// The time in whole milliseconds, as SQLite has it.
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis() * 1_000
}

/// What the file says.
pub(crate) async fn ledger(connection: &mut SqliteConnection) -> Ledger {
    let lines: Vec<String> = sqlx::query_scalar(
        "SELECT json_object('run_id', run_id, 'event', event, 'reason', reason, 'error_type', error_type,
             'child_run_id', child_run_id, 'delivery_id', delivery_id, 'run', json(run), 'began', began, 'ended', ended)
         FROM ledger ORDER BY id",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    Ledger::of(lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
}
