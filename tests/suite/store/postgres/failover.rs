//! A server that turns read-only, as an old primary does after a failover, and one that lets the relay's role in no longer.

use std::sync::Arc;

use runspan::relay::{RelayHandle, serve_health};
use runspan::runs;
use runspan::store::{self, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::owner;
use crate::cli::get;
use crate::database::{Database, eventually, plan};
use crate::logged::Logged;
use crate::points::Samples;
use crate::receiver::Receiver;
use crate::series;

on_postgres!(
    connections_to_a_server_that_became_read_only_are_closed,
    a_role_that_may_not_log_in_for_a_while_is_waited_for,
    a_relay_that_ends_by_itself_says_so,
    a_server_that_does_not_tell_its_history_has_one_all_the_same,
);

/// A relay as the table's owner, which has relayed one run.
async fn start(database: &Database, receiver: &Receiver) -> (RelayHandle, Arc<dyn Store>, String) {
    let (role, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    let relay = series::start(&store, receiver);
    succeed_and_wait(database, receiver, 1).await;
    (relay, store, role)
}

/// One more run, of so many.
async fn succeed_and_wait(database: &Database, receiver: &Receiver, runs: u32) {
    let mut session = database.connect().await;
    let run = session.queue("triage", i64::from(runs)).await;
    runs::mark_running(session.runs(), run).await.unwrap();
    runs::mark_succeeded(session.runs(), run).await.unwrap();
    let is_counted =
        |receiver: &Receiver| Samples::of(receiver).last(series::SUCCEEDED) == Some(f64::from(runs));
    receiver.wait_until("the run", is_counted).await;
}

/// Changes the role and ends its sessions: new ones begin with the change.
async fn change(database: &Database, role: &str, change: &str) {
    database
        .connect()
        .await
        .execute(&format!(
            "ALTER ROLE {role} {change}; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        ))
        .await;
}

async fn connections_to_a_server_that_became_read_only_are_closed(database: &Database) {
    let receiver = Receiver::grpc().await;
    let (relay, store, role) = start(database, &receiver).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve_health(listener, store, relay.status().clone(), stop.clone()));

    change(database, &role, "SET default_transaction_read_only = on").await;
    eventually("not ready", async || {
        let (code, ready) = get(address, "/ready").await;
        code == 503 && ready["problem"].as_str().unwrap().starts_with("the database accepts no writes (")
    })
    .await;
    // From now on new sessions can write. The old ones are not ended: a server that was demoted keeps them.
    database.connect().await.execute(&format!("ALTER ROLE {role} RESET default_transaction_read_only")).await;
    succeed_and_wait(database, &receiver, 2).await;
    eventually("ready", async || get(address, "/ready").await.0 == 200).await;
    stop.cancel();
    relay.stop().await.unwrap();
}

async fn a_role_that_may_not_log_in_for_a_while_is_waited_for(database: &Database) {
    let receiver = Receiver::grpc().await;
    let (logged, _guard) = Logged::start();
    let (relay, _, role) = start(database, &receiver).await;
    change(database, &role, "NOLOGIN").await;
    eventually("a line", async || !logged.with("is not permitted to log in").is_empty()).await;
    assert!(relay.status().snapshot().database_problem.is_some());
    change(database, &role, "LOGIN").await;
    succeed_and_wait(database, &receiver, 2).await;
    relay.stop().await.unwrap();
}

async fn a_relay_that_ends_by_itself_says_so(database: &Database) {
    let receiver = Receiver::grpc().await;
    let (logged, _guard) = Logged::start();
    let (role, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    change(database, &role, "NOLOGIN").await;
    let relay = series::start(&store, &receiver);
    eventually("a line", async || !logged.with("the relay ended").is_empty()).await;
    assert!(logged.with("the relay ended")[0].contains("is not permitted to log in"));
    assert!(relay.stop().await.is_err());
}

/// Aurora does not support the one function, a strict administrator revokes the other.
async fn a_server_that_does_not_tell_its_history_has_one_all_the_same(database: &Database) {
    let mut admin = database.connect().await;
    for revoked in ["pg_control_system()", "pg_current_wal_insert_lsn()"] {
        admin.execute(&format!("REVOKE EXECUTE ON FUNCTION {revoked} FROM PUBLIC")).await;
    }
    let receiver = Receiver::grpc().await;
    let (relay, store, _) = start(database, &receiver).await;
    let instance = store.instance().await.unwrap();
    assert_eq!(instance.split('-').count(), 2, "{instance}");
    relay.stop().await.unwrap();
    assert_eq!(store.instance().await.unwrap(), instance);
    store.check_original().await.unwrap();
}
