//! How long runspan holds the one write lock of the file while it compares a large table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runspan::store::Reconciled;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio_util::sync::CancellationToken;

use crate::database::{Database, Session, eventually};
use crate::projector::Relay;

const ROWS: u32 = 200_000;
const IN_FLIGHT: u32 = 3_000;

/// An application that waits for 50 ms at most.
struct Impatient {
    stop: CancellationToken,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<(), sqlx::Error>>,
}

impl Impatient {
    async fn start(database: &Database) -> Self {
        let path = database.url.strip_prefix("sqlite:").unwrap();
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_millis(50));
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let (stop, written) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let task = tokio::spawn({
            let (stop, written) = (stop.clone(), Arc::clone(&written));
            async move {
                let mut number = 0;
                while !stop.is_cancelled() {
                    number = number % ROWS + 1;
                    let sql = format!(
                        "UPDATE workflow_runs SET status = CASE status WHEN 'queued' THEN 'running' ELSE 'failed' END
                         WHERE id = '{number:08x}-0000-4000-8000-000000000000'"
                    );
                    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut connection).await?;
                    written.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
                Ok(())
            }
        });
        Self { stop, written, task }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Many runs, of which the first are in flight.
async fn fill(session: &mut Session) {
    session
        .execute(&format!(
            "PRAGMA journal_mode = DELETE;
             DROP INDEX idx_workflow_runs_inflight;
             DROP INDEX idx_workflow_runs_succeeded;
             WITH RECURSIVE n (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM n WHERE number < {ROWS})
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
             SELECT printf('%08x-0000-4000-8000-000000000000', number), 'triage', 'issue', 'acme', 'widgets', number,
                 iif(number <= {IN_FLIGHT}, 'queued', 'succeeded') FROM n"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_waits_for_50_ms_never_fails() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    fill(&mut session).await;
    let writer = Impatient::start(&database).await;
    eventually("the writer writes", async || writer.written() > 10).await;

    let (store, attached) = database.attach().await;
    let adopted = attached.adopted.unwrap();
    assert!(adopted > 0 && adopted <= u64::from(IN_FLIGHT), "{adopted}");
    let relay = Relay::new(store).await;
    // What writers and comparison wrote beside each other: each run has begun once, and nothing was left out.
    let twice = "SELECT count(*) FROM (SELECT run_id FROM runspan_journal
        WHERE from_status IS NULL GROUP BY run_id HAVING count(*) > 1)";
    assert_eq!(session.text(twice).await.as_deref(), Some("0"));

    writer.stop().await;

    // The journal loses much, and is compared again.
    relay.drain().await;
    session
        .execute(
            "BEGIN IMMEDIATE;
             UPDATE workflow_runs SET status = 'failed' WHERE status IN ('queued', 'running') AND target_number % 2;
             DELETE FROM workflow_runs WHERE status IN ('queued', 'running') AND target_number % 3 = 0;
             DELETE FROM runspan_journal;
             COMMIT",
        )
        .await;
    let writer = Impatient::start(&database).await;
    eventually("the writer writes", async || writer.written() > 10).await;
    let reconciled = relay.store.reconcile().await.unwrap();
    assert!(reconciled.entries > 0 && reconciled.vanished < reconciled.entries, "{reconciled:?}");
    writer.stop().await;
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap(), Reconciled::default());
    let in_flight = session.count("workflow_runs WHERE status IN ('queued', 'running')").await;
    assert_eq!(relay.store.status().await.unwrap().open_runs.unsigned_abs(), in_flight);
}

#[tokio::test]
async fn a_comparison_takes_no_lock_where_nothing_is_missing() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    relay.drain().await;
    let mut holder = database.connect().await;
    holder.execute("BEGIN IMMEDIATE").await;
    assert_eq!(relay.store.reconcile().await.unwrap(), Reconciled::default());
    holder.execute("ROLLBACK").await;
}

#[tokio::test]
async fn what_vanished_is_counted_apart() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for number in 1..=5 {
        session.queue("triage", number).await;
    }
    relay.drain().await;
    session
        .execute(
            "BEGIN;
             DELETE FROM workflow_runs WHERE target_number <= 2;
             UPDATE workflow_runs SET status = 'running' WHERE target_number = 3;
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 'pr', 'acme', 'widgets', 7);
             DELETE FROM runspan_journal;
             COMMIT",
        )
        .await;
    assert_eq!(relay.store.reconcile().await.unwrap(), Reconciled { entries: 4, vanished: 2 });
    assert_eq!(relay.store.reconcile().await.unwrap(), Reconciled::default());
}

#[tokio::test]
async fn what_changes_between_look_and_write_is_looked_at_again() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for number in 1..=6 {
        session.queue("triage", number).await;
    }
    relay.drain().await;
    // Three rows are gone unseen; three runs are unknown.
    session.execute("BEGIN").await;
    session.execute("DELETE FROM workflow_runs WHERE target_number <= 3; DELETE FROM runspan_journal").await;
    session.execute("DELETE FROM runspan_open_runs WHERE run_id IN (SELECT id FROM workflow_runs)").await;
    session.execute("COMMIT").await;
    // A writer has the lock while the comparison looks, and changes all of it but one of each.
    session.execute("BEGIN IMMEDIATE").await;
    let store = Arc::clone(&relay.store);
    let comparison = tokio::spawn(async move { store.reconcile().await });
    session
        .execute(
            "UPDATE workflow_runs SET status = 'running' WHERE target_number = 4;
             DELETE FROM workflow_runs WHERE target_number = 5;
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             SELECT run_id, 'triage', 'issue', 'acme', 'widgets', row_number() OVER () FROM runspan_open_runs LIMIT 2",
        )
        .await;
    // Either it has looked by now, or it sees what was committed: both come to the same.
    tokio::task::yield_now().await;
    session.execute("COMMIT").await;
    let reconciled = comparison.await.unwrap().unwrap();
    assert_eq!(reconciled, Reconciled { entries: 2, vanished: 1 });
}
