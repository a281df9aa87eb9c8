//! Composite runs: what follows from each step's end.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future;
use runspan::run::Status;
use runspan::runtime::{Outcome, Steps, Workflow};

use super::stage::{Stage, gated, workflow};
use crate::database::{Database, eventually};

on_every_database!(
    a_chain_goes_from_step_to_step,
    rounds_go_on_until_one_succeeds,
    rounds_end_at_their_cap,
    a_failed_step_fails_the_whole,
    an_incomplete_step_ends_the_whole,
    a_step_that_is_in_flight_elsewhere_is_refused,
    a_step_that_cannot_be_published_fails_the_whole,
    two_ends_at_once_begin_one_next_step,
    a_chain_may_be_a_step,
    a_handler_hands_off,
    a_hand_off_that_collides_is_refused,
);

fn succeeding(name: &str) -> Workflow {
    workflow(name, |_| Outcome::Succeeded)
}

async fn ends_of_ship(database: &Database, workflows: impl IntoIterator<Item = Workflow>) -> String {
    let stage = Stage::new(database, workflows).await;
    let executor = stage.execute();
    let ship = stage.dispatch("ship", 1).await;
    stage.ended(ship).await;
    executor.stop().await;
    stage.ends().await
}

async fn a_chain_goes_from_step_to_step(database: &Database) {
    let ship = Workflow::composite("ship", Steps::new(["plan", "build"]));
    let stage = Stage::new(database, [succeeding("plan"), succeeding("build"), ship]).await;
    let executor = stage.execute();
    let run = stage.dispatch("ship", 1).await;
    stage.ended(run).await;
    executor.stop().await;
    assert_told!(stage.told().await, @r#"
    queued ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship
    running ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship
    queued plan acme/widgets#1 rootWorkflowName=ship
    handed_off ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship childWorkflowName=plan
    running plan acme/widgets#1 rootWorkflowName=ship
    succeeded plan acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    completed plan acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    queued build acme/widgets#1 rootWorkflowName=ship
    handed_off ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship childWorkflowName=build
    running build acme/widgets#1 rootWorkflowName=ship
    succeeded build acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    completed build acme/widgets#1 rootWorkflowName=ship outcome=succeeded
    succeeded ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship outcome=succeeded
    completed ship acme/widgets#1 deliveryId=d-1 rootWorkflowName=ship outcome=succeeded
    span "ship queued" [] child
    span "plan queued" [] child
    span "plan" [queued running succeeded] child
    span "build queued" [] child
    span "build" [queued running succeeded] child
    span "ship" [queued running handed_off handed_off succeeded]
    "#);
}

async fn rounds_go_on_until_one_succeeds(database: &Database) {
    let open = Arc::new(AtomicI64::new(1));
    let resolve = Workflow::new("resolve", move |_| {
        let left = open.fetch_sub(1, Ordering::SeqCst);
        async move {
            Ok(if left > 0 {
                Outcome::Incomplete { reason: format!("{left} comment is open") }
            } else {
                Outcome::Succeeded
            })
        }
    });
    let ship = Workflow::composite("ship", Steps::new(["plan"]).rounds(["review", "resolve"], 3));
    assert_eq!(
        ends_of_ship(database, [succeeding("plan"), succeeding("review"), resolve, ship]).await,
        "ship#1 succeeded\n  0 plan#1 succeeded\n  1 review#1 succeeded\n  2 resolve#1 incomplete: 1 comment is open\n  \
         3 review#1 succeeded\n  4 resolve#1 succeeded\n"
    );
}

async fn rounds_end_at_their_cap(database: &Database) {
    let resolve = workflow("resolve", |_| Outcome::Incomplete { reason: "it is still red".to_owned() });
    let ship = Workflow::composite("ship", Steps::new(["plan"]).rounds(["resolve"], 2));
    assert_eq!(
        ends_of_ship(database, [succeeding("plan"), resolve, ship]).await,
        "ship#1 incomplete: resolve is incomplete after 2 rounds: it is still red\n  0 plan#1 succeeded\n  \
         1 resolve#1 incomplete: it is still red\n  2 resolve#1 incomplete: it is still red\n"
    );
}

async fn a_failed_step_fails_the_whole(database: &Database) {
    let build = Workflow::new("build", |_| async { Err("no compiler".into()) });
    let ship = Workflow::composite("ship", Steps::new(["plan", "build", "plan"]));
    let stage = Stage::new(database, [succeeding("plan"), build, ship]).await;
    let executor = stage.execute();
    let run = stage.dispatch("ship", 1).await;
    let ended = stage.ended(run).await;
    executor.stop().await;
    assert_eq!(ended.reason(), Some("build failed: uncaught: no compiler"));
    assert_eq!(ended.state["failedAtStepIndex"], 1);
    assert_eq!(stage.ends().await.lines().count(), 3, "the last step has not begun");
}

async fn an_incomplete_step_ends_the_whole(database: &Database) {
    let plan = workflow("plan", |_| Outcome::Incomplete { reason: "2 questions".to_owned() });
    let ship = Workflow::composite("ship", Steps::new(["plan", "build"]));
    assert_eq!(
        ends_of_ship(database, [plan, succeeding("build"), ship]).await,
        "ship#1 incomplete: plan is incomplete: 2 questions\n  0 plan#1 incomplete: 2 questions\n"
    );
}

async fn a_step_that_is_in_flight_elsewhere_is_refused(database: &Database) {
    let ship = Workflow::composite("ship", Steps::new(["plan", "build"]));
    let forever = Workflow::new("build", |_| std::future::pending());
    let stage = Stage::new(database, [succeeding("plan"), forever, ship]).await;
    let elsewhere = stage.dispatch("build", 1).await;
    let executor = stage.execute_with(runspan::runtime::ExecutorSettings {
        drain: std::time::Duration::ZERO,
        ..Stage::settings()
    });
    let run = stage.dispatch("ship", 1).await;
    let ended = stage.ended(run).await;
    let said = format!("build was refused, as a run of it is in flight: {elsewhere}");
    assert_eq!(ended.reason(), Some(said.as_str()));
    assert_eq!(ended.state["failedAtStepIndex"], 1);
    eventually("the refusal is told", || async {
        stage
            .told()
            .await
            .contains("dispatch_refused build acme/widgets#1 error.type=workflow-dispatch-inflight")
    })
    .await;
    executor.stop().await;
}

async fn a_step_that_cannot_be_published_fails_the_whole(database: &Database) {
    let ship = Workflow::composite("ship", Steps::new(["plan", "build"]));
    let stage = Stage::new(database, [succeeding("build"), succeeding("plan"), ship]).await;
    let run = stage.dispatch("ship", 1).await;
    stage.queue.close();
    let executor = stage.execute();
    let ended = stage.ended(run).await;
    executor.stop().await;
    assert_eq!(ended.state["failedAtStepIndex"], 0);
    assert_eq!(
        stage.ends().await,
        "ship#1 failed: plan failed: enqueue failed: the queue is closed\n  \
         0 plan#1 failed: enqueue failed: the queue is closed\n"
    );
    // Both targets are free.
    stage.queue.open();
    stage.dispatch("plan", 1).await;
    stage.dispatch("ship", 1).await;
}

async fn two_ends_at_once_begin_one_next_step(database: &Database) {
    let forever = Workflow::new("plan", |_| std::future::pending());
    let ship = Workflow::composite("ship", Steps::new(["plan", "build"]));
    let stage = Stage::new(database, [forever, succeeding("build"), ship]).await;
    let executor = stage.execute_with(runspan::runtime::ExecutorSettings {
        drain: std::time::Duration::ZERO,
        ..Stage::settings()
    });
    for number in 1..=10 {
        let run = stage.dispatch("ship", number).await;
        let plans = format!("workflow_runs WHERE parent_run_id = '{run}' AND status = 'running'");
        eventually("plan has begun", || async { database.connect().await.count(&plans).await == 1 }).await;
        // Somebody ends the child, and everybody notices at once.
        let mut session = database.connect().await;
        session
            .execute(&format!("UPDATE workflow_runs SET status = 'succeeded' WHERE parent_run_id = '{run}'"))
            .await;
        let other = stage.another().await;
        let (one, two) = (stage.runtime.orchestrator(), other.orchestrator());
        let all = vec![one.advance(run), two.advance(run), one.advance(run), two.advance(run)];
        future::try_join_all(all).await.unwrap();
        assert_eq!(stage.ended(run).await.status, Status::Succeeded);
        assert_eq!(session.count(&format!("workflow_runs WHERE parent_run_id = '{run}'")).await, 2);
    }
    executor.stop().await;
}

async fn a_chain_may_be_a_step(database: &Database) {
    let ship = Workflow::composite("ship", Steps::new(["prepare", "build"]));
    let prepare = Workflow::composite("prepare", Steps::new(["plan"]));
    let stage = Stage::new(database, [succeeding("plan"), succeeding("build"), prepare, ship]).await;
    let executor = stage.execute();
    let run = stage.dispatch("ship", 1).await;
    stage.ended(run).await;
    executor.stop().await;
    let told = stage.told().await;
    assert!(
        told.contains("handed_off prepare acme/widgets#1 rootWorkflowName=ship childWorkflowName=plan"),
        "{told}"
    );
    assert_eq!(
        stage.ends().await,
        "ship#1 succeeded\n  0 prepare#1 succeeded\n  0 plan#1 succeeded\n  1 build#1 succeeded\n"
    );
}

async fn a_handler_hands_off(database: &Database) {
    let route = Workflow::new("route", |context| async move {
        let to = ["plan", "build"][usize::try_from(context.run().target.number).unwrap_or(0) % 2];
        Ok(Outcome::HandedOff { child: context.hand_off(to).await? })
    });
    let build = Workflow::new("build", |_| async { Err("no compiler".into()) });
    let stage = Stage::new(database, [route, succeeding("plan"), build]).await;
    let executor = stage.execute();
    let (failing, well) = (stage.dispatch("route", 1).await, stage.dispatch("route", 2).await);
    assert_eq!(stage.ended(failing).await.reason(), Some("uncaught: no compiler"));
    assert_eq!(stage.ended(well).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn a_hand_off_that_collides_is_refused(database: &Database) {
    let route = Workflow::new("route", |context| async move {
        Ok(Outcome::HandedOff { child: context.hand_off("plan").await? })
    });
    let (plan, gate) = gated("plan");
    let stage = Stage::new(database, [route, plan]).await;
    let elsewhere = stage.dispatch("plan", 1).await;
    let run = stage.dispatch("route", 1).await;
    let executor = stage.execute();
    let ended = stage.ended(run).await;
    let said = format!("uncaught: a run of this workflow is already in flight for this target: {elsewhere}");
    assert_eq!(ended.reason(), Some(said.as_str()));
    gate.close();
    executor.stop().await;
    assert!(
        stage
            .told()
            .await
            .contains("dispatch_refused plan acme/widgets#1 error.type=workflow-dispatch-inflight")
    );
}
