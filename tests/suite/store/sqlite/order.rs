//! The order of cause: SQLite fires the newest trigger first, so one of the application's that is created after `attach`
//! changes the row again before runspan's has journalled the first change.

use crate::database::{Database, Session};
use crate::projector::Relay;

/// What is in the journal, in order: each run's number and its two states.
async fn journal(session: &mut Session) -> String {
    let entries = "SELECT group_concat(target_number || ' ' || coalesce(from_status, '-') || '>' || coalesce(to_status, '-'), ', ')
        FROM (SELECT * FROM runspan_journal ORDER BY seq)";
    session.text(entries).await.unwrap_or_default()
}

/// Attached, with a trigger that is younger than runspan's.
async fn with_trigger(trigger: &str) -> (Database, Relay, Session) {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.execute(&format!("CREATE TRIGGER theirs {trigger}")).await;
    (database, relay, session)
}

const FAIL: &str =
    "UPDATE workflow_runs SET status = 'failed', state = '{\"failedReason\": \"no\"}' WHERE id = NEW.id";

#[tokio::test]
async fn a_trigger_that_ends_the_run_makes_one_span() {
    for recursive in ["OFF", "ON"] {
        let (_database, relay, mut session) = with_trigger(&format!(
            "AFTER UPDATE ON workflow_runs WHEN OLD.status = 'queued' AND NEW.status = 'running' BEGIN {FAIL}; END"
        ))
        .await;
        session.execute(&format!("PRAGMA recursive_triggers = {recursive}")).await;
        session.queue("triage", 1).await;
        session.execute("UPDATE workflow_runs SET status = 'running'").await;
        assert_eq!(journal(&mut session).await, "1 ->queued, 1 queued>running, 1 running>failed");
        assert_told!(relay.drain().await, @r#"
        queued triage acme/widgets#1 rootWorkflowName=triage
        running triage acme/widgets#1 rootWorkflowName=triage
        failed triage acme/widgets#1 rootWorkflowName=triage outcome=failed error.type=handler reason=no
        completed triage acme/widgets#1 rootWorkflowName=triage outcome=failed
        span "triage queued" [] child
        span "triage" [queued running failed] error=no
        "#);
        assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    }
}

#[tokio::test]
async fn triggers_that_set_each_other_off_are_in_order() {
    let (_database, relay, mut session) = with_trigger(
        "AFTER INSERT ON workflow_runs BEGIN UPDATE workflow_runs SET status = 'running' WHERE id = NEW.id; END",
    )
    .await;
    session
        .execute(&format!(
            "CREATE TRIGGER others AFTER UPDATE ON workflow_runs WHEN NEW.status = 'running' BEGIN {FAIL}; END"
        ))
        .await;
    session.queue("triage", 1).await;
    session.queue("triage", 2).await;
    assert_eq!(
        journal(&mut session).await,
        "1 ->queued, 1 queued>running, 1 running>failed, 2 ->queued, 2 queued>running, 2 running>failed"
    );
    assert_eq!(relay.drain().await.matches("span \"triage\" [queued running failed]").count(), 2);
}

#[tokio::test]
async fn a_trigger_that_deletes_the_row_ends_the_run() {
    let (_database, relay, mut session) =
        with_trigger("AFTER INSERT ON workflow_runs BEGIN DELETE FROM workflow_runs WHERE id = NEW.id; END")
            .await;
    session.queue("triage", 1).await;
    assert_eq!(journal(&mut session).await, "1 ->queued, 1 queued>-");
    assert!(relay.drain().await.contains("span \"triage\" [queued deleted]"));
}

#[tokio::test]
async fn a_trigger_that_brings_the_row_back_is_in_order() {
    let (_database, _, mut session) = with_trigger(
        "AFTER DELETE ON workflow_runs BEGIN
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES (OLD.id, 'triage', 'issue', 'acme', 'widgets', 1);
         END",
    )
    .await;
    session.queue("triage", 1).await;
    session.execute("DELETE FROM workflow_runs").await;
    assert_eq!(journal(&mut session).await, "1 ->queued, 1 queued>-, 1 ->queued");
}

#[tokio::test]
async fn other_rows_of_the_statement_keep_their_order() {
    for which in [1, 2, 3] {
        let (_database, relay, mut session) = with_trigger(&format!(
            "AFTER UPDATE ON workflow_runs WHEN NEW.status = 'running' AND NEW.target_number = {which} BEGIN
                 UPDATE workflow_runs SET status = 'failed';
             END"
        ))
        .await;
        for number in 1..=3 {
            session.queue("triage", number).await;
        }
        relay.drain().await;
        session.execute("UPDATE workflow_runs SET status = 'running'").await;
        let journal = journal(&mut session).await;
        for number in 1..=3 {
            let of_run: Vec<_> =
                journal.split(", ").filter(|entry| entry.starts_with(&format!("{number} "))).collect();
            // One that comes later in the statement was failed while it was queued, and runs again.
            let expected = if number <= which {
                format!("{number} queued>running, {number} running>failed")
            } else {
                format!("{number} queued>failed, {number} failed>running")
            };
            assert_eq!(of_run.join(", "), expected, "{journal}");
        }
        let told = relay.drain().await;
        assert_eq!(told.matches("span \"triage\" [").count(), 3, "{told}");
    }
}

#[tokio::test]
async fn what_was_changed_back_and_forth_is_in_order() {
    let (_database, relay, mut session) = with_trigger(
        "AFTER UPDATE OF status ON workflow_runs WHEN OLD.status = 'queued' BEGIN
             UPDATE workflow_runs SET status = 'incomplete' WHERE id = NEW.id;
             UPDATE workflow_runs SET status = 'running' WHERE id = NEW.id;
         END",
    )
    .await;
    session.queue("triage", 1).await;
    relay.drain().await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    assert_eq!(journal(&mut session).await, "1 queued>running, 1 running>incomplete, 1 incomplete>running");
}

#[tokio::test]
async fn a_replaced_row_is_in_order() {
    let (_database, relay, mut session) =
        with_trigger(&format!("AFTER INSERT ON workflow_runs WHEN NEW.status = 'running' BEGIN {FAIL}; END"))
            .await;
    let run = session.queue("triage", 1).await;
    relay.drain().await;
    let replace = format!(
        "INSERT OR REPLACE INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo,
             target_number, status) VALUES ('{run}', 'triage', 'issue', 'acme', 'widgets', 1, 'running')"
    );
    session.execute(&replace).await;
    assert_eq!(journal(&mut session).await, "1 ->running, 1 running>failed");
    assert!(relay.drain().await.contains("span \"triage\" [queued running failed] error=no"));

    // With this, SQLite fires the DELETE trigger too.
    session.execute("PRAGMA recursive_triggers = ON; UPDATE workflow_runs SET status = 'queued'").await;
    session.execute("DELETE FROM runspan_journal").await;
    session.execute(&replace).await;
    assert_eq!(journal(&mut session).await, "1 queued>-, 1 ->running, 1 running>failed");
}

