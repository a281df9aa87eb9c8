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
    an_entry_that_commits_late_is_no_such_case,
);

const JOURNAL: &str = "the positions of the journal were set back";

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
    assert_eq!(logged.with(JOURNAL).len(), 0);
}
