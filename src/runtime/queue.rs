//! The queue between dispatchers and executors.
//!
//! A job is only a run's id: the table is the truth. So a job that is delivered twice is harmless (the second executor
//! finds the run claimed), and one that is lost is enqueued again by the reaper, which finds its run still queued.

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

/// The default time after which another consumer may take a job that was not acknowledged.
const RECLAIM_AFTER: Duration = Duration::from_secs(10);

/// Why an operation of a queue failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue no longer accepts jobs.
    #[error("the queue is closed")]
    Closed,
    /// The URL is invalid. The error does not repeat it, as it may contain a password.
    #[error(
        "invalid queue URL: write redis://HOST:6379/0, or rediss:// for TLS, and with a password \
         redis://USER:PASSWORD@HOST:6379/0, percent-encoded ({ENCODE})"
    )]
    Url,
    /// The server is unreachable or returned an error.
    #[error("{0}")]
    Server(String),
}

/// A job that an executor has taken, until it is [acknowledged](Queue::acknowledge).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The run to execute.
    pub run: RunId,
    /// The queue's handle of the job.
    pub receipt: String,
}

/// A FIFO queue of jobs.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Appends a run. Once this returns, the job outlives this process (if the queue does).
    async fn enqueue(&self, run: RunId) -> Result<(), QueueError>;

    /// Waits for jobs, and takes at least one and at most `at_most` for `consumer`, oldest first; jobs that another
    /// consumer took and did not acknowledge in time come before them.
    ///
    /// Cancel safe: a job that a dropped call had taken is delivered again after that time.
    async fn take(&self, consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError>;

    /// Removes a job permanently: its run is claimed, or needs no executor.
    async fn acknowledge(&self, job: &Job) -> Result<(), QueueError>;

    /// The age of the oldest unacknowledged job; `None` if there is none. Jobs leave in order, so a run that was enqueued
    /// earlier has no job.
    async fn oldest(&self) -> Result<Option<Duration>, QueueError>;
}