#[tokio::test]
async fn a_row_that_a_trigger_replaces_is_in_order() {
    let (_database, relay, mut session) = with_trigger(
        "AFTER UPDATE ON workflow_runs WHEN NEW.status = 'running' BEGIN
             INSERT OR REPLACE INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo,
                 target_number, status) VALUES (NEW.id, 'triage', 'issue', 'acme', 'widgets', 1, 'failed');
         END",
    )
    .await;
    session.queue("triage", 1).await;
    relay.drain().await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    assert_eq!(journal(&mut session).await, "1 queued>running, 1 ->failed");
}

#[tokio::test]
async fn a_trigger_before_the_change_is_told_once() {
    let (_database, relay, mut session) = with_trigger(&format!(
        "BEFORE UPDATE OF tracking_comment_id ON workflow_runs WHEN OLD.status = 'queued' BEGIN {FAIL}; END"
    ))
    .await;
    session.queue("triage", 1).await;
    relay.drain().await;
    session.execute("UPDATE workflow_runs SET tracking_comment_id = 7").await;
    assert_eq!(session.text("SELECT status FROM workflow_runs").await.as_deref(), Some("failed"));
    assert_eq!(journal(&mut session).await, "1 queued>failed");
}

#[tokio::test]
async fn ordinary_changes_of_one_millisecond_stay_where_they_are() {
    let database = Database::sqlite().await;
    database.attach().await;
    let mut session = database.connect().await;
    // One that archives what has ended: the row is gone when runspan's trigger looks, and nothing is to move.
    session
        .execute(
            "CREATE TRIGGER archive AFTER UPDATE ON workflow_runs WHEN NEW.status = 'succeeded' BEGIN
                 DELETE FROM workflow_runs WHERE id = NEW.id;
             END",
        )
        .await;
    session.queue("triage", 1).await;
    session.execute("DELETE FROM runspan_journal").await;
    let positions = session.text("SELECT seq FROM sqlite_sequence WHERE name = 'runspan_journal'").await;
    assert_eq!(positions.as_deref(), Some("1"));
    session
        .execute(
            "BEGIN;
             UPDATE workflow_runs SET status = 'running';
             UPDATE workflow_runs SET status = 'queued';
             UPDATE workflow_runs SET status = 'running';
             UPDATE OR IGNORE workflow_runs SET status = 'queued';
             UPDATE OR REPLACE workflow_runs SET status = 'running';
             UPDATE workflow_runs SET status = 'succeeded';
             COMMIT",
        )
        .await;
    assert_eq!(
        journal(&mut session).await,
        "1 queued>running, 1 running>queued, 1 queued>running, 1 running>queued, 1 queued>running, 1 running>succeeded"
    );
    // Nor has anything moved: no position was left out.
    let positions = session.text("SELECT seq FROM sqlite_sequence WHERE name = 'runspan_journal'").await;
    assert_eq!(positions.as_deref(), Some("7"));
}

