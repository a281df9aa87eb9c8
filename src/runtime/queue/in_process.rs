//! The in-process queue: dispatcher and executors are tasks of one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Job, Queue, QueueError, RECLAIM_AFTER};
use crate::run::RunId;

/// A queue in memory. Clones share it.
///
/// Its jobs are lost with the process; the runs are not, and the reaper enqueues them again.
#[derive(Clone, Debug)]
pub struct InProcessQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reclaim_after: Duration,
    state: Mutex<State>,
    /// Notified when a job was enqueued or taken: both change how long a consumer waits.
    changed: Notify,
}

/// Jobs by number, in the order of enqueueing.
#[derive(Debug, Default)]
struct State {
    closed: bool,
    enqueued: u64,
    waiting: BTreeMap<u64, Entry>,
    /// With the time it was taken.
    taken: BTreeMap<u64, (Entry, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    run: RunId,
    since: Instant,
}

impl Default for InProcessQueue {
    fn default() -> Self {
        Self::new(RECLAIM_AFTER)
    }
}

impl InProcessQueue {
    /// An empty queue, which delivers a job again if it is not acknowledged within `reclaim_after`.
    pub fn new(reclaim_after: Duration) -> Self {
        Self(Arc::new(Shared { reclaim_after, state: Mutex::default(), changed: Notify::new() }))
    }

    /// Rejects new jobs, like a server that is down; jobs already in the queue can still be taken.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// Accepts jobs again.
    pub fn open(&self) {
        self.state().closed = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for InProcessQueue {
    async fn enqueue(&self, run: RunId) -> Result<(), QueueError> {
        self.state().enqueue(run)?;
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn take(&self, _consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError> {
        loop {
            // Made before the look, so that it hears of all that comes after it.
            let changed = self.0.changed.notified();
            let jobs = self.state().take(at_most, self.0.reclaim_after);
            if !jobs.is_empty() {
                self.0.changed.notify_waiters();
                return Ok(jobs);
            }
            let first_taken = self.state().first_taken();
            match first_taken {
                // Whether something changed or a job is due: check again.
                Some(at) => drop(timeout(self.0.reclaim_after.saturating_sub(at.elapsed()), changed).await),
                None => changed.await,
            }
        }
    }

    async fn acknowledge(&self, job: &Job) -> Result<(), QueueError> {
        self.state().remove(&job.receipt);
        Ok(())
    }

    async fn oldest(&self) -> Result<Option<Duration>, QueueError> {
        Ok(self.state().oldest().map(|since| since.elapsed()))
    }
}

impl State {
    fn enqueue(&mut self, run: RunId) -> Result<(), QueueError> {
        if self.closed {
            return Err(QueueError::Closed);
        }
        self.waiting.insert(self.enqueued, Entry { run, since: Instant::now() });
        self.enqueued += 1;
        Ok(())
    }

    fn take(&mut self, at_most: usize, reclaim_after: Duration) -> Vec<Job> {
        let now = Instant::now();
        // Back to its original place, before jobs that were enqueued later.
        for (number, (entry, _)) in self.taken.extract_if(.., |_, (_, at)| now - *at >= reclaim_after) {
            self.waiting.insert(number, entry);
        }
        let mut jobs = Vec::new();
        while jobs.len() < at_most.max(1)
            && let Some((number, entry)) = self.waiting.pop_first()
        {
            self.taken.insert(number, (entry, now));
            jobs.push(Job { run: entry.run, receipt: number.to_string() });
        }
        jobs
    }

    fn first_taken(&self) -> Option<Instant> {
        self.taken.values().map(|(_, at)| *at).min()
    }

    /// Ignores receipts of another queue or of a job that no longer exists.
    fn remove(&mut self, receipt: &str) {
        if let Ok(number) = receipt.parse() {
            self.taken.remove(&number);
            self.waiting.remove(&number); // reclaimed since
        }
    }

    fn oldest(&self) -> Option<Instant> {
        let waiting = self.waiting.values().next().map(|entry| entry.since);
        let taken = self.taken.values().next().map(|(entry, _)| entry.since);
        waiting.into_iter().chain(taken).min()
    }
}
