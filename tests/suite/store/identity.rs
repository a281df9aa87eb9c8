//! A database and its copies: a copy that is certain is refused, and can be made independent.

use std::sync::Arc;

use runspan::relay::Ended;
use runspan::runs;
use runspan::store::{self, Store, StoreError};

use crate::database::{Database, connect};
use crate::receiver::Receiver;
use crate::series;

on_every_database!(a_copy_is_refused_until_its_identity_is_reset);

/// The URL of a copy, which is made while nobody uses the original.
async fn copy(database: &Database) -> String {
    if let Some(path) = database.url.strip_prefix("sqlite:") {
        database.connect().await.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
        let copy = format!("{path}.copy");
        std::fs::copy(path, &copy).unwrap();
        return format!("sqlite:{copy}");
    }
    let name = database.name();
    let mut server = connect(&beside(database, "postgres")).await;
    let sql = format!("CREATE DATABASE {name}_copy TEMPLATE {name}");
    let clear = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    for _ in 0..100 {
        server.execute(&clear).await;
        if server.try_execute(&sql).await.is_ok() {
            return beside(database, &format!("{name}_copy"));
        }
    }
    panic!("{name} is always in use");
}

/// The URL of another database on the same server.
fn beside(database: &Database, name: &str) -> String {
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_path(name);
    url.into()
}

async fn a_copy_is_refused_until_its_identity_is_reset(database: &Database) {
    let (original, receiver): (Arc<dyn Store>, _) = (database.attach().await.0, Receiver::grpc().await);
    let mut session = database.connect().await;
    let run = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), run).await.unwrap();
    assert_eq!(series::start(&original, &receiver).drain().await.unwrap(), Ended::Idle);
    // For the copy to have something of the original's.
    session.queue("triage", 2).await;
    drop(session);
    let url = copy(database).await;
    let copy = store::open(&url.parse().unwrap()).unwrap();

    let sent = receiver.requests().len();
    let error = series::start(&copy, &receiver).drain().await.unwrap_err().to_string();
    assert!(error.starts_with("this is a copy of ") && error.contains("`runspan new-identity`"), "{error}");
    assert_eq!(receiver.requests().len(), sent, "nothing was sent");
    original.check_original().await.unwrap();

    let before = copy.instance().await.unwrap();
    copy.reset_identity().await.unwrap();
    assert_ne!(copy.instance().await.unwrap(), before);
    let status = copy.status().await.unwrap();
    assert_eq!((status.journal_entries, status.waiting_requests, status.open_runs), (0, 0, 0));
    copy.check_original().await.unwrap();
    // What happens in the copy from now on is its own.
    let mut session = connect(&url).await;
    session.execute("DELETE FROM workflow_runs").await;
    session.queue("triage", 3).await;
    assert_eq!(series::start(&copy, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(copy.status().await.unwrap().open_runs, 1);
    assert_eq!(series::start(&original, &receiver).drain().await.unwrap(), Ended::Idle);
    drop(session);
    if database.is_postgres() {
        let drop = format!("DROP DATABASE {}_copy WITH (FORCE)", database.name());
        database.connect().await.execute(&drop).await;
    }
}

#[tokio::test]
async fn a_moved_file_is_the_same_and_so_is_one_that_was_put_back() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    store.check_original().await.unwrap();
    let instance = store.instance().await.unwrap();
    drop(store);
    let path = database.url.strip_prefix("sqlite:").unwrap();
    database.connect().await.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let moved = format!("{path}.moved");
    std::fs::rename(path, &moved).unwrap();
    let store = store::open(&format!("sqlite:{moved}").parse().unwrap()).unwrap();
    store.check_original().await.unwrap();
    assert_eq!(store.instance().await.unwrap(), instance);
    // A backup that is put back where the file was.
    std::fs::copy(&moved, format!("{path}.backup")).unwrap();
    std::fs::remove_file(&moved).unwrap();
    std::fs::rename(format!("{path}.backup"), &moved).unwrap();
    let store = store::open(&format!("sqlite:{moved}").parse().unwrap()).unwrap();
    store.check_original().await.unwrap();
    assert!(!matches!(store.check().await, Err(StoreError::Copied { .. })));
}
