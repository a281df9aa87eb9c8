//! What does not fit is one clear error; the process lives on, and no run is lost.

use runspan::run::{RunId, Status};
use runspan::runs::{self, NewRun};
use runspan::runtime::queue::Queue as _;
use runspan::runtime::{Delivery, Outcome, Workflow};
use serde_json::Map;

use super::stage::{Stage, about, workflow};
use crate::database::{Database, eventually};

on_every_database!(
    an_unknown_label_names_those_that_there_are,
    a_state_that_is_too_large_is_refused_where_it_comes_from,
    a_run_of_a_workflow_that_is_none_has_failed,
    a_job_without_a_run_is_thrown_away,
    a_child_that_is_none_fails_the_run,
    a_refusal_stands_without_a_journal,
    a_state_that_is_not_to_be_read_stops_nobody,
);

async fn an_unknown_label_names_those_that_there_are(database: &Database) {
    let workflows =
        ["plan", "triage"].map(|name| workflow(name, |_| Outcome::Succeeded).label(format!("bot:{name}")));
    let stage = Stage::new(database, workflows).await;
    let dispatcher = stage.runtime.dispatcher();
    assert_eq!(
        dispatcher.label("bug", &about(1)).await.unwrap_err().to_string(),
        r#"no workflow has the label "bug" (known: bot:plan, bot:triage)"#
    );
    assert_eq!(
        dispatcher.intent("dance", &about(1)).await.unwrap_err().to_string(),
        r#"no workflow is named "dance" (known: plan, triage)"#
    );
    assert_eq!(stage.told().await, "", "no run, and no refusal: nobody meant a workflow");
}

async fn a_state_that_is_too_large_is_refused_where_it_comes_from(database: &Database) {
    let large = || Map::from_iter([("log".to_owned(), "x".repeat(10 * 1024 * 1024).into())]);
    let plan = Workflow::new("plan", move |context| async move {
        context.set_state(large()).await?;
        Ok(Outcome::Succeeded)
    });
    let stage = Stage::new(database, [plan]).await;
    let delivery = Delivery { input: large(), ..about(1) };
    let said = stage.runtime.dispatcher().intent("plan", &delivery).await.unwrap_err().to_string();
    assert_eq!(
        said,
        "a state of 10485780 bytes exceeds the limit of 1048576: store large values elsewhere and keep a reference to them"
    );
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    let ended = stage.ended(run).await;
    assert!(
        ended
            .reason()
            .unwrap()
            .starts_with("uncaught: a state of 10485770 bytes exceeds the limit of 1048576"),
        "{ended:?}"
    );
    executor.stop().await;
}

async fn a_run_of_a_workflow_that_is_none_has_failed(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    let executor = stage.execute();
    let mut session = database.connect().await;
    let new = NewRun::new("dance", about(1).target.unwrap());
    let run = runs::insert_queued(session.runs(), &new).await.unwrap();
    stage.queue.enqueue(run).await.unwrap();
    let ended = stage.ended(run).await;
    let said = format!("no workflow is named \"dance\" in {}", stage.runtime.name());
    assert_eq!(ended.reason(), Some(said.as_str()));
    let next = stage.dispatch("plan", 1).await;
    assert_eq!(stage.ended(next).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn a_job_without_a_run_is_thrown_away(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    let executor = stage.execute();
    stage.queue.enqueue(RunId::generate()).await.unwrap();
    eventually("gone", || async { stage.queue.oldest().await.unwrap().is_none() }).await;
    executor.stop().await;
}

async fn a_child_that_is_none_fails_the_run(database: &Database) {
    let stranger = RunId::generate();
    let lost = Workflow::new("lost", move |context| async move {
        // Nobody, or somebody else's: here its own.
        let child = if context.run().target.number == 1 { stranger } else { context.run().id };
        Ok(Outcome::HandedOff { child })
    });
    let nowhere = Workflow::new("nowhere", |context| async move {
        Ok(Outcome::HandedOff { child: context.hand_off("dance").await? })
    });
    let stage = Stage::new(database, [lost, nowhere]).await;
    let executor = stage.execute();
    let (one, two) = (stage.dispatch("lost", 1).await, stage.dispatch("lost", 2).await);
    let three = stage.dispatch("nowhere", 3).await;
    for (run, said) in [
        (one, format!("handed off to {stranger}, which is not a child of this run")),
        (two, format!("handed off to {two}, which is not a child of this run")),
        (three, r#"uncaught: cannot hand off to unknown workflow "dance""#.to_owned()),
    ] {
        assert_eq!(stage.ended(run).await.reason(), Some(said.as_str()));
    }
    executor.stop().await;
}

async fn a_refusal_stands_without_a_journal(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    database.store().detach(true).await.unwrap();
    let first = stage.dispatch("plan", 1).await;
    let again = stage.runtime.dispatcher().intent("plan", &about(1)).await.unwrap();
    assert!(format!("{again:?}").contains(&first.to_string()), "{again:?}");
    let executor = stage.execute();
    assert_eq!(stage.ended(first).await.status, Status::Succeeded);
    executor.stop().await;
}

/// Another writer's: text that is no JSON, a number that is none to Rust.
async fn a_state_that_is_not_to_be_read_stops_nobody(database: &Database) {
    let stage = Stage::new(database, [workflow("plan", |_| Outcome::Succeeded)]).await;
    let mut session = database.connect().await;
    let new = NewRun::new("plan", about(1).target.unwrap());
    let run = runs::insert_queued(session.runs(), &new).await.unwrap();
    let unreadable = if database.is_postgres() { r#"{"n": 1e400}"# } else { "{n" };
    session.execute(&format!("UPDATE workflow_runs SET state = '{unreadable}'")).await;
    let reaper = stage.runtime.reaper(Stage::reaping());
    eventually("looked after", || {
        let round = reaper.round();
        async { round.await.unwrap().is_some_and(|reaped| reaped.re_enqueued == 1) }
    })
    .await;
    let executor = stage.execute();
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}
