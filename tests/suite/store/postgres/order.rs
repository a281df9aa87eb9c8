//! The low-water mark: nothing is passed over, and the order of a run's transitions is kept.

use std::collections::{HashMap, HashSet};

use runspan::journal::{After, Change};
use runspan::run::{RunId, Status};
use runspan::runs;
use runspan::store::Position;

use super::{someone_waits, waiters};
use crate::database::{Database, connect, eventually};
use crate::points::Samples;
use crate::projector::{Relay, TERM};
use crate::receiver::Receiver;
use crate::series;

on_postgres!(
    an_entry_of_a_long_transaction_is_not_passed_over,
    a_transaction_that_has_not_written_yet_is_not_passed_over,
    an_entry_of_a_later_transaction_at_an_earlier_position_is_not_passed_over,
    more_late_entries_than_a_batch_holds_are_not_passed_over,
    what_commits_late_comes_before_what_follows_while_a_batch_is_under_way,
    a_thousand_holes_below_what_was_read_hide_nothing,
    the_mark_moves_past_what_is_consumed,
    a_mark_of_another_history_is_forgotten,
    the_transaction_id_is_drawn_before_the_position,
    the_lease_cannot_be_taken_in_the_middle_of_a_commit,
    nothing_is_lost_between_many_writers,
    two_transitions_of_one_run_keep_their_order,
    serializable_writers_are_journalled_once,
    reconciling_beside_writers_tells_nothing_twice,
    a_database_of_repeatable_reads_is_read_all_the_same,
);

/// Reads and commits a batch; the runs it tells of.
async fn consume(relay: &Relay) -> Vec<RunId> {
    let batch = relay.read(100).await;
    let told = batch
        .entries
        .iter()
        .filter_map(|(_, entry)| match entry.as_ref().unwrap().change {
            Change::Transition { run, .. } => Some(run),
            Change::Refusal { .. } => None,
        })
        .collect();
    let commit = relay.plan(batch).await.commit;
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    told
}

async fn an_entry_of_a_long_transaction_is_not_passed_over(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (mut slow, mut fast) = (database.connect().await, database.connect().await);
    slow.execute("BEGIN").await;
    let early = slow.queue("triage", 1).await;
    for number in 2..5 {
        let late = fast.queue("triage", number).await;
        assert_eq!(consume(&relay).await, [late]);
        assert_eq!(relay.store.position(&relay.instance).await.unwrap().low, 0);
    }
    slow.execute("COMMIT").await;
    assert_eq!(consume(&relay).await, [early]);
}

async fn what_commits_late_comes_before_what_follows_while_a_batch_is_under_way(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (mut slow, mut fast) = (database.connect().await, database.connect().await);
    slow.execute("BEGIN").await;
    let late = slow.queue("triage", 1).await;
    fast.queue("triage", 2).await;
    let under_way = relay.read(10).await;
    let commit = relay.plan(under_way).await.commit;
    slow.execute("COMMIT").await;
    runs::mark_running(fast.runs(), late).await.unwrap();
    // The commit is not there yet: its entry is left out, and the earlier one is not.
    let next = relay.store.read(commit.position.clone(), 10).await.unwrap();
    let told: Vec<_> = next
        .entries
        .iter()
        .filter_map(|(_, entry)| match &entry.as_ref().unwrap().change {
            Change::Transition { run, to, .. } => Some((*run, to.clone())),
            Change::Refusal { .. } => None,
        })
        .collect();
    assert_eq!(told, [(late, After::Known(Status::Queued)), (late, After::Known(Status::Running))]);
    // The mark has not passed it: whoever reads after a crash now finds all three.
    assert_eq!(relay.read(10).await.entries.len(), 3);
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    assert_eq!(consume(&relay).await, [late, late]);
}

