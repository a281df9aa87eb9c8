//! Two processes at one run at the same moment, and answers that were lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use runspan::run::{RunId, Status};
use runspan::runs::{self, NewRun, Owner};
use runspan::runtime::queue::{InProcessQueue, Job, Queue, QueueError};
use runspan::runtime::{Dispatched, Outcome, Reaped, Registry, Runtime, Workflow};
use tokio::sync::Semaphore;

use super::stage::{Running, Stage, about, gated, workflow};
use crate::database::{Database, eventually};

on_every_database!(
    a_run_that_arrived_and_has_begun_is_let_be_where_publishing_it_fails,
    a_run_that_begins_while_it_is_published_again_keeps_its_owner,
    executors_of_one_process_do_not_share_runs,
    an_executor_that_stops_leaves_the_runs_of_another_of_its_process_alone,
    a_job_that_comes_again_is_removed_while_its_run_is_worked_on,
    a_run_that_is_handed_off_while_it_is_reaped_is_let_be,
    a_run_that_was_reaped_begins_no_child,
    a_run_whose_child_is_gone_has_failed,
    an_error_that_panics_when_it_is_shown_ends_the_run,
);

/// What happens between a job's arrival and the queue's answer.
type Meanwhile = Box<dyn Fn(RunId) -> BoxFuture<'static, Result<(), QueueError>> + Send + Sync>;

struct Hooked {
    queue: InProcessQueue,
    meanwhile: Meanwhile,
}

#[async_trait]
impl Queue for Hooked {
    async fn enqueue(&self, run: RunId) -> Result<(), QueueError> {
        self.queue.enqueue(run).await?;
        (self.meanwhile)(run).await
    }

    async fn take(&self, consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError> {
        self.queue.take(consumer, at_most).await
    }

    async fn acknowledge(&self, job: &Job) -> Result<(), QueueError> {
        self.queue.acknowledge(job).await
    }

    async fn oldest(&self) -> Result<Option<Duration>, QueueError> {
        self.queue.oldest().await
    }
}

/// A process whose queue answers when `meanwhile` has happened.
fn process(stage: &Stage, plan: Workflow, meanwhile: Meanwhile) -> Runtime {
    let database = stage.runtime.database().clone();
    let queue = Hooked { queue: stage.queue.clone(), meanwhile };
    Runtime::new("hooked", database, Arc::new(queue), Registry::new([plan]).unwrap())
}

async fn a_run_that_arrived_and_has_begun_is_let_be_where_publishing_it_fails(database: &Database) {
    let (plan, gate) = gated("plan");
    let stage = Stage::new(database, [plan.clone()]).await;
    let rows = stage.runtime.database().clone();
    let until_it_runs: Meanwhile = Box::new(move |run| {
        let rows = rows.clone();
        Box::pin(async move {
            eventually("begun", || async {
                let mut session = rows.acquire().await.unwrap();
                runs::status(session.runs(), run).await.unwrap() == Status::Running
            })
            .await;
            Err(QueueError::Server("no answer within 5s".to_owned()))
        })
    });
    let executor = stage.execute();
    let dispatching = process(&stage, plan, until_it_runs);
    let became = dispatching.dispatcher().intent("plan", &about(1)).await.unwrap();
    let Dispatched::Queued { run } = became else { panic!("{became:?}") };
    gate.add_permits(1);
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}

async fn a_run_that_begins_while_it_is_published_again_keeps_its_owner(database: &Database) {
    let plan = workflow("plan", |_| Outcome::Succeeded);
    let stage = Stage::new(database, [plan.clone()]).await;
    let mut ids = Vec::new();
    for number in 1..=2 {
        let new = NewRun::new("plan", about(number).target.unwrap());
        ids.push(runs::insert_queued(database.connect().await.runs(), &new).await.unwrap());
    }
    let owner = Owner { kind: "executor".to_owned(), id: "another".to_owned() };
    let (rows, claimed) = (stage.runtime.database().clone(), owner.clone());
    let both = ids.clone();
    let the_other_begins: Meanwhile = Box::new(move |run| {
        let (rows, owner) = (rows.clone(), claimed.clone());
        let others: Vec<_> = both.iter().copied().filter(|other| *other != run).collect();
        Box::pin(async move {
            for other in others {
                let mut session = rows.acquire().await.unwrap();
                let _ = runs::claim(session.runs(), other, &owner).await;
            }
            Ok(())
        })
    });
    let reaping = process(&stage, plan, the_other_begins);
    let reaper = reaping.reaper(Stage::reaping());
    eventually("published", || {
        let round = reaper.round();
        async { round.await.unwrap().is_some_and(|reaped| reaped.re_enqueued > 0) }
    })
    .await;
    let mut begun = 0;
    for run in ids {
        let row = stage.row(run).await;
        if row.status == Status::Running {
            assert_eq!(row.owner.as_ref(), Some(&owner), "or nobody would ever miss its executor");
            begun += 1;
        }
    }
    assert_eq!(begun, 1);
}

/// A workflow whose handlers wait at the gate, and how many have begun.
fn counted() -> (Workflow, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let handlers = (Arc::clone(&gate), Arc::clone(&begun));
    let plan = Workflow::new("plan", move |_| {
        let (gate, begun) = handlers.clone();
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await?.forget();
            Ok(Outcome::Succeeded)
        }
    });
    (plan, gate, begun)
}

