//! The queues: each test on the one in process and (with the feature `services`) on the one on a server.

#[cfg(feature = "redis")]
mod connect;
#[cfg(feature = "services")]
pub(crate) mod server;

use std::sync::Arc;
use std::time::Duration;

use runspan::run::RunId;
use runspan::runtime::queue::{InProcessQueue, Job, Queue, QueueError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::database::eventually;

/// Makes a test of each function, for every queue.
macro_rules! on_every_queue {
    ($($test:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::InProcess).await;
            })+
        }
        #[cfg(feature = "services")]
        mod redis {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::Redis).await;
            })+
        }
    };
}

on_every_queue!(
    first_in_first_out,
    no_more_than_asked_for,
    each_job_goes_to_one_taker,
    what_is_acknowledged_never_comes_again,
    what_is_not_acknowledged_comes_again_to_another,
    a_taker_that_waits_gets_what_another_does_not_acknowledge,
    the_oldest_grows_older_until_it_is_acknowledged,
    a_dropped_take_loses_nothing,
);

/// No job is reclaimed while a test lasts.
const NEVER: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_millis(50);
/// Longer than any answer takes.
const LONG: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
enum Kind {
    InProcess,
    #[cfg(feature = "services")]
    Redis,
}

impl Kind {
    #[cfg_attr(not(feature = "services"), expect(clippy::unused_async, reason = "a server is waited for"))]
    async fn queue(self, reclaim_after: Duration) -> Arc<dyn Queue> {
        match self {
            Self::InProcess => Arc::new(InProcessQueue::new(reclaim_after)),
            #[cfg(feature = "services")]
            Self::Redis => Arc::new(server::shared(reclaim_after).await.0),
        }
    }
}

async fn enqueue(queue: &dyn Queue, count: usize) -> Vec<RunId> {
    let runs: Vec<_> = std::iter::repeat_with(RunId::generate).take(count).collect();
    for run in &runs {
        queue.enqueue(*run).await.unwrap();
    }
    runs
}

async fn take(queue: &dyn Queue, consumer: &str, at_most: usize) -> Vec<Job> {
    timeout(LONG, queue.take(consumer, at_most)).await.expect("there is a job").unwrap()
}

async fn take_one(queue: &dyn Queue, consumer: &str) -> Job {
    take(queue, consumer, 1).await.remove(0)
}

fn runs(jobs: &[Job]) -> Vec<RunId> {
    jobs.iter().map(|job| job.run).collect()
}

async fn first_in_first_out(kind: Kind) {
    let queue = kind.queue(NEVER).await;
    let enqueued = enqueue(&*queue, 5).await;
    let mut taken = Vec::new();
    for _ in 0..5 {
        taken.extend(take(&*queue, "one", 1).await);
    }
    assert_eq!(runs(&taken), enqueued);
}

async fn no_more_than_asked_for(kind: Kind) {
    let queue = kind.queue(NEVER).await;
    let enqueued = enqueue(&*queue, 5).await;
    assert_eq!(runs(&take(&*queue, "one", 2).await), enqueued[..2]);
    assert_eq!(runs(&take(&*queue, "one", 10).await), enqueued[2..]);
    // None would be to wait for nothing.
    let more = enqueue(&*queue, 2).await;
    assert_eq!(runs(&take(&*queue, "one", 0).await), more[..1]);
}

async fn each_job_goes_to_one_taker(kind: Kind) {
    const RUNS: usize = 300;
    let queue = kind.queue(NEVER).await;
    let (send, mut received) = tokio::sync::mpsc::unbounded_channel();
    let mut takers = JoinSet::new();
    for consumer in ["one", "two", "three", "four"] {
        let (queue, send) = (Arc::clone(&queue), send.clone());
        takers.spawn(async move {
            loop {
                for job in take(&*queue, consumer, 3).await {
                    queue.acknowledge(&job).await.unwrap();
                    send.send(job.run).unwrap();
                }
            }
        });
    }
    let enqueued = enqueue(&*queue, RUNS).await;
    let mut taken = Vec::new();
    while taken.len() < RUNS {
        taken.push(timeout(LONG, received.recv()).await.expect("all are taken").unwrap());
    }
    eventually("all acknowledged", async || queue.oldest().await.unwrap().is_none()).await;
    takers.shutdown().await;
    assert!(received.try_recv().is_err(), "none is left over");
    taken.sort_unstable();
    assert_eq!(taken, enqueued);
}

