//! What is particular to SQLite.

mod capture;
mod lock;
mod order;
mod sequences;
mod values;

use std::time::Duration;

use runspan::run::RunId;
use runspan::runs;
use runspan::store::{Plan, StoreError};

use crate::database::{Database, connect, plan};
use crate::projector::Relay;

#[tokio::test]
async fn a_missing_file_is_named_and_not_made() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("absent.db");
    let store = runspan::store::open(&format!("sqlite:{}", path.display()).parse().unwrap()).unwrap();
    let expected = format!(
        "there is no database file {}: create it with your table first, or name yours with --database-url \
         sqlite:PATH",
        path.display()
    );
    assert_eq!(store.attach(&plan()).await.unwrap_err().to_string(), expected);
    assert_eq!(store.attach_sql(&plan()).await.unwrap_err().to_string(), expected);
    assert_eq!(store.detach(true).await.unwrap_err().to_string(), expected);
    assert_eq!(store.check().await.unwrap_err().to_string(), expected);
    assert!(store.status().await.is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_no_transient_error() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notes.txt");
    std::fs::write(&path, "not a database, but long enough to be taken for the header of one. ".repeat(20))
        .unwrap();
    let store = runspan::store::open(&format!("sqlite:{}", path.display()).parse().unwrap()).unwrap();
    let error = store.attach(&plan()).await.unwrap_err();
    assert_eq!(error.to_string(), "the database says: file is not a database");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn attaching_turns_the_write_ahead_log_on() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session.execute("PRAGMA journal_mode = DELETE").await;
    database.attach().await;
    assert_eq!(session.text("SELECT journal_mode FROM pragma_journal_mode").await.as_deref(), Some("wal"));
}

#[tokio::test]
async fn a_grant_is_refused() {
    let database = Database::sqlite().await;
    let granting = Plan { grant: Some("app".to_owned()), ..plan() };
    let error = database.store().attach(&granting).await.unwrap_err().to_string();
    assert!(error.starts_with("SQLite has no roles: omit --grant"), "{error}");
}

#[tokio::test]
async fn an_id_that_is_no_uuid_is_set_aside_and_the_rest_goes_on() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let (upper, mixed) =
        (RunId::generate().to_string().to_uppercase(), "0190A5D4-7d3c-7cc1-8b6a-0d2f3a4b5c6d");
    for (number, id) in (1..).zip([
        "'run 1'".to_owned(),
        "x'00ff80'".to_owned(),
        "CAST(x'80ff' AS TEXT)".to_owned(),
        "7".to_owned(),
        format!("'{mixed}'"),
        "'0190a5d47d3c-7cc1-8b6a-0d2f3a4b5c6d'".to_owned(),
        format!("'{upper}'"),
    ]) {
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                 VALUES ({id}, 'triage', 'pr', 'acme', 'widgets', {number})"
            ))
            .await;
    }
    let (read, projected) = relay.step(100).await;
    assert_eq!((read, projected.records.len()), (7, 1));
    assert_eq!(relay.store.status().await.unwrap().set_aside_entries, 6);
    assert_eq!(
        session
            .text(
                "SELECT error || ' ' || json_extract(entry, '$.run_id') FROM runspan_set_aside WHERE seq = 2"
            )
            .await
            .as_deref(),
        Some("id is not a UUID: \"X'00FF80'\" X'00FF80'")
    );
    // The one in capitals is found again; the others are left alone.
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    session.execute(&format!("UPDATE workflow_runs SET status = 'failed' WHERE id = '{upper}'")).await;
    assert_eq!(relay.drain().await.lines().count(), 4);
}

#[tokio::test]
async fn no_value_of_the_applications_fails_its_statement() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    // A table without any type or constraint.
    session
        .execute(
            "DROP TABLE workflow_runs;
             CREATE TABLE workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 parent_run_id, status, state, delivery_id, created_at, updated_at);
             CREATE INDEX by_id ON workflow_runs (id)",
        )
        .await;
    let (store, _) = database.attach().await;
    let relay = Relay::new(store).await;
    let values = [
        "NULL",
        "''",
        "'{'",
        "'[1]'",
        "x'00ff'",
        "-1",
        "1e999",
        "CAST(x'c328' AS TEXT)",
        "'null'",
        "'2026-02-30'",
    ];
    let deep = format!("'{}{}'", "[".repeat(5000), "]".repeat(5000));
    for value in values.into_iter().chain([deep.as_str()]) {
        session
            .execute(&format!(
                "INSERT INTO workflow_runs VALUES ({value}, {value}, {value}, {value}, {value}, {value}, {value},
                     'queued', {value}, {value}, {value}, {value});
                 UPDATE workflow_runs SET status = 'running';
                 UPDATE workflow_runs SET status = 'failed';
                 UPDATE workflow_runs SET status = {value};
                 UPDATE workflow_runs SET status = 'queued';
                 DELETE FROM workflow_runs;
                 INSERT INTO runspan_dispatch_refused VALUES
                     ({value}, {value}, {value}, {value}, {value}, {value}, {value}, {value})"
            ))
            .await;
    }
    // And nothing of it stops the relay.
    let entries = relay.store.status().await.unwrap().journal_entries;
    assert!(entries >= 7 * 10, "{entries}");
    relay.drain().await;
    assert_eq!(relay.store.status().await.unwrap().journal_entries, 0);
}

