//! The runtime on both databases, with the queue in this process.

#[cfg(feature = "services")]
mod processes;
pub(crate) mod queue;
mod bad_input;
mod chains;
mod log_lines;
mod races;
mod reaper;
mod spans;
mod stage;
#[cfg(feature = "services")]
mod stopped;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runspan::run::Status;
use runspan::runtime::{Accepts, Delivery, Dispatched, ExecutorSettings, Outcome, Workflow};
use runspan::semconv::ErrorType;
use serde_json::{Map, json};
use tokio::sync::Semaphore;

use self::stage::{Stage, about, gated, pull_request, workflow};
use crate::database::{Database, eventually};

on_every_database!(
    a_label_becomes_a_run_that_succeeds,
    each_outcome_of_a_handler_is_its_runs_end,
    refusals_leave_no_row,
    what_cannot_be_published_has_failed_and_its_target_is_free,
    a_redelivery_is_refused_while_its_run_is_in_flight,
    a_timeout_ends_a_run,
    no_more_handlers_run_than_there_is_room_for,
    stopping_lets_handlers_end,
    a_handler_that_does_not_end_is_dropped_at_a_stop,
    a_handler_keeps_what_it_knows_in_the_state,
    the_run_links_to_the_request_that_brought_it,
);

async fn a_label_becomes_a_run_that_succeeds(database: &Database) {
    let stage = Stage::new(database, [workflow("triage", |_| Outcome::Succeeded).label("go")]).await;
    let executor = stage.execute();
    let dispatcher = stage.runtime.dispatcher();
    let Ok(Dispatched::Queued { run }) = dispatcher.label("go", &about(1)).await else { panic!() };
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    assert_told!(stage.told().await, @r#"
    queued triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage
    running triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage
    succeeded triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage outcome=succeeded
    completed triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage outcome=succeeded
    span "triage queued" [] child
    span "triage" [queued running succeeded]
    "#);
    // A classifier gives the workflow's name.
    let Ok(Dispatched::Queued { run }) = dispatcher.intent("triage", &about(2)).await else { panic!() };
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}

#[derive(Debug, thiserror::Error)]
#[error("no diff")]
struct NoDiff(#[source] std::fmt::Error);

async fn each_outcome_of_a_handler_is_its_runs_end(database: &Database) {
    let review = Workflow::new("review", |context| async move {
        Ok(match context.run().target.number {
            1 => Outcome::Succeeded,
            2 => Outcome::Failed { reason: "no such branch".to_owned() },
            3 => Outcome::Incomplete { reason: "2 comments are open".to_owned() },
            4 => return Err(NoDiff(std::fmt::Error).into()),
            5 => panic!("line {} of 3", context.run().target.number),
            _ => std::panic::panic_any(0),
        })
    });
    let stage = Stage::new(database, [review]).await;
    let executor = stage.execute();
    for number in 1..=6 {
        let run = stage.dispatch("review", number).await;
        stage.ended(run).await;
        stage.told().await;
    }
    executor.stop().await;
    assert_eq!(
        stage.ends().await,
        "review#1 succeeded\n\
         review#2 failed: no such branch\n\
         review#3 incomplete: 2 comments are open\n\
         review#4 failed: uncaught: no diff: an error occurred when formatting an argument\n\
         review#5 failed: uncaught: line 5 of 3\n\
         review#6 failed: uncaught: panic without a message\n"
    );
}

async fn refusals_leave_no_row(database: &Database) {
    let stage = Stage::new(
        database,
        [
            workflow("triage", |_| Outcome::Succeeded).accepts(Accepts::Issue),
            workflow("plan", |_| Outcome::Succeeded).requires("triage"),
        ],
    )
    .await;
    let dispatcher = stage.runtime.dispatcher();
    let refused = |reason, inflight| Dispatched::Refused { reason, inflight };
    let nowhere = Delivery { target: None, ..about(1) };
    for delivery in [&pull_request(1), &nowhere] {
        let became = dispatcher.intent("triage", delivery).await.unwrap();
        assert_eq!(became, refused(ErrorType::ContextMismatch, None));
    }
    let became = dispatcher.intent("plan", &about(1)).await.unwrap();
    assert_eq!(became, refused(ErrorType::MissingPriorOutput, None));
    let run = stage.dispatch("triage", 1).await;
    let became = dispatcher.intent("triage", &about(1)).await.unwrap();
    assert_eq!(became, refused(ErrorType::Inflight, Some(run)));
    assert_told!(stage.told().await, @r#"
    dispatch_refused triage acme/widgets#1 deliveryId=d-1 error.type=context-mismatch reason=context-mismatch
    dispatch_refused triage deliveryId=d-1 error.type=context-mismatch reason=context-mismatch
    dispatch_refused plan acme/widgets#1 deliveryId=d-1 error.type=missing-prior-output reason=missing-prior-output
    queued triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage
    dispatch_refused triage acme/widgets#1 deliveryId=d-1 error.type=workflow-dispatch-inflight reason=workflow-dispatch-inflight
    "#);
    assert_eq!(database.connect().await.count("workflow_runs").await, 1);
    // What has succeeded is there for what requires it.
    let executor = stage.execute();
    stage.ended(run).await;
    stage.dispatch("plan", 1).await;
    executor.stop().await;
}

async fn what_cannot_be_published_has_failed_and_its_target_is_free(database: &Database) {
    let stage = Stage::new(database, [workflow("triage", |_| Outcome::Succeeded)]).await;
    stage.queue.close();
    let became = stage.runtime.dispatcher().intent("triage", &about(1)).await.unwrap();
    let Dispatched::EnqueueFailed { run } = became else { panic!("{became:?}") };
    assert_eq!(stage.row(run).await.reason(), Some("enqueue failed: the queue is closed"));
    assert_told!(stage.told().await, @r#"
    queued triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage
    enqueue_failed triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage outcome=failed error.type=enqueue_failed reason=enqueue failed: the queue is closed
    failed triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage outcome=failed error.type=enqueue_failed reason=enqueue failed: the queue is closed
    completed triage acme/widgets#1 deliveryId=d-1 rootWorkflowName=triage outcome=failed
    span "triage queued" [] child
    span "triage" [queued enqueue_failed failed] error=enqueue failed: the queue is closed
    "#);
    stage.queue.open();
    stage.dispatch("triage", 1).await;
}

async fn a_redelivery_is_refused_while_its_run_is_in_flight(database: &Database) {
    let stage = Stage::new(database, [workflow("triage", |_| Outcome::Succeeded)]).await;
    let first = stage.dispatch("triage", 1).await;
    let again = stage.runtime.dispatcher().intent("triage", &about(1)).await.unwrap();
    assert_eq!(again, Dispatched::Refused { reason: ErrorType::Inflight, inflight: Some(first) });
    let executor = stage.execute();
    stage.ended(first).await;
    let second = stage.dispatch("triage", 1).await;
    assert_ne!(second, first);
    stage.ended(second).await;
    executor.stop().await;
}

async fn a_timeout_ends_a_run(database: &Database) {
    let forever = Workflow::new("plan", |_| std::future::pending()).timeout(Duration::from_millis(20));
    let stage = Stage::new(database, [forever]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    assert_eq!(stage.ended(run).await.reason(), Some("timeout: no end after 20ms"));
    executor.stop().await;
}

async fn no_more_handlers_run_than_there_is_room_for(database: &Database) {
    let gate = Arc::new(Semaphore::new(0));
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (gate, running, most) = (Arc::clone(&gate), Arc::clone(&running), Arc::clone(&most));
        Workflow::new("plan", move |_| {
            let (gate, running, most) = (Arc::clone(&gate), Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await?.forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Outcome::Succeeded)
            }
        })
    };
    let stage = Stage::new(database, [handler]).await;
    let mut runs = Vec::new();
    for number in 1..=7 {
        runs.push(stage.dispatch("plan", number).await);
    }
    let executor = stage.execute_with(ExecutorSettings { concurrency: 3, ..Stage::settings() });
    eventually("three run", || async { running.load(Ordering::SeqCst) == 3 }).await;
    assert_eq!(database.connect().await.count("workflow_runs WHERE status = 'queued'").await, 4);
    gate.add_permits(7);
    for run in runs {
        stage.ended(run).await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    executor.stop().await;
}

async fn stopping_lets_handlers_end(database: &Database) {
    let (handler, gate) = gated("plan");
    let stage = Stage::new(database, [handler]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    executor.stop.cancel();
    let late = stage.dispatch("plan", 2).await;
    gate.add_permits(1);
    executor.stop().await;
    assert_eq!(stage.row(run).await.status, Status::Succeeded);
    assert_eq!(stage.row(late).await.status, Status::Queued, "it takes no more");
    assert_eq!(database.connect().await.count("workflow_leases").await, 0);
}

async fn a_handler_that_does_not_end_is_dropped_at_a_stop(database: &Database) {
    let stage = Stage::new(database, [Workflow::new("plan", |_| std::future::pending())]).await;
    let executor = stage.execute_with(ExecutorSettings { drain: Duration::ZERO, ..Stage::settings() });
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    executor.stop().await;
    let reason = format!("owner lost: {} was stopped before the run ended", stage.runtime.name());
    assert_eq!(stage.row(run).await.reason(), Some(reason.as_str()));
}

async fn a_handler_keeps_what_it_knows_in_the_state(database: &Database) {
    let plan = Workflow::new("plan", |context| async move {
        let steps: Vec<_> = context.input()["title"].as_str().unwrap_or_default().split(' ').collect();
        context.set_state(Map::from_iter([("plan".to_owned(), json!(steps))])).await?;
        Ok(Outcome::Succeeded)
    });
    let stage = Stage::new(database, [plan]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    let ended = stage.ended(run).await;
    assert_eq!(ended.state["plan"], json!(["fix", "it"]));
    assert_eq!(ended.state["input"], json!({"title": "fix it"}));
    executor.stop().await;
}

async fn the_run_links_to_the_request_that_brought_it(database: &Database) {
    let stage = Stage::new(database, [workflow("triage", |_| Outcome::Succeeded)]).await;
    let traceparent = "00-4b72407cfb2049d1a120884229aa119e-a1272e2054514458-01";
    let delivery = Delivery { traceparent: Some(traceparent.to_owned()), ..about(1) };
    let executor = stage.execute();
    let became = stage.runtime.dispatcher().intent("triage", &delivery).await.unwrap();
    let Dispatched::Queued { run } = became else { panic!("{became:?}") };
    stage.ended(run).await;
    executor.stop().await;
    assert!(stage.told().await.contains(r#"span "triage" [queued running succeeded] linked"#));
}
