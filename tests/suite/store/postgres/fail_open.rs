//! Whatever is wrong with the journal, the application's own statement commits.

use std::time::Duration;

use runspan::run::Status;
use runspan::runs;
use runspan::store;

use super::owner;
use crate::database::{Database, Session, plan};
use crate::projector::Relay;

on_postgres!(
    a_dropped_journal,
    a_renamed_journal,
    a_renamed_schema,
    a_dropped_column,
    a_dropped_sequence,
    a_full_type,
    rights_revoked_from_the_definer,
    a_locked_journal,
    a_locked_journal_below_the_applications_own_lock_timeout,
    a_locked_journal_above_the_applications_own_lock_timeout,
    a_locked_journal_makes_a_statement_wait_once,
    a_locked_journal_without_its_counter_makes_a_statement_wait_once,
    a_refusal_is_skipped_too,
    what_was_skipped_is_mended,
    a_nul_escape_in_json_state,
    a_breaker_that_outlives_its_transaction_means_nothing,
    names_without_end_are_cut,
    a_time_without_end_stops_nothing,
);

/// A whole life of a run, in a transaction of its own and in single statements.
async fn live(session: &mut Session) {
    session.execute("BEGIN").await;
    let one = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), one).await.unwrap();
    session.execute("COMMIT").await;
    runs::mark_failed(session.runs(), one, "no").await.unwrap();
    let two = session.queue("triage", 2).await;
    session.execute(&format!("DELETE FROM workflow_runs WHERE id = '{two}'")).await;
    assert_eq!(runs::status(session.runs(), one).await.unwrap(), Status::Failed);
    assert_eq!(session.count("workflow_runs").await, 1);
}

/// How many entries a [`live`] makes.
const ENTRIES: u64 = 5;

async fn skipped(database: &Database) -> u64 {
    let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM runspan.journal_skipped";
    database.connect().await.text(sql).await.unwrap().parse().unwrap()
}

async fn lives_through(database: &Database, sql: &str) {
    database.attach().await;
    let mut session = database.connect().await;
    session.execute(sql).await;
    live(&mut session).await;
}

async fn a_dropped_journal(database: &Database) {
    lives_through(database, "DROP TABLE runspan.journal").await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn a_renamed_journal(database: &Database) {
    lives_through(database, "ALTER TABLE runspan.journal RENAME TO diary").await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn a_renamed_schema(database: &Database) {
    lives_through(database, "ALTER SCHEMA runspan RENAME TO elsewhere").await;
}

async fn a_dropped_column(database: &Database) {
    lives_through(database, "ALTER TABLE runspan.journal DROP COLUMN reason").await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn a_dropped_sequence(database: &Database) {
    lives_through(database, "DROP SEQUENCE runspan.journal_seq, runspan.journal_skipped CASCADE").await;
}

async fn a_full_type(database: &Database) {
    lives_through(database, "ALTER TABLE runspan.journal ALTER workflow_name TYPE varchar(2)").await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn rights_revoked_from_the_definer(database: &Database) {
    let (role, url) = owner(database).await;
    store::open(&url.parse().unwrap()).unwrap().attach(&plan()).await.unwrap();
    let mut session = database.connect().await;
    session.execute(&format!("REVOKE ALL ON runspan.journal FROM {role}")).await;
    live(&mut session).await;
    assert_eq!(skipped(database).await, ENTRIES);
    session.execute(&format!("REVOKE ALL ON SCHEMA runspan FROM {role}")).await;
    session.execute("TRUNCATE workflow_runs").await;
    live(&mut session).await;
}

/// Locks the journal as a `VACUUM FULL` would.
async fn locked(database: &Database) -> Session {
    let mut locker = database.connect().await;
    locker.execute("BEGIN; LOCK TABLE runspan.journal IN ACCESS EXCLUSIVE MODE").await;
    locker
}

async fn a_locked_journal(database: &Database) {
    database.attach().await;
    let _locker = locked(database).await;
    live(&mut database.connect().await).await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn a_locked_journal_below_the_applications_own_lock_timeout(database: &Database) {
    database.attach().await;
    let _locker = locked(database).await;
    let mut session = database.connect().await;
    session.execute("SET lock_timeout = '1h'").await;
    live(&mut session).await;
    assert_eq!(skipped(database).await, ENTRIES);
    assert_eq!(session.text("SELECT current_setting('lock_timeout')").await.as_deref(), Some("1h"));
}

async fn a_locked_journal_above_the_applications_own_lock_timeout(database: &Database) {
    database.attach().await;
    let _locker = locked(database).await;
    let mut session = database.connect().await;
    session.execute("SET lock_timeout = '1ms'").await;
    live(&mut session).await;
    assert_eq!(skipped(database).await, ENTRIES);
}

async fn a_locked_journal_makes_a_statement_wait_once(database: &Database) {
    database.attach().await;
    let _locker = locked(database).await;
    let mut session = database.connect().await;
    let insert = "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                  SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 2000) n";
    // A wait for each of them would be 200 s.
    tokio::time::timeout(Duration::from_mins(1), session.execute(insert)).await.unwrap();
    assert_eq!(session.count("workflow_runs").await, 2000);
    assert_eq!(skipped(database).await, 2000);
}

async fn a_locked_journal_without_its_counter_makes_a_statement_wait_once(database: &Database) {
    database.attach().await;
    let mut locker = locked(database).await;
    let mut session = database.connect().await;
    for counter in
        ["ALTER SEQUENCE runspan.journal_skipped INCREMENT 1", "DROP SEQUENCE runspan.journal_skipped"]
    {
        // The counter locked too, and then gone for all.
        locker.execute(counter).await;
        if counter.starts_with("DROP") {
            locker.execute("COMMIT").await;
            locker = locked(database).await;
        }
        session.execute("TRUNCATE workflow_runs").await;
        let insert = "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                      SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 600) n";
        // A wait for each of them would be a minute.
        tokio::time::timeout(Duration::from_secs(20), session.execute(insert)).await.unwrap();
        assert_eq!(session.count("workflow_runs").await, 600);
    }
}

async fn a_refusal_is_skipped_too(database: &Database) {
    database.attach().await;
    let locker = locked(database).await;
    let mut session = database.connect().await;
    let refuse = "SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')";
    session.execute("BEGIN").await;
    session.execute(refuse).await;
    session.execute(refuse).await;
    session.execute("COMMIT").await;
    assert_eq!(skipped(database).await, 2);
    drop(locker);
    session.execute("DROP TABLE runspan.journal").await;
    session.execute(refuse).await;
    assert_eq!(skipped(database).await, 3);
}

async fn what_was_skipped_is_mended(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let known = session.queue("triage", 1).await;
    relay.drain().await;
    let mut locker = locked(database).await;
    runs::mark_running(session.runs(), known).await.unwrap();
    session.queue("triage", 2).await;
    locker.execute("ROLLBACK").await;
    assert_eq!(relay.store.status().await.unwrap().skipped_entries, 2);
    // The breaker was the transaction's: the next one is journalled again.
    session.queue("triage", 3).await;
    assert_eq!(relay.store.status().await.unwrap().journal_entries, 1);
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 2);
    insta::assert_snapshot!(relay.drain().await, @r#"
    queued triage acme/widgets#2 rootWorkflowName=triage reconciled
    running triage acme/widgets#1 rootWorkflowName=triage reconciled
    span "triage queued" [] child
    "#);
}

async fn a_nul_escape_in_json_state(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "ALTER TABLE workflow_runs ALTER state DROP DEFAULT, ALTER state TYPE json USING state::json",
        )
        .await;
    let relay = Relay::new(database.attach().await.0).await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, state)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', 1, '{}')",
        )
        .await;
    relay.drain().await;
    // jsonb would have refused it; json hands it on, and no text can hold it: the reason is lost, the entry is not.
    let nul = r#"'{"traceparent": "a\u0000b", "failedReason": "a\u0000b"}'"#;
    session.execute(&format!("UPDATE workflow_runs SET status = 'failed', state = {nul}")).await;
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.skipped_entries), (1, 0));
    // Nor do they hold up what reconciling finds, begun or ended.
    session.execute("DELETE FROM runspan.journal").await;
    session.execute("SET session_replication_role = replica").await;
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, state)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', 2, {nul})"
        ))
        .await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 2);
    insta::assert_snapshot!(session.text("SELECT string_agg(to_status, ' ' ORDER BY seq) FROM runspan.journal").await.unwrap(), @"queued failed");
}

