//! Two processes at one run at the same moment, and answers that were lost.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use runspan::run::{RunId, Status};
use runspan::runs;
use runspan::runtime::queue::{InProcessQueue, Job, Queue, QueueError};
use runspan::runtime::{Dispatched, Registry, Runtime, Workflow};

use super::stage::{Stage, about, gated};
use crate::database::{Database, eventually};

on_every_database!(a_run_that_arrived_and_has_begun_is_let_be_where_publishing_it_fails,);

/// What happens between a job's arrival and the queue's answer.
type Meanwhile = Box<dyn Fn(RunId) -> BoxFuture<'static, Result<(), QueueError>> + Send + Sync>;

struct Hooked {
    queue: InProcessQueue,
    meanwhile: Meanwhile,
}

#[async_trait]
impl Queue for Hooked {
    async fn publish(&self, run: RunId) -> Result<(), QueueError> {
        self.queue.publish(run).await?;
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
async fn process(stage: &Stage, plan: Workflow, meanwhile: Meanwhile) -> Runtime {
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
    let dispatching = process(&stage, plan, until_it_runs).await;
    let became = dispatching.dispatcher().intent("plan", &about(1)).await.unwrap();
    let Dispatched::Queued { run } = became else { panic!("{became:?}") };
    gate.add_permits(1);
    assert_eq!(stage.ended(run).await.status, Status::Succeeded);
    executor.stop().await;
}