async fn what_is_acknowledged_never_comes_again(kind: Kind) {
    let queue = kind.queue(SOON).await;
    enqueue(&*queue, 1).await;
    queue.acknowledge(&take_one(&*queue, "one").await).await.unwrap();
    let other = enqueue(&*queue, 1).await;
    // The other comes again, and again: so there was time enough for the first.
    for _ in 0..3 {
        assert_eq!(runs(&take(&*queue, "two", 10).await), other);
    }
}

async fn what_is_not_acknowledged_comes_again_to_another(kind: Kind) {
    let queue = kind.queue(SOON).await;
    let enqueued = enqueue(&*queue, 2).await;
    let lost = take_one(&*queue, "one").await;
    queue.acknowledge(&take_one(&*queue, "one").await).await.unwrap();
    let again = take_one(&*queue, "two").await;
    assert_eq!((lost.run, again.run), (enqueued[0], enqueued[0]));
    // Who was late may still acknowledge it: the run has begun.
    queue.acknowledge(&lost).await.unwrap();
    assert_eq!(queue.oldest().await.unwrap(), None);
    queue.acknowledge(&again).await.unwrap();
}

async fn a_taker_that_waits_gets_what_another_does_not_acknowledge(kind: Kind) {
    let queue = kind.queue(SOON).await;
    let mut takers = JoinSet::new();
    for consumer in ["one", "two"] {
        let queue = Arc::clone(&queue);
        takers.spawn(async move { take_one(&*queue, consumer).await.run });
    }
    tokio::task::yield_now().await;
    let enqueued = enqueue(&*queue, 1).await;
    assert_eq!(takers.join_all().await, [enqueued[0]; 2]);
}

async fn the_oldest_grows_older_until_it_is_acknowledged(kind: Kind) {
    let queue = kind.queue(NEVER).await;
    assert_eq!(queue.oldest().await.unwrap(), None);
    enqueue(&*queue, 1).await;
    let young = queue.oldest().await.unwrap().unwrap();
    assert!(young < LONG, "{young:?}");
    eventually("older", async || queue.oldest().await.unwrap() > Some(young + SOON)).await;
    enqueue(&*queue, 1).await;
    let first = take_one(&*queue, "one").await;
    assert!(queue.oldest().await.unwrap() > Some(young + SOON), "taken is not acknowledged");
    let second = take_one(&*queue, "one").await;
    queue.acknowledge(&second).await.unwrap();
    assert!(queue.oldest().await.unwrap() > Some(young + SOON), "the younger one says nothing of it");
    queue.acknowledge(&first).await.unwrap();
    assert_eq!(queue.oldest().await.unwrap(), None);
}

async fn a_dropped_take_loses_nothing(kind: Kind) {
    let queue = kind.queue(SOON).await;
    let (mut enqueued, mut taken, mut dropped) = (Vec::new(), Vec::new(), 0);
    for _ in 0..100 {
        let other = Arc::clone(&queue);
        let mut enqueueing = tokio::spawn(async move { enqueue(&*other, 1).await });
        // The job is on its way to a taker that may be gone when it arrives.
        tokio::select! {
            jobs = queue.take("one", 3) => {
                taken.extend(jobs.unwrap());
                enqueued.extend(enqueueing.await.unwrap());
            }
            runs = &mut enqueueing => {
                dropped += 1;
                enqueued.extend(runs.unwrap());
            }
        }
        for job in &taken {
            queue.acknowledge(job).await.unwrap();
        }
    }
    assert!(dropped > 0);
    while taken.len() < enqueued.len() {
        let job = take_one(&*queue, "one").await;
        queue.acknowledge(&job).await.unwrap();
        taken.push(job);
    }
    let mut taken = runs(&taken);
    taken.sort_unstable();
    assert_eq!(taken, enqueued);
    assert_eq!(queue.oldest().await.unwrap(), None);
}

#[tokio::test]
async fn a_closed_queue_takes_none_and_gives_what_it_has() {
    let queue = InProcessQueue::default();
    let enqueued = enqueue(&queue, 1).await;
    queue.close();
    assert_eq!(queue.enqueue(RunId::generate()).await, Err(QueueError::Closed));
    assert_eq!(runs(&take(&queue, "one", 10).await), enqueued);
    queue.open();
    let enqueued = enqueue(&queue.clone(), 1).await;
    assert_eq!(runs(&take(&queue, "one", 10).await), enqueued);
}
