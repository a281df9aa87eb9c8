//! Somebody sets sequences back (`setval`, a logical cut-over, a script): numbers come again that were read long ago.

use std::sync::Arc;
use std::time::Duration;

use runspan::relay::{RelayHandle, Settings};
use runspan::store::Store;

use crate::database::{Database, Session, eventually};
use crate::logged::Logged;
use crate::points::Samples;
use crate::receiver::Receiver;
use crate::series::{self, SUCCEEDED, succeed};

on_every_database!(
    entries_at_positions_that_were_read_are_read,
    they_are_read_after_a_restart_too,
    so_are_those_before_all_that_a_relay_has_read,
    more_than_was_read_at_once_is_in_order,
    an_entry_that_commits_late_is_no_such_case,
    pending_metrics_at_places_that_were_read_are_told,
);

const JOURNAL: &str = "the journal's sequence was set back";
const DELTAS: &str = "the sequence of runspan.deltas was set back";

fn start(store: &Arc<dyn Store>, receiver: &Receiver) -> RelayHandle {
    let settings = Settings { look_every: Duration::from_millis(20), ..series::settings() };
    series::relay(store, receiver, &[]).with(settings).spawn()
}

/// The next row of one of runspan's own tables gets one of the first numbers.
async fn set_back(session: &mut Session, table: &str) {
    let sql = match session {
        Session::Postgres(_) if table == "journal" => "SELECT setval('runspan.journal_seq', 1)".to_owned(),
        Session::Postgres(_) => format!("SELECT setval(pg_get_serial_sequence('runspan.{table}', 'id'), 1)"),
        Session::Sqlite(_) => format!("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'runspan_{table}'"),
    };
    session.execute(&sql).await;
}

async fn is_told(receiver: &Receiver, runs: f64) {
    let is_told = |receiver: &Receiver| Samples::of(receiver).last(SUCCEEDED) == Some(runs);
    receiver.wait_until("the runs", is_told).await;
}

async fn entries_at_positions_that_were_read_are_read(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let mut session = database.connect().await;
    let relay = start(&store, &receiver);
    succeed(&mut session, "triage", 1..=3).await;
    is_told(&receiver, 3.0).await;
    set_back(&mut session, "journal").await;
    succeed(&mut session, "triage", 4..=4).await;
    is_told(&receiver, 4.0).await;
    assert_eq!(logged.with(JOURNAL).len(), 1);
    // From there on as ever.
    succeed(&mut session, "triage", 5..=9).await;
    is_told(&receiver, 9.0).await;
    relay.drain().await.unwrap();
    assert_eq!(logged.with(JOURNAL).len(), 1);
}

async fn they_are_read_after_a_restart_too(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let mut session = database.connect().await;
    let relay = start(&store, &receiver);
    // Each by itself, so that the mark moves.
    for run in 1..=3 {
        succeed(&mut session, "triage", run..=run).await;
        eventually("an empty journal", async || store.status().await.unwrap().journal_entries == 0).await;
    }
    relay.drain().await.unwrap();
    set_back(&mut session, "journal").await;
    succeed(&mut session, "triage", 4..=4).await;
    start(&store, &receiver).drain().await.unwrap();
    assert_eq!(Samples::of(&receiver).last(SUCCEEDED), Some(4.0));
}

async fn so_are_those_before_all_that_a_relay_has_read(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=3).await;
    start(&store, &receiver).drain().await.unwrap();
    let relay = start(&store, &receiver);
    // One batch, and so nothing that would move the mark.
    session.execute("BEGIN").await;
    succeed(&mut session, "triage", 4..=4).await;
    session.execute("COMMIT").await;
    is_told(&receiver, 4.0).await;
    set_back(&mut session, "journal").await;
    succeed(&mut session, "triage", 5..=5).await;
    is_told(&receiver, 5.0).await;
    relay.stop().await.unwrap();
}

async fn more_than_was_read_at_once_is_in_order(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let mut session = database.connect().await;
    let relay = start(&store, &receiver);
    succeed(&mut session, "triage", 1..=3).await;
    is_told(&receiver, 3.0).await;
    set_back(&mut session, "journal").await;
    // The last of them have positions that were never read: alone they would tell of ends without a beginning.
    session.execute(if database.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" }).await;
    succeed(&mut session, "triage", 4..=9).await;
    session.execute("COMMIT").await;
    is_told(&receiver, 9.0).await;
    relay.drain().await.unwrap();
    let samples = Samples::of(&receiver);
    assert_eq!(samples.last(SUCCEEDED), Some(9.0));
    for event in ["queued", "running", "succeeded"] {
        let series = format!("workflow.run.events{{workflowName=triage event=workflow.run.{event}}}");
        assert_eq!(samples.last(&series), Some(9.0), "{event}");
    }
    assert_eq!(logged.with(JOURNAL).len(), 1);
}

async fn an_entry_that_commits_late_is_no_such_case(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let (mut late, mut session) = (database.connect().await, database.connect().await);
    let relay = start(&store, &receiver);
    // (SQLite has one writer at a time.)
    if database.is_postgres() {
        late.execute("BEGIN").await;
        succeed(&mut late, "triage", 1..=1).await;
    }
    succeed(&mut session, "triage", 2..=4).await;
    is_told(&receiver, 3.0).await;
    if database.is_postgres() {
        late.execute("COMMIT").await;
    } else {
        succeed(&mut late, "triage", 1..=1).await;
    }
    is_told(&receiver, 4.0).await;
    relay.drain().await.unwrap();
    assert_eq!(logged.with(JOURNAL).len() + logged.with(DELTAS).len(), 0);
}

async fn pending_metrics_at_places_that_were_read_are_told(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let mut session = database.connect().await;
    let relay = start(&store, &receiver);
    for run in 1..=5 {
        succeed(&mut session, "triage", run..=run).await;
        is_told(&receiver, f64::from(u8::try_from(run).unwrap())).await;
    }
    assert_eq!(logged.with(DELTAS).len(), 0);
    // SQLite goes on from the last row that is there, so the last one has to be written down as told.
    let deltas = database.own("deltas");
    let none_is_left = async {
        while session.count(&deltas).await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), none_is_left).await.expect("the last one is written down");
    set_back(&mut session, "deltas").await;
    for run in 6..=8 {
        succeed(&mut session, "triage", run..=run).await;
        is_told(&receiver, f64::from(u8::try_from(run).unwrap())).await;
    }
    relay.drain().await.unwrap();
    // They go on above those that were read, whatever the sequence says.
    assert_eq!(logged.with(DELTAS).len(), 0);
    assert_eq!(Samples::of(&receiver).increase("workflow.run.duration"), 8);
}