#[tokio::test]
async fn what_the_application_asks_sqlite_of_its_own_statement_is_untouched() {
    let (_database, _, mut session) =
        with_trigger(&format!("AFTER INSERT ON workflow_runs BEGIN {FAIL}; END")).await;
    for _ in 0..3 {
        session.execute("INSERT INTO runspan_journal (at) VALUES (1)").await;
    }
    session.queue("triage", 1).await;
    let asked = session.text("SELECT last_insert_rowid() || ' ' || changes()").await;
    assert_eq!(asked.as_deref(), Some("1 1"));
}

#[tokio::test]
async fn a_table_without_rowids_is_in_order() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session
        .execute(
            "DROP TABLE workflow_runs;
             CREATE TABLE workflow_runs (id TEXT PRIMARY KEY, workflow_name, target_type, target_owner, target_repo,
                 target_number, parent_run_id, status, state, delivery_id, created_at, updated_at) WITHOUT ROWID",
        )
        .await;
    let relay = Relay::new(database.attach().await.0).await;
    session
        .execute(
            "CREATE TRIGGER theirs AFTER INSERT ON workflow_runs BEGIN
                 UPDATE workflow_runs SET status = 'running' WHERE id = NEW.id;
                 UPDATE workflow_runs SET status = 'succeeded' WHERE id = NEW.id;
             END;
             INSERT INTO workflow_runs (id, workflow_name, target_number, status)
             VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 1, 'queued')",
        )
        .await;
    assert_eq!(journal(&mut session).await, "1 ->queued, 1 queued>running, 1 running>succeeded");
    assert!(relay.drain().await.contains("span \"triage\" [queued running succeeded]"));
}
