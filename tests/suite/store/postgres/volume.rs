//! Many transitions at once.

use crate::database::{Database, Session, eventually};

on_postgres!(
    fifty_thousand_in_one_statement_and_twenty_thousand_in_one_transaction,
    attaching_waits_for_no_one_and_lets_others_through,
    many_runs_in_flight_are_adopted_in_portions,
    a_journal_that_seemed_empty_is_read_once_for_all_that_it_missed,
    at_rest_the_work_does_not_depend_on_what_has_passed,
);

async fn fifty_thousand_in_one_statement_and_twenty_thousand_in_one_transaction(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 50000) n",
        )
        .await;
    session
        .execute(
            "DO $$
             DECLARE run record;
             BEGIN
                 FOR run IN SELECT id FROM workflow_runs LIMIT 20000 LOOP
                     UPDATE workflow_runs SET status = 'running' WHERE id = run.id;
                 END LOOP;
             END $$",
        )
        .await;
    let status = store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.skipped_entries), (70_000, 0));
}

async fn attaching_waits_for_no_one_and_lets_others_through(database: &Database) {
    let mut holder = database.connect().await;
    holder.execute("BEGIN").await;
    holder.queue("triage", 1).await;
    let store = database.store();
    let attaching = tokio::spawn(async move { store.attach(&crate::database::plan()).await });
    // Its lock is asked for, given up and asked for again; in between another writer gets through.
    let mut other = database.connect().await;
    crate::database::eventually("attach waits", || super::someone_waits(database)).await;
    other.queue("triage", 2).await;
    assert!(!attaching.is_finished());
    holder.execute("COMMIT").await;
    let attached = attaching.await.unwrap().unwrap();
    assert_eq!(attached.adopted, Some(2));
}

async fn many_runs_in_flight_are_adopted_in_portions(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 20001) n",
        )
        .await;
    let (store, attached) = database.attach().await;
    assert_eq!(attached.adopted, Some(20_001));
    assert_eq!(store.status().await.unwrap().journal_entries, 20_001);
}

/// A nested loop over both, which is what statistics from a moment ago lead to, once took a relay minutes.
async fn a_journal_that_seemed_empty_is_read_once_for_all_that_it_missed(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    session.execute("SET session_replication_role = replica").await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 2000) n",
        )
        .await;
    session.execute("RESET session_replication_role").await;
    session
        .execute(
            "INSERT INTO runspan.journal (run_id, reason)
             SELECT gen_random_uuid(), repeat('-', 200) FROM generate_series(1, 2000)",
        )
        .await;
    session.execute("INSERT INTO runspan.open_runs SELECT run_id, 'queued', '{}' FROM runspan.journal").await;
    session.execute("DELETE FROM runspan.journal").await;
    session.execute("ANALYZE").await;
    session.execute("BEGIN").await;
    // 2,000 that began, and 2,000 that are gone.
    let adopted = session.text("SELECT runspan.adopt(ARRAY(SELECT runspan.missed_runs()))").await.unwrap();
    let caught_up = session.text("SELECT entries || ' ' || vanished FROM runspan.catch_up()").await.unwrap();
    assert_eq!((adopted.as_str(), caught_up.as_str()), ("2000", "2000 2000"));
    let scans = session.text("SELECT pg_stat_get_xact_numscans('runspan.journal'::regclass)::text").await;
    let scans: u64 = scans.unwrap().parse().unwrap();
    assert!(scans < 10, "the journal is read {scans} times");
}

async fn at_rest_the_work_does_not_depend_on_what_has_passed(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let before = blocks_at_rest(database, &mut session).await;
    session
        .execute(
            "INSERT INTO runspan.journal (at) SELECT now() FROM generate_series(1, 200000);
             INSERT INTO runspan.open_runs SELECT gen_random_uuid(), 'queued', repeat('x', 200) FROM generate_series(1, 50000);
             DELETE FROM runspan.journal;
             DELETE FROM runspan.open_runs",
        )
        .await;
    // As autovacuum does within minutes.
    for table in ["journal", "open_runs"] {
        session.execute(&format!("VACUUM ANALYZE runspan.{table}")).await;
    }
    let pages = session
        .count("(SELECT 1 FROM generate_series(1, pg_relation_size('runspan.journal') / 8192)) pages")
        .await;
    assert!(pages > 1_000, "the journal stays large: {pages}");
    let after = blocks_at_rest(database, &mut session).await;
    assert!(after < 2 * before + 100, "{before} before, {after} after");
}

/// The blocks of runspan's tables and their indexes that a poll and a reconciliation touch.
async fn blocks_at_rest(database: &Database, session: &mut Session) -> i64 {
    let before = blocks(session).await;
    let store = database.store();
    store.status().await.unwrap();
    store.reconcile().await.unwrap();
    store.make_room().await.unwrap();
    drop(store);
    // A session reports what it has read when it ends.
    eventually("no session", || async {
        let sessions = "pg_stat_activity WHERE application_name = 'runspan' AND datname = current_database()";
        database.connect().await.count(sessions).await == 0
    })
    .await;
    blocks(session).await - before
}

async fn blocks(session: &mut Session) -> i64 {
    let sql = "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::text
               FROM pg_statio_user_tables WHERE schemaname = 'runspan'";
    session.text(sql).await.unwrap().parse().unwrap()
}