async fn executors_of_one_process_do_not_share_runs(database: &Database) {
    let (plan, gate, begun) = counted();
    let stage = Stage::new(database, [plan]).await;
    let run = stage.dispatch("plan", 1).await;
    let executors = [stage.execute(), stage.execute()];
    stage.begun(run).await;
    for _ in 0..10 {
        stage.queue.enqueue(run).await.unwrap();
    }
    eventually("all are gone", || async { stage.queue.oldest().await.unwrap().is_none() }).await;
    gate.add_permits(10);
    stage.ended(run).await;
    for executor in executors {
        executor.stop().await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

async fn an_executor_that_stops_leaves_the_runs_of_another_of_its_process_alone(database: &Database) {
    let (plan, gate) = gated("plan");
    let stage = Stage::new(database, [plan]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    Running::new(&stage.runtime, Stage::settings()).stop().await;
    let reaped = stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(reaped, Some(Reaped::default()));
    gate.add_permits(1);
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}

/// Or the oldest job would be as old as that run's, and no run younger than it would count as without a job.
async fn a_job_that_comes_again_is_removed_while_its_run_is_worked_on(database: &Database) {
    let (plan, gate) = gated("plan");
    let stage = Stage::new(database, [plan]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    stage.begun(run).await;
    stage.queue.enqueue(run).await.unwrap();
    eventually("gone", || async { stage.queue.oldest().await.unwrap().is_none() }).await;
    assert_eq!(stage.row(run).await.status, Status::Running);
    gate.add_permits(1);
    executor.stop().await;
}

/// Reads the orphans, and then is held up for so long that one of them has been handed off.
async fn a_run_that_is_handed_off_while_it_is_reaped_is_let_be(database: &Database) {
    let (plan, gate) = gated("plan");
    let stage = Stage::new(database, [plan]).await;
    let executor = stage.execute();
    let ids = [stage.dispatch("plan", 1).await, stage.dispatch("plan", 2).await];
    for run in ids {
        stage.begun(run).await;
    }
    let mut session = database.connect().await;
    session.execute("DELETE FROM workflow_leases").await;
    // As if the other's owner had come back just before: the end of one gives the other away.
    let sql =
        "UPDATE workflow_runs SET owner_kind = 'orchestrator' WHERE status = 'running' AND id <> NEW.id";
    session
        .execute(&if database.is_postgres() {
            format!(
                "CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {sql}; RETURN NULL; END$$;
                 CREATE TRIGGER give AFTER UPDATE ON workflow_runs
                 FOR EACH ROW WHEN (NEW.status = 'failed') EXECUTE FUNCTION give()"
            )
        } else {
            format!(
                "CREATE TRIGGER give AFTER UPDATE OF status ON workflow_runs WHEN NEW.status = 'failed'
                 BEGIN {sql}; END"
            )
        })
        .await;
    let reaped = stage.runtime.reaper(Stage::reaping()).round().await.unwrap().unwrap();
    assert_eq!(reaped.failed, 1);
    gate.add_permits(2);
    executor.stop().await;
}

/// It would otherwise go on beside the run that takes the place of the failed one.
async fn a_run_that_was_reaped_begins_no_child(database: &Database) {
    let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let handler = Arc::clone(&gate);
    let route = Workflow::new("route", move |context| {
        let gate = Arc::clone(&handler);
        async move {
            gate.acquire().await?.forget();
            Ok(Outcome::HandedOff { child: context.hand_off("plan").await? })
        }
    });
    let counted = Arc::clone(&begun);
    let plan = Workflow::new("plan", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(Outcome::Succeeded) }
    });
    let stage = Stage::new(database, [route, plan]).await;
    let executor = stage.execute();
    let run = stage.dispatch("route", 1).await;
    stage.begun(run).await;
    let mut session = database.connect().await;
    session.execute("DELETE FROM workflow_leases").await;
    stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(stage.row(run).await.status, Status::Failed);
    gate.add_permits(1);
    executor.stop().await;
    assert_eq!(session.count("workflow_runs").await, 1);
    assert_eq!(begun.load(Ordering::SeqCst), 0);
}

async fn a_run_whose_child_is_gone_has_failed(database: &Database) {
    let route = Workflow::new("route", |context| async move {
        Ok(Outcome::HandedOff { child: context.hand_off("plan").await? })
    });
    let forever = Workflow::new("plan", |_| std::future::pending());
    let stage = Stage::new(database, [route, forever]).await;
    let executor = stage.execute();
    let run = stage.dispatch("route", 1).await;
    eventually("handed off", || async {
        stage.row(run).await.owner.is_some_and(|owner| owner.kind == "orchestrator")
    })
    .await;
    database.connect().await.execute("DELETE FROM workflow_runs WHERE workflow_name = 'plan'").await;
    stage.runtime.reaper(Stage::reaping()).round().await.unwrap();
    assert_eq!(stage.row(run).await.reason(), Some("the run that it was handed off to no longer exists"));
    executor.kill().await;
}

#[derive(Debug)]
struct Wordless;

impl std::fmt::Display for Wordless {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Wordless {}

async fn an_error_that_panics_when_it_is_shown_ends_the_run(database: &Database) {
    let stage = Stage::new(database, [Workflow::new("plan", |_| async { Err(Wordless.into()) })]).await;
    let executor = stage.execute();
    let run = stage.dispatch("plan", 1).await;
    assert_eq!(stage.ended(run).await.reason(), Some("uncaught: no words"));
    executor.stop().await;
}
