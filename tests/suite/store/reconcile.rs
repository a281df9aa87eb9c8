//! Mending what the journal missed. The table is the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use runspan::relay::Settings;
use runspan::runs::{self, Parent};
use runspan::store::{Reconciled, Store};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, Session, eventually, new_run};
use crate::hooked::{Hooked, Hooks};
use crate::logged::Logged;
use crate::points::Samples;
use crate::projector::Relay;
use crate::receiver::Receiver;
use crate::series;

on_every_database!(
    runs_in_flight_are_adopted_at_attach,
    nothing_missing_makes_nothing,
    a_missed_transition_is_mended,
    a_missed_beginning_is_mended,
    a_missed_deletion_is_mended,
    an_ended_run_is_never_opened_again,
    what_would_be_set_aside_is_left_alone,
    a_comparison_that_takes_long_holds_no_run_up,
    a_journal_that_is_never_empty_is_compared_all_the_same,
    rows_that_vanished_are_an_error_of_their_own,
    a_stop_waits_for_no_comparison,
);

/// Runs `sql` with the triggers asleep, as a restore does.
async fn unseen(session: &mut Session, sql: &str) {
    match session {
        Session::Postgres(_) => {
            session.execute("SET session_replication_role = replica").await;
            session.execute(sql).await;
            session.execute("RESET session_replication_role").await;
        }
        Session::Sqlite(_) => {
            // SQLite has no such switch: forget what the triggers wrote.
            session.execute("BEGIN IMMEDIATE").await;
            let last = session.text("SELECT coalesce(max(seq), 0) FROM runspan_journal").await.unwrap();
            session.execute(sql).await;
            session.execute(&format!("DELETE FROM runspan_journal WHERE seq > {last}")).await;
            session.execute("COMMIT").await;
        }
    }
}

async fn runs_in_flight_are_adopted_at_attach(database: &Database) {
    let mut session = database.connect().await;
    let parent = session.queue("ship", 1).await;
    runs::mark_running(session.runs(), parent).await.unwrap();
    let mut child = new_run("implement", 1);
    child.parent = Some(Parent { run: parent, step_index: 0 });
    runs::insert_queued(session.runs(), &child).await.unwrap();
    let ended = session.queue("triage", 1).await;
    runs::mark_failed(session.runs(), ended, "no").await.unwrap();

    let (store, attached) = database.attach().await;
    assert_eq!(attached.adopted, Some(2));
    let relay = Relay::new(store).await;
    assert_told!(relay.drain().await, @r#"
    queued ship acme/widgets#1 rootWorkflowName=ship reconciled
    running ship acme/widgets#1 rootWorkflowName=ship reconciled
    queued implement acme/widgets#1 rootWorkflowName=ship reconciled
    handed_off ship acme/widgets#1 rootWorkflowName=ship childWorkflowName=implement reconciled
    span "ship queued" [] child
    "#);
    assert_eq!(database.attach().await.1.adopted, Some(0));
    session.execute("UPDATE workflow_runs SET status = 'succeeded' WHERE workflow_name = 'ship'").await;
    assert_told!(relay.drain().await, @r#"
    succeeded ship acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    completed ship acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    span "ship" [queued running handed_off succeeded]
    "#);
}

async fn nothing_missing_makes_nothing(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    let (one, two) = (session.queue("triage", 1).await, session.queue("triage", 2).await);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    relay.drain().await;
    runs::mark_running(session.runs(), one).await.unwrap();
    runs::mark_failed(session.runs(), two, "no").await.unwrap();
    // The journal knows, the open runs do not yet.
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
}

async fn a_missed_transition_is_mended(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for number in [1, 2, 3] {
        session.queue("triage", number).await;
    }
    relay.drain().await;
    let state = r#"{"failedReason": "timeout: 1 h", "incompleteReason": "step 3"}"#;
    unseen(&mut session, "UPDATE workflow_runs SET status = 'running' WHERE target_number = 1").await;
    unseen(
        &mut session,
        &format!("UPDATE workflow_runs SET status = 'failed', state = '{state}' WHERE target_number = 2"),
    )
    .await;
    unseen(
        &mut session,
        &format!("UPDATE workflow_runs SET status = 'incomplete', state = '{state}' WHERE target_number = 3"),
    )
    .await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 3);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    assert_told!(relay.drain().await, @r#"
    running triage acme/widgets#1 rootWorkflowName=triage reconciled
    failed triage acme/widgets#2 rootWorkflowName=triage outcome=failed error.type=timeout reason=timeout: 1 h reconciled
    completed triage acme/widgets#2 rootWorkflowName=triage outcome=failed reconciled
    incomplete triage acme/widgets#3 rootWorkflowName=triage outcome=incomplete reason=step 3 reconciled
    completed triage acme/widgets#3 rootWorkflowName=triage outcome=incomplete reconciled
    span "triage queued" [] child
    span "triage queued" [] child
    span "triage" [queued failed] error=timeout: 1 h
    span "triage queued" [] child
    span "triage" [queued incomplete]
    "#);
}

async fn a_missed_beginning_is_mended(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    unseen(
        &mut session,
        "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
             status, created_at, updated_at)
         VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 'pr', 'acme', 'widgets', 7, 'running',
             '2026-01-02T03:04:05.678Z', '2026-01-02T03:05:05.678Z')",
    )
    .await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 1);
    let (_, projected) = relay.step(10).await;
    let told: Vec<_> =
        projected.records.iter().map(|record| format!("{} {}", record.event, record.at)).collect();
    assert_eq!(
        told,
        [
            "workflow.run.queued 2026-01-02T03:04:05.678000Z",
            "workflow.run.running 2026-01-02T03:05:05.678000Z"
        ]
    );
}

