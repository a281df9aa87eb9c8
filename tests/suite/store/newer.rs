//! An older relay beside a newer one: it stands by instead of failing.

use std::sync::Arc;

use runspan::runs;
use runspan::store::Store;

use crate::database::{Database, Session, eventually};
use crate::logged::Logged;
use crate::points::Samples;
use crate::receiver::Receiver;
use crate::series;

on_every_database!(a_relay_stands_by_while_an_open_run_has_a_value_of_a_newer_version);

async fn replace(session: &mut Session, from: &str, to: &str) {
    let table =
        if matches!(session, Session::Postgres(_)) { "runspan.open_runs" } else { "runspan_open_runs" };
    session.execute(&format!("UPDATE {table} SET state = replace(state, '{from}', '{to}')")).await;
}

async fn a_relay_stands_by_while_an_open_run_has_a_value_of_a_newer_version(database: &Database) {
    let (store, receiver): (Arc<dyn Store>, _) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let mut session = database.connect().await;
    let run = session.queue("triage", 1).await;
    series::start(&store, &receiver).drain().await.unwrap();
    replace(&mut session, r#""status":"queued""#, r#""status":"suspended""#).await;
    runs::mark_running(session.runs(), run).await.unwrap();
    let relay = series::start(&store, &receiver);
    eventually("a line", async || !logged.with("was written by a newer runspan").is_empty()).await;
    assert!(logged.with("was written by a newer runspan")[0].contains("suspended"));
    // `/ready` and `until_idle` report it.
    let problem = || relay.status().snapshot().database_problem.unwrap_or_default();
    eventually("a problem", async || problem().contains("was written by a newer runspan")).await;
    replace(&mut session, r#""status":"suspended""#, r#""status":"queued""#).await;
    runs::mark_succeeded(session.runs(), run).await.unwrap();
    let is_counted = |receiver: &Receiver| Samples::of(receiver).last(series::SUCCEEDED) == Some(1.0);
    receiver.wait_until("the run", is_counted).await;
    relay.stop().await.unwrap();
}
