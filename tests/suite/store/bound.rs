//! The journal has a bound: beyond it the triggers write nothing, and count.

use std::sync::Arc;
use std::time::Duration;

use runspan::relay::{Settings, serve_health};
use runspan::store::{Plan, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::get;
use crate::database::{Database, eventually, plan};
use crate::projector::Relay;
use crate::receiver::Receiver;
use crate::series;

on_every_database!(
    a_full_journal_skips_and_counts_until_there_is_room,
    a_relay_gives_room_back,
    health_reports_how_full_the_journal_is,
);

async fn attach(database: &Database, entries: u32) -> Arc<dyn Store> {
    let store = database.store();
    store.attach(&Plan { max_journal_entries: Some(entries), ..plan() }).await.unwrap();
    store
}

async fn a_full_journal_skips_and_counts_until_there_is_room(database: &Database) {
    let store = attach(database, 10).await;
    let mut session = database.connect().await;
    let counts = async || {
        let status = store.status().await.unwrap();
        (status.journal_entries, status.skipped_entries, status.journal_percent())
    };
    for number in 1..=12 {
        session.queue("triage", number).await;
    }
    assert_eq!(counts().await, (10, 2, 100));
    let refuse = if database.is_postgres() {
        "SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')"
    } else {
        "INSERT INTO runspan_dispatch_refused (workflow_name, target_type, target_owner, target_repo, target_number, reason)
         VALUES ('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')"
    };
    session.execute(refuse).await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    session.execute("DELETE FROM workflow_runs WHERE target_number = 12").await;
    assert_eq!(counts().await, (10, 16, 100));
    // A reconciliation has no room either, and is no error.
    assert_eq!(store.reconcile().await.unwrap().entries, 0);

    let relay = Relay::new(Arc::clone(&store)).await;
    relay.drain().await;
    store.make_room().await.unwrap();
    // The beginning of the eleventh run, and that the others run.
    while store.reconcile().await.unwrap().entries > 0 {
        assert!(counts().await.0 <= 11);
        relay.drain().await;
        store.make_room().await.unwrap();
    }
    assert_eq!(store.status().await.unwrap().open_runs, 11);

    // Another limit takes effect at once; without one it stays.
    attach(database, 1_000).await;
    store.attach(&plan()).await.unwrap();
    for number in 21..=40 {
        session.queue("triage", number).await;
    }
    assert_eq!(counts().await, (20, 16, 2));
}

async fn a_relay_gives_room_back(database: &Database) {
    let store = attach(database, 10).await;
    let mut session = database.connect().await;
    let receiver = Receiver::grpc().await;
    let settings = Settings { trim_every: Duration::ZERO, ..series::settings() };
    let relay = series::relay(&store, &receiver, &[]).with(settings).spawn();
    for number in 1..=40 {
        session.queue("triage", number).await;
        eventually("room", async || store.status().await.unwrap().journal_entries == 0).await;
    }
    assert_eq!(store.status().await.unwrap().skipped_entries, 0);
    relay.stop().await.unwrap();
}

async fn health_reports_how_full_the_journal_is(database: &Database) {
    let store = attach(database, 10).await;
    let mut session = database.connect().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let status = series::relay(&store, &Receiver::grpc().await, &[]).status();
    let serving = tokio::spawn(serve_health(listener, Arc::clone(&store), status, stop.clone()));
    for (number, problems) in [(4, vec![]), (5, vec!["the journal is 50 % full"])] {
        while store.status().await.unwrap().journal_entries < number {
            let next = store.status().await.unwrap().journal_entries + 1;
            session.queue("triage", next).await;
        }
        let (code, ready) = get(address, "/ready").await;
        assert_eq!((code, &ready["journal"]["problems"]), (200, &serde_json::json!(problems)));
        assert_eq!(ready["database"]["journalLimit"], 10);
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
}