async fn a_missed_deletion_is_mended(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    relay.drain().await;
    unseen(&mut session, "DELETE FROM workflow_runs").await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 1);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    assert_told!(relay.drain().await, @r#"
    deleted triage acme/widgets#1 rootWorkflowName=triage outcome=deleted reconciled
    completed triage acme/widgets#1 rootWorkflowName=triage outcome=deleted reconciled
    span "triage queued" [] child
    span "triage" [queued deleted]
    "#);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
}

async fn an_ended_run_is_never_opened_again(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    runs::mark_failed(session.runs(), id, "no").await.unwrap();
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    // Its row comes back to life, seen by the triggers: the run is over all the same.
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    assert_told!(relay.drain().await, @"conflict triage acme/widgets#1 rootWorkflowName=triage fromStatus=running toStatus=succeeded");
    assert_eq!(relay.store.status().await.unwrap().open_runs, 0);
}

async fn what_would_be_set_aside_is_left_alone(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let (column, bad) = if database.is_postgres() {
        session.execute("ALTER TABLE workflow_runs ALTER workflow_name DROP NOT NULL").await;
        ("workflow_name", "NULL")
    } else {
        ("id", "'run 1'")
    };
    session.queue("triage", 1).await;
    session.execute(&format!("UPDATE workflow_runs SET {column} = {bad}")).await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    relay.drain().await;
    let status = relay.store.status().await.unwrap();
    assert_eq!(status.set_aside_entries, 1);
    relay.store.reconcile().await.unwrap();
    relay.drain().await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    assert_eq!(relay.store.status().await.unwrap().set_aside_entries, 1);
}

/// Holds each comparison up.
#[derive(Default)]
struct Slow {
    is_under_way: CancellationToken,
    go_on: CancellationToken,
}

#[async_trait]
impl Hooks for Slow {
    async fn before(&self, call: &'static str) {
        if call == "reconcile" {
            self.is_under_way.cancel();
            self.go_on.cancelled().await;
        }
    }

    async fn after(&self, _: &'static str) {}
}

async fn a_comparison_that_takes_long_holds_no_run_up(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let slow = Arc::new(Slow::default());
    let store: Arc<dyn Store> = Arc::new(Hooked { store, hooks: Arc::clone(&slow) });
    let mut session = database.connect().await;
    let relay = series::start(&store, &receiver);
    eventually("a comparison", async || slow.is_under_way.is_cancelled()).await;
    series::succeed(&mut session, "triage", 1..=1).await;
    let is_counted = |receiver: &Receiver| Samples::of(receiver).last(series::SUCCEEDED) == Some(1.0);
    receiver.wait_until("the run", is_counted).await;
    // Nobody knows yet whether that is all.
    assert!(!relay.status().snapshot().journal_empty);
    slow.go_on.cancel();
    relay.drain().await.unwrap();
}

/// Writes something before each read, and counts the comparisons.
struct Busy {
    session: Mutex<(Session, i64)>,
    comparisons: AtomicUsize,
}

#[async_trait]
impl Hooks for Busy {
    async fn before(&self, call: &'static str) {
        if call == "read" {
            let (session, number) = &mut *self.session.lock().await;
            *number += 1;
            session.queue("triage", *number).await;
        }
    }

    async fn after(&self, call: &'static str) {
        if call == "reconcile" {
            self.comparisons.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn a_journal_that_is_never_empty_is_compared_all_the_same(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let busy = Arc::new(Busy {
        session: Mutex::new((database.connect().await, 0)),
        comparisons: AtomicUsize::new(0),
    });
    let store: Arc<dyn Store> = Arc::new(Hooked { store, hooks: Arc::clone(&busy) });
    let settings = Settings { reconcile_every: Duration::from_millis(20), ..series::settings() };
    let relay = series::relay(&store, &receiver, &[]).with(settings).spawn();
    let compared = async || busy.comparisons.load(Ordering::Relaxed) > 2;
    eventually("the third comparison", compared).await;
    assert!(!relay.status().snapshot().journal_empty);
    relay.stop().await.unwrap();
}

/// What ends a run was seen by no trigger.
struct Vanishing;

#[async_trait]
impl Hooks for Vanishing {
    async fn before(&self, _: &'static str) {}

    async fn after(&self, _: &'static str) {}

    fn reconciled(&self, found: Reconciled) -> Reconciled {
        Reconciled { vanished: found.entries, ..found }
    }
}

async fn rows_that_vanished_are_an_error_of_their_own(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let mut session = database.connect().await;
    for number in 1..=3 {
        session.queue("triage", number).await;
    }
    let store: Arc<dyn Store> = Arc::new(Hooked { store, hooks: Arc::new(Vanishing) });
    series::start(&store, &receiver).drain().await.unwrap();
    assert_eq!(logged.with("are gone without a DELETE").len(), 0);
    unseen(&mut session, "DELETE FROM workflow_runs").await;
    series::start(&store, &receiver).drain().await.unwrap();
    let said =
        logged.with("error the rows of runs in flight are gone without a DELETE that the triggers saw");
    assert_eq!(said.len(), 1);
    assert!(said[0].ends_with("; these runs end as `deleted`"), "{said:?}");
    let deleted = "workflow.run.events{workflowName=triage event=workflow.run.deleted}";
    assert_eq!(Samples::of(&receiver).last(deleted), Some(3.0));
}

async fn a_stop_waits_for_no_comparison(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    // It goes on for ever.
    let slow = Arc::new(Slow::default());
    let store: Arc<dyn Store> = Arc::new(Hooked { store, hooks: Arc::clone(&slow) });
    let relay = series::start(&store, &receiver);
    eventually("a comparison", async || slow.is_under_way.is_cancelled()).await;
    tokio::time::timeout(Duration::from_secs(20), relay.stop()).await.expect("it ends").unwrap();
}