#[tokio::test]
async fn times_that_are_none_fall_back_to_the_entrys_own() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for (number, created_at) in (1..).zip(["'yesterday'", "1700000000", "'12345'", "x'00'"]) {
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                     created_at)
                 VALUES ('{}', 'triage', 'pr', 'acme', 'widgets', {number}, {created_at})",
                RunId::generate()
            ))
            .await;
    }
    let (_, projected) = relay.step(10).await;
    let now = chrono::Utc::now().timestamp_micros();
    assert_eq!(projected.records.len(), 4);
    assert!(projected.records.iter().all(|record| (now - record.at.micros()).abs() < 60_000_000));
}

#[tokio::test]
async fn a_writer_waits_for_the_other_and_is_not_failed() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut holder = database.connect().await;
    holder.execute("BEGIN IMMEDIATE").await;
    holder.queue("triage", 1).await;
    let url = database.url.clone();
    let writer = tokio::spawn(async move { connect(&url).await.queue("triage", 2).await });
    let step = relay.step(10);
    // Reading goes on beside the writer, and sees nothing of it yet.
    assert_eq!(step.await.0, 0);
    holder.execute("COMMIT").await;
    writer.await.unwrap();
    assert_eq!(relay.drain().await.lines().count(), 2);
}

#[tokio::test]
async fn a_database_that_stays_locked_is_a_transient_error() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut holder = database.connect().await;
    holder.execute("BEGIN IMMEDIATE").await;
    let waiting = relay.store.renew_lease(&relay.lease, Duration::from_secs(1));
    let error = waiting.await.unwrap_err();
    assert_eq!(error.to_string(), "the database says: database is locked");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_table_that_is_made_anew_can_be_renamed() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    // The way that SQLite's manual recommends for a change of columns.
    session
        .execute(
            "BEGIN;
             CREATE TABLE anew AS SELECT * FROM workflow_runs;
             DROP TABLE workflow_runs;
             ALTER TABLE anew RENAME TO workflow_runs;
             CREATE UNIQUE INDEX by_id ON workflow_runs (id);
             COMMIT",
        )
        .await;
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
    database.attach().await;
    session.execute("ALTER TABLE workflow_runs RENAME TO runs_of_old").await;
    session
        .execute(
            "INSERT INTO runs_of_old (id, workflow_name, status) VALUES
             ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 'queued')",
        )
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
    let error = store.attach(&Plan::of("anew")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unfit(_)));
}

#[tokio::test]
async fn a_name_that_needs_quotes_is_quoted() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session.execute("ALTER TABLE workflow_runs RENAME TO \"Order \"\"x\"\"\"").await;
    let store = database.store();
    let attached = store.attach(&Plan::of("Order \"x\"")).await.unwrap();
    assert_eq!(attached.table, "\"Order \"\"x\"\"\"");
    session
        .execute("INSERT INTO \"Order \"\"x\"\"\" (id, workflow_name, target_type, target_owner, target_repo, target_number)
                  VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 'pr', 'acme', 'widgets', 7)")
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
}

#[tokio::test]
async fn replacing_a_row_tells_of_its_new_state() {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), id).await.unwrap();
    relay.drain().await;
    // SQLite fires no DELETE trigger for the row that REPLACE removes.
    session
        .execute(&format!(
            "INSERT OR REPLACE INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo,
                 target_number, status, state)
             VALUES ('{id}', 'triage', 'issue', 'acme', 'widgets', 1, 'failed', '{{\"failedReason\": \"no\"}}')"
        ))
        .await;
    let told = relay.drain().await;
    assert!(told.starts_with("failed triage acme/widgets#1 "), "{told}");
}