async fn a_breaker_that_outlives_its_transaction_means_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let locker = locked(database).await;
    let mut session = database.connect().await;
    session.execute("BEGIN").await;
    session.queue("triage", 1).await;
    session
        .execute("SELECT set_config('runspan.skipping', current_setting('runspan.skipping'), false)")
        .await;
    session.queue("triage", 2).await;
    session.execute("COMMIT").await;
    drop(locker);
    assert_eq!(skipped(database).await, 2);
    assert_ne!(session.text("SELECT current_setting('runspan.skipping')").await.as_deref(), Some(""));
    for (number, stuck) in
        (3..).zip(["", "SET runspan.skipping = 'on'", "SET runspan.skipping = 'uncounted'"])
    {
        session.execute(stuck).await;
        session.queue("triage", number).await;
    }
    assert_eq!((skipped(database).await, store.status().await.unwrap().journal_entries), (2, 3));
}

async fn names_without_end_are_cut(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 delivery_id)
             SELECT gen_random_uuid(), l, 'pr', l, l, 1, l FROM repeat('x', 2000) l;
             SELECT runspan.dispatch_refused(l, l, l, l, 1, 'no', l) FROM repeat('x', 2000) l",
        )
        .await;
    let longest =
        "SELECT string_agg(concat_ws(' ', length(workflow_name), length(target_owner), length(target_repo),
                       length(delivery_id)), ', ') FROM runspan.journal";
    assert_eq!(session.text(longest).await.as_deref(), Some("1024 1024 1024 1024, 1024 1024 1024 1024"));
    session.execute("DELETE FROM runspan.journal").await;
    store.reconcile().await.unwrap();
    assert_eq!(session.text(longest).await.as_deref(), Some("1024 1024 1024 1024"));
}

async fn a_time_without_end_stops_nothing(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for (number, time) in
        (1..).zip(["infinity", "-infinity", "294276-12-31 23:59:59Z", "4713-01-01 00:00:00Z BC"])
    {
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                     created_at)
                 VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', {number}, '{time}')"
            ))
            .await;
    }
    session.queue("triage", 5).await;
    assert_eq!(relay.drain().await.lines().count(), 5);
}
