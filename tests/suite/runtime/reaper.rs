//! What a process leaves behind that died, and what a queue lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runspan::run::Status;
use runspan::runs::{self, NewRun};
use runspan::runtime::queue::Queue as _;
use runspan::runtime::{
    ExecutorSettings, Outcome, Reaped, ReaperSettings, Registry, Runtime, Steps, Workflow,
};

use super::stage::{Running, Stage, about, gated, workflow};
use crate::database::{Database, eventually};

on_every_database!(
    a_run_whose_owner_is_gone_has_failed,
    what_a_living_owner_has_is_let_be,
    an_executor_that_was_taken_for_dead_does_not_overrule_the_end,
    an_owner_that_gives_a_sign_of_life_in_time_is_let_be,
    one_reaper_works_at_a_time,
    a_run_without_a_job_is_published_again,
    a_run_behind_others_is_not_published_twice,
    a_job_that_comes_twice_is_worked_on_once,
    a_chain_that_somebody_else_moved_goes_on,
    a_reaper_that_knows_no_workflow_keeps_nobody_from_theirs,
);

/// A lease that is over at once, unless it is renewed.
const SHORT: Duration = Duration::from_millis(1);

async fn a_run_whose_owner_is_gone_has_failed(database: &Database) {
    let steps = Steps::new(["plan"]);
    let forever = Workflow::new("plan", |_| std::future::pending());
    let stage = Stage::new(database, [forever, Workflow::composite("ship", steps)]).await;
    let died = stage.another().await;
    let executor = Running::new(&died, ExecutorSettings { lease_term: SHORT, ..Stage::settings() });
    let ship = stage.dispatch("ship", 1).await;
    let running = async |count| {
        eventually("running", || async {
            database.connect().await.count("workflow_runs WHERE status = 'running'").await == count
        })
        .await;
    };
    running(2).await;
    stage.dispatch("plan", 2).await;
    running(3).await;
    executor.kill().await;
    let reaper = stage.runtime.reaper(Stage::reaping());
    eventually("both have failed", || async {
        reaper.round().await.unwrap();
        database.connect().await.count("workflow_runs WHERE status = 'failed'").await == 3
    })
    .await;
    let name = died.name();
    assert_eq!(
        stage.ends().await,
        format!(
            "ship#1 failed: plan failed: owner lost: {name} did not renew its lease\n  \
               0 plan#1 failed: owner lost: {name} did not renew its lease\n\
             plan#2 failed: owner lost: {name} did not renew its lease\n"
        )
    );
    assert_eq!(stage.row(ship).await.state["failedAtStepIndex"], 0);
}