async fn a_transaction_that_has_not_written_yet_is_not_passed_over(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (mut slow, mut fast) = (database.connect().await, database.connect().await);
    slow.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(slow.count("workflow_runs").await, 0);
    // It holds nothing back: it has no transaction id, and will draw a later position.
    let mut number = 1;
    while relay.store.position(&relay.instance).await.unwrap().low == 0 {
        number += 1;
        assert!(number < 10_000, "the mark does not move");
        let late = fast.queue("triage", number).await;
        assert_eq!(consume(&relay).await, [late]);
    }
    let early = slow.queue("triage", 1).await;
    let late = fast.queue("triage", number + 1).await;
    assert_eq!(consume(&relay).await, [late]);
    slow.execute("COMMIT").await;
    assert_eq!(consume(&relay).await, [early]);
}

async fn an_entry_of_a_later_transaction_at_an_earlier_position_is_not_passed_over(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (mut older, mut slow, mut fast) =
        (database.connect().await, database.connect().await, database.connect().await);
    fast.execute("SET session_replication_role = replica").await;
    let missed = fast.queue("triage", 2).await;
    fast.execute("RESET session_replication_role").await;
    // What reconciliation writes has no subtransaction, whose id would be drawn after the position: its
    // transaction can be older than one that drew an earlier position and is still at work.
    older.execute("BEGIN; SELECT pg_current_xact_id()").await;
    slow.execute("BEGIN").await;
    let early = slow.queue("triage", 1).await;
    older.execute("SELECT runspan.adopt(ARRAY(SELECT runspan.missed_runs()))").await;
    older.execute("COMMIT").await;
    assert_eq!(consume(&relay).await, [missed]);
    for number in 3..6 {
        let late = fast.queue("triage", number).await;
        assert_eq!(consume(&relay).await, [late]);
        assert_eq!(relay.store.position(&relay.instance).await.unwrap().low, 0);
    }
    slow.execute("COMMIT").await;
    assert_eq!(consume(&relay).await, [early]);
}

async fn more_late_entries_than_a_batch_holds_are_not_passed_over(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (mut bulk, mut fast) = (database.connect().await, database.connect().await);
    bulk.execute("BEGIN").await;
    let insert = "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                  SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 250) n";
    bulk.execute(insert).await;
    let late = fast.queue("triage", 251).await;
    assert_eq!(consume(&relay).await, [late]);
    bulk.execute("COMMIT").await;
    let mut told = 0;
    loop {
        match consume(&relay).await.len() {
            0 => break,
            some => told += some,
        }
    }
    assert_eq!((told, relay.store.status().await.unwrap().journal_entries), (250, 0));
}

async fn the_mark_moves_past_what_is_consumed(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    // A transaction in any database of the server holds it back: so it moves, but not at once.
    let mut session = database.connect().await;
    let mut number = 0;
    while relay.store.position(&relay.instance).await.unwrap().low < 3 {
        number += 1;
        assert!(number < 10_000, "the mark does not move");
        session.queue("triage", number).await;
        consume(&relay).await;
    }
    let position = relay.store.position(&relay.instance).await.unwrap();
    assert!(position.low <= number, "{position:?}");
    assert!(
        position.pending.is_none_or(|pending| (position.low..=number).contains(&pending.seq)),
        "{position:?}"
    );
}

async fn a_mark_of_another_history_is_forgotten(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    database.connect().await.queue("triage", 1).await;
    consume(&relay).await;
    assert_ne!(relay.store.position(&relay.instance).await.unwrap(), Position::default());
    assert_eq!(relay.store.position("another").await.unwrap(), Position::default());
}

async fn the_transaction_id_is_drawn_before_the_position(database: &Database) {
    database.attach().await;
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
                   WHERE attrelid = 'runspan.journal'::regclass AND attnum IN (1, 2)";
    let mut session = database.connect().await;
    assert_eq!(session.text(columns).await.as_deref(), Some("xid seq"));
    let cache = "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'runspan.journal_seq'::regclass";
    assert_eq!(session.text(cache).await.as_deref(), Some("1"));
}

