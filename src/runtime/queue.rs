//! What carries runs from whoever queues them to the executors.
//!
//! A job is no more than a run's id: the table is the truth, and a job only says where to look. So one that comes
//! twice does no harm (the second executor finds the run begun), and one that is lost is published again by the
//! reaper, which finds its run still queued.

mod in_process;
#[cfg(feature = "redis")]
mod redis;

use std::time::Duration;

use async_trait::async_trait;

pub use self::in_process::InProcessQueue;
#[cfg(feature = "redis")]
pub use self::redis::{RedisQueue, RedisSettings};
use crate::redact::url::ENCODE;
use crate::run::RunId;

/// How long a consumer has for acknowledging what it took, by default: after that another gets it.
const RECLAIM_AFTER: Duration = Duration::from_secs(10);

/// Why a queue did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// It takes no jobs any more.
    #[error("the queue is closed")]
    Closed,
    /// No URL that a server could be reached at. It is not repeated, as it may hold a password.
    #[error(
        "not a queue's URL: write redis://HOST:6379/0, or rediss:// for TLS, and where a password is needed \
         redis://USER:PASSWORD@HOST:6379/0, percent-encoded ({ENCODE})"
    )]
    Url,
    /// Its server is away, or refuses.
    #[error("{0}")]
    Server(String),
}

/// A job that an executor has taken, until it is [acknowledged](Queue::acknowledge).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The run to execute.
    pub run: RunId,
    /// What the queue knows the job by.
    pub receipt: String,
}

/// A queue of jobs, first in, first out.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Puts a run at the end. Once this returns, the job outlives this process (where the queue does).
    async fn publish(&self, run: RunId) -> Result<(), QueueError>;

    /// Waits for jobs, and takes at least one and at most `at_most` for `consumer`: the oldest first, and before
    /// them those that another consumer took and did not acknowledge in time.
    ///
    /// Cancel safe: a job that a dropped call had taken comes again after that time.
    async fn take(&self, consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError>;

    /// Removes a job for good: its run has begun, or needs no executor.
    async fn acknowledge(&self, job: &Job) -> Result<(), QueueError>;

    /// How old the oldest job is that is not acknowledged; `None` if there is none. Jobs leave in order, so a run
    /// that was published longer ago has no job.
    async fn oldest(&self) -> Result<Option<Duration>, QueueError>;
}