async fn what_a_living_owner_has_is_let_be(database: &Database) {
    let (handler, gate) = gated("plan");
    let stage = Stage::new(database, [handler]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    let reaped = stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(reaped, Some(Reaped::default()));
    gate.add_permits(1);
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn an_executor_that_was_taken_for_dead_does_not_overrule_the_end(database: &Database) {
    let (handler, gate) = gated("plan");
    let stage = Stage::new(database, [handler]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    // As if it had been stopped for longer than its lease.
    database.connect().await.execute("DELETE FROM workflow_leases").await;
    stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(stage.row(run).await.status, Status::Failed);
    gate.add_permits(1);
    executor.stop().await;
    let told = stage.told().await;
    assert_eq!(stage.row(run).await.status, Status::Failed);
    assert_eq!(told.matches("completed plan").count(), 1, "{told}");
    assert!(!told.contains("conflict"), "{told}");
}

async fn an_owner_that_gives_a_sign_of_life_in_time_is_let_be(database: &Database) {
    let (handler, gate) = gated("plan");
    let stage = Stage::new(database, [handler]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    let every = Duration::from_millis(400);
    let reaper = stage.runtime.reaper(ReaperSettings { interval: every, ..Stage::reaping() });
    let failed = async || reaper.round().await.unwrap().unwrap().failed;
    let mut session = database.connect().await;
    let name = stage.runtime.name();
    for sign_of_life in [true, false] {
        // Nobody could reach the database for a while.
        session.execute("DELETE FROM workflow_leases WHERE name <> 'reaper'").await;
        let seen = Instant::now();
        assert_eq!(failed().await, 0, "one look proves nothing");
        if sign_of_life {
            runs::hold_lease(session.runs(), name, name, Duration::from_mins(1)).await.unwrap();
            eventually("time has passed", || async { seen.elapsed() > every }).await;
            assert_eq!(failed().await, 0);
            assert_eq!(stage.row(run).await.status, Status::Running);
        }
    }
    eventually("it is given up", || async { failed().await == 1 }).await;
    gate.close();
    executor.stop().await;
}

async fn a_reaper_that_knows_no_workflow_keeps_nobody_from_theirs(database: &Database) {
    let forever = Workflow::new("plan", |_| std::future::pending());
    let ship = Workflow::composite("ship", Steps::new(["plan"]));
    let stage = Stage::new(database, [forever, ship]).await;
    let stranger = Runtime::new(
        "stranger",
        stage.runtime.database().clone(),
        Arc::new(stage.queue.clone()),
        Registry::default(),
    );
    let executor = stage.execute_with(ExecutorSettings { drain: Duration::ZERO, ..Stage::settings() });
    let run = stage.dispatch("ship", 1).await;
    let mut session = database.connect().await;
    eventually("plan has begun", || async {
        database.connect().await.count("workflow_runs WHERE status = 'running'").await == 2
    })
    .await;
    session.execute("UPDATE workflow_runs SET status = 'succeeded' WHERE workflow_name = 'plan'").await;
    assert!(stranger.reaper(Stage::reaping()).round().await.unwrap().is_some(), "it has the lease");
    assert_eq!(stage.row(run).await.status, Status::Running);
    assert!(stage.runtime.reaper(Stage::reaping()).round().await.unwrap().is_none(), "and keeps it");
    assert_eq!(stage.row(run).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn one_reaper_works_at_a_time(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    let other = stage.another().await;
    assert!(stage.runtime.reaper(Stage::reaping()).round().await.unwrap().is_some());
    assert!(other.reaper(Stage::reaping()).round().await.unwrap().is_none());
    database.connect().await.execute("DELETE FROM workflow_leases").await;
    assert!(other.reaper(Stage::reaping()).round().await.unwrap().is_some());
}

async fn a_run_without_a_job_is_published_again(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    // Its dispatcher died between the commit and the queue.
    let new = NewRun::new("plan", about(1).target.unwrap());
    let run = runs::insert_queued(database.connect().await.runs(), &new).await.unwrap();
    let executor = stage.execute();
    let reaper = stage.runtime.reaper(Stage::reaping());
    eventually("published", || {
        let round = reaper.round();
        async { round.await.unwrap().is_some_and(|reaped| reaped.re_enqueued == 1) }
    })
    .await;
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn a_run_behind_others_is_not_published_twice(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    for number in 1..=3 {
        stage.dispatch("plan", number).await;
    }
    let reaper = stage
        .runtime
        .reaper(ReaperSettings { enqueue_grace: Duration::from_millis(200), ..Stage::reaping() });
    eventually("they have waited for long", || async {
        stage.queue.oldest().await.unwrap().is_some_and(|age| age > Duration::from_millis(500))
    })
    .await;
    assert_eq!(reaper.round().await.unwrap().unwrap().re_enqueued, 0);
}

async fn a_job_that_comes_twice_is_worked_on_once(database: &Database) {
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = {
        let begun = Arc::clone(&begun);
        Workflow::new("plan", move |_| {
            begun.fetch_add(1, Ordering::SeqCst);
            async { Ok(Outcome::Succeeded) }
        })
    };
    let stage = Stage::new(database, [handler]).await;
    let run = stage.dispatch("plan", 1).await;
    for _ in 0..5 {
        stage.queue.enqueue(run).await.unwrap();
    }
    let other = Running::new(&stage.another().await, Stage::settings());
    let executor = stage.execute();
    eventually("all are gone", || async { stage.queue.oldest().await.unwrap().is_none() }).await;
    stage.ended(run).await;
    executor.stop().await;
    other.stop().await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

async fn a_chain_that_somebody_else_moved_goes_on(database: &Database) {
    let plan = workflow("plan", |_| Outcome::Succeeded);
    let forever = Workflow::new("triage", |_| std::future::pending());
    let ship = Workflow::composite("ship", Steps::new(["triage", "plan"]));
    let stage = Stage::new(database, [forever, plan, ship]).await;
    let executor = stage.execute_with(ExecutorSettings { drain: Duration::ZERO, ..Stage::settings() });
    let run = stage.dispatch("ship", 1).await;
    eventually("triage has begun", || async {
        database.connect().await.count("workflow_runs WHERE status = 'running'").await == 2
    })
    .await;
    // An operator takes it into their own hands.
    let mut session = database.connect().await;
    session.execute("UPDATE workflow_runs SET status = 'succeeded' WHERE workflow_name = 'triage'").await;
    stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
    assert_eq!(stage.ends().await, "ship#1 succeeded\n  0 triage#1 succeeded\n  1 plan#1 succeeded\n");
}