async fn the_lease_cannot_be_taken_in_the_middle_of_a_commit(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let commit = relay.plan(relay.read(10).await).await.commit;
    let seen = relay.store.lease().await.unwrap();
    // The commit gets stuck behind its fence.
    session.execute("BEGIN; LOCK TABLE runspan.open_runs IN ACCESS EXCLUSIVE MODE").await;
    let (store, lease, instance) = (relay.store.clone(), relay.lease.clone(), relay.instance.clone());
    let committing = tokio::spawn(async move { store.commit(&lease, &instance, &commit).await });
    eventually("the commit waits", async || waiters(database).await == 1).await;
    let store = relay.store.clone();
    let taking = tokio::spawn(async move { store.take_lease(&seen, "two", TERM).await });
    eventually("the other relay waits too", async || waiters(database).await == 2).await;
    assert!(!taking.is_finished());
    session.execute("COMMIT").await;
    committing.await.unwrap().unwrap();
    assert_eq!(taking.await.unwrap().unwrap().unwrap().epoch(), 2);
}

async fn nothing_is_lost_between_many_writers(database: &Database) {
    const WRITERS: i64 = 6;
    const ROUNDS: i64 = 40;
    let relay = Relay::new(database.attach().await.0).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let url = database.url.clone();
            tokio::spawn(async move {
                let mut session = connect(&url).await;
                for round in 0..ROUNDS {
                    session.execute("BEGIN").await;
                    let id = session.queue("triage", 1 + writer * ROUNDS + round).await;
                    // Some stay open over several batches, some are rolled back.
                    for _ in 0..(writer * round % 7) {
                        session.execute("SELECT pg_sleep(0.001)").await;
                    }
                    if round % 5 == 4 {
                        session.execute("ROLLBACK").await;
                        continue;
                    }
                    runs::mark_running(session.runs(), id).await.unwrap();
                    session.execute("COMMIT").await;
                    runs::mark_succeeded(session.runs(), id).await.unwrap();
                }
            })
        })
        .collect();
    let mut told: HashMap<RunId, usize> = HashMap::new();
    loop {
        let finished = writers.iter().all(tokio::task::JoinHandle::is_finished);
        let batch = consume(&relay).await;
        if finished && batch.is_empty() {
            break;
        }
        for run in batch {
            *told.entry(run).or_default() += 1;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let committed = usize::try_from(WRITERS * ROUNDS * 4 / 5).unwrap();
    assert_eq!(told.len(), committed);
    assert!(told.values().all(|&entries| entries == 3), "{told:?}");
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.open_runs, status.skipped_entries), (0, 0, 0));
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
}

async fn two_transitions_of_one_run_keep_their_order(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut first = database.connect().await;
    let id = first.queue("triage", 1).await;
    first.execute("BEGIN").await;
    runs::mark_running(first.runs(), id).await.unwrap();
    let url = database.url.clone();
    let second = tokio::spawn(async move {
        let mut second = connect(&url).await;
        runs::mark_failed(second.runs(), id, "no").await
    });
    eventually("the second writer waits for the first", || someone_waits(database)).await;
    first.execute("COMMIT").await;
    // It saw the run as queued when it began, and as running once the first had committed.
    second.await.unwrap().unwrap();
    let statuses: Vec<_> = relay
        .read(10)
        .await
        .entries
        .into_iter()
        .map(|(_, entry)| match entry.unwrap().change {
            Change::Transition { to, .. } => to,
            Change::Refusal { .. } => panic!("nothing was refused"),
        })
        .collect();
    assert_eq!(statuses, [Status::Queued, Status::Running, Status::Failed].map(After::Known));
}

