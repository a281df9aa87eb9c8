//! A process that is stopped in the middle of a transaction does not stop the others.

use runspan::run::Status;
use runspan::runs;
use runspan::runtime::{Outcome, Steps, Workflow};

use super::stage::{Stage, workflow};
use crate::database::Database;

on_postgres!(locks_of_a_stopped_process_are_given_back);

async fn locks_of_a_stopped_process_are_given_back(database: &Database) {
    let ship = Workflow::composite("ship", Steps::new(["plan"]));
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded), ship]).await;
    let run = stage.dispatch("ship", 1).await;
    // It has the run, and does nothing with it.
    let stopped = stage.another().await;
    let mut tx = stopped.database().begin().await.unwrap();
    runs::lock(tx.runs(), run).await.unwrap();
    let executor = stage.execute();
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
    assert!(tx.commit().await.is_err(), "its session is gone");
}