async fn serializable_writers_are_journalled_once(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let url = database.url.clone();
            tokio::spawn(async move {
                let mut session = connect(&url).await;
                let mut retries = 0;
                let mut round = 0;
                while round < 20 {
                    session.execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await;
                    // A read and a write that depend on each other, across all writers.
                    session.count("workflow_runs").await;
                    let queued = runs::insert_queued(
                        session.runs(),
                        &crate::database::new_run("triage", 1 + writer * 20 + round),
                    )
                    .await;
                    let committed = match queued {
                        Ok(_) => session.try_execute("COMMIT").await.map_err(runs::RunsError::from),
                        Err(error) => Err(error),
                    };
                    match committed {
                        Ok(_) => round += 1,
                        Err(runs::RunsError::Database(sqlx::Error::Database(error)))
                            if error.code().as_deref() == Some("40001") =>
                        {
                            retries += 1;
                            session.execute("ROLLBACK").await;
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
                retries
            })
        })
        .collect();
    let mut retries = 0;
    for writer in writers {
        retries += writer.await.unwrap();
    }
    assert!(retries > 0, "no writer ever had to try again: the test shows nothing");
    let batch = relay.read(1000).await;
    let told: HashSet<_> = batch
        .entries
        .iter()
        .map(|(_, entry)| match entry.as_ref().unwrap().change {
            Change::Transition { run, .. } => run,
            Change::Refusal { .. } => panic!("no refusal"),
        })
        .collect();
    assert_eq!((batch.entries.len(), told.len()), (80, 80));
    assert_eq!(database.connect().await.count("workflow_runs").await, 80);
}

async fn reconciling_beside_writers_tells_nothing_twice(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    // Begun unseen, and changing while it is found.
    session.execute("SET session_replication_role = replica").await;
    let (held, free) = (session.queue("triage", 1).await, session.queue("triage", 2).await);
    session.execute("RESET session_replication_role").await;
    session.execute("BEGIN").await;
    runs::mark_running(session.runs(), held).await.unwrap();
    // The one that is held is left for the next time, when the journal tells of it anyway.
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 1);
    session.execute("COMMIT").await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    runs::mark_failed(session.runs(), free, "no").await.unwrap();
    insta::assert_snapshot!(relay.drain().await, @r#"
    queued triage acme/widgets#1 rootWorkflowName=triage reconciled
    running triage acme/widgets#1 rootWorkflowName=triage
    queued triage acme/widgets#2 rootWorkflowName=triage reconciled
    failed triage acme/widgets#2 rootWorkflowName=triage outcome=failed error.type=handler reason=no
    completed triage acme/widgets#2 rootWorkflowName=triage outcome=failed
    span "triage queued" [] child
    span "triage queued" [] child
    span "triage" [queued failed] error=no
    "#);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
}

async fn a_database_of_repeatable_reads_is_read_all_the_same(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(&format!(
            "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'",
            database.name()
        ))
        .await;
    let (store, _) = database.attach().await;
    let seen = store.lease().await.unwrap();
    let lease = store.take_lease(&seen, "a", std::time::Duration::from_mins(1)).await.unwrap().unwrap();
    session.execute("BEGIN; UPDATE runspan.lease SET expires_at = expires_at + interval '1 s'").await;
    let renewed =
        tokio::spawn(async move { store.renew_lease(&lease, std::time::Duration::from_mins(1)).await });
    crate::database::eventually("the renewal waits", || someone_waits(database)).await;
    session.execute("COMMIT").await;
    renewed.await.unwrap().unwrap();
}

/// Each is a transaction that was rolled back, or one that has yet to commit: the mark cannot tell while any is open.
async fn a_thousand_holes_below_what_was_read_hide_nothing(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (mut slow, mut fast) = (database.connect().await, database.connect().await);
    slow.execute("BEGIN").await;
    slow.queue("triage", 1).await;
    fast.execute(
        "DO $$ BEGIN FOR n IN 2..5000 LOOP
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n);
             PERFORM nextval('runspan.journal_seq');
         END LOOP; END $$",
    )
    .await;
    let queued = |count: f64| {
        let series = "workflow.run.events{workflowName=triage event=workflow.run.queued}";
        move |receiver: &Receiver| Samples::of(receiver).last(series) == Some(count)
    };
    let relay = series::start(&store, &receiver);
    receiver.wait_until("all that is committed", queued(4_999.0)).await;
    slow.execute("COMMIT").await;
    receiver.wait_until("what commits late", queued(5_000.0)).await;
    relay.drain().await.unwrap();
}
