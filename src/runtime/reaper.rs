//! Looks after runs that nobody looks after.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::orchestrator::Seen;
use super::{DISPATCHER, EXECUTOR, End, ORCHESTRATOR, Runtime, RuntimeError};
use crate::run::Status;
use crate::runs::{self, RunsError, Unattended};

/// The lease that makes one reaper at a time.
const LEASE: &str = "reaper";

/// The most runs of a kind that are looked after in one round.
const AT_MOST: u32 = 200;

/// How long an expired lease is kept, for whoever wonders.
const KEEP_LEASES: Duration = Duration::from_hours(24);

/// How a reaper works.
#[derive(Clone, Debug)]
pub struct ReaperSettings {
    /// How long a round may take before another reaper takes over, and how long this one waits after it could not
    /// reach the database.
    pub term: Duration,
    /// How often it looks, and for how long an owner has to be without a lease, in two looks, before its runs fail:
    /// no shorter than half of the executors' lease. After a time in which nobody could reach the database, they can
    /// so give a sign of life first.
    pub every: Duration,
    /// How long publishing a run may take. One that is queued for longer, and longer than the oldest job, has none.
    pub publishing: Duration,
}

impl Default for ReaperSettings {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { term: secs(10), every: secs(5), publishing: secs(30) }
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Runs that failed because their owner is gone.
    pub failed: usize,
    /// Runs that were queued without a job, and have one now.
    pub published: usize,
    /// Runs whose children had ended without taking them further.
    pub advanced: usize,
}

/// Fails runs whose executor is gone, publishes queued runs whose job is lost, and takes stalled chains further.
#[derive(Debug)]
pub struct Reaper {
    runtime: Runtime,
    settings: ReaperSettings,
    /// Owners that were without a lease at the last look, and since when.
    silent: Mutex<HashMap<String, Instant>>,
}

impl Reaper {
    pub(super) fn new(runtime: Runtime, settings: ReaperSettings) -> Self {
        Self { runtime, settings, silent: Mutex::default() }
    }

    /// Looks again and again until `stop`. Several may run: one works, the others stand by.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = self.settings.every;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = match self.round().await {
                Ok(_) => self.settings.every,
                Err(error) => {
                    tracing::warn!("reaping failed: {error}");
                    // Without a queue, dead owners can be found all the same.
                    if matches!(error, RuntimeError::Queue(_)) {
                        self.settings.every
                    } else {
                        self.settings.term
                    }
                }
            };
        }
        let released = async {
            let mut session = self.runtime.database().acquire().await?;
            runs::release_lease(session.runs(), LEASE, self.runtime.name()).await
        };
        // Otherwise the next reaper waits for its end.
        let _: Result<(), RunsError> = released.await;
    }

    /// Looks once; `None` while another reaper is at work.
    pub async fn round(&self) -> Result<Option<Reaped>, RuntimeError> {
        // Needs no lease: not every process knows every workflow, and advancing a run twice changes nothing.
        let advanced = self.advance_stalled().await?;
        let before = std::mem::take(&mut *self.silent());
        let asked = Instant::now();
        let mut session = self.runtime.database().acquire().await?;
        if !runs::hold_lease(session.runs(), LEASE, self.runtime.name(), self.settings.term).await? {
            return Ok(None);
        }
        let orphans = runs::orphans(session.runs(), EXECUTOR, AT_MOST).await?;
        runs::forget_leases(session.runs(), KEEP_LEASES).await?;
        drop(session);
        let seen = Instant::now();
        // Who waited so long for the database has waited with everybody else.
        let prompt = seen - asked <= self.settings.every / 2;
        let before = if prompt { before } else { HashMap::new() };
        let owners = orphans.iter().filter_map(|run| run.owner.as_ref());
        let silent: HashMap<_, _> =
            owners.map(|owner| (owner.id.clone(), before.get(&owner.id).copied().unwrap_or(seen))).collect();
        let mut failed = 0;
        for run in orphans {
            let since = run.owner.as_ref().and_then(|owner| silent.get(&owner.id));
            if since.is_some_and(|since| seen - *since >= self.settings.every) && self.fail(&run).await? {
                failed += 1;
            }
        }
        *self.silent() = silent;
        let published = self.publish_again().await?;
        Ok(Some(Reaped { failed, published, advanced }))
    }

    /// A map that is only ever replaced is sound whoever panicked.
    fn silent(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails a run whose owner is gone; whether it had to.
    async fn fail(&self, run: &Unattended) -> Result<bool, RuntimeError> {
        let Some(owner) = &run.owner else { return Ok(false) };
        let reason = format!("owner lost: {} gives no sign of life", owner.id);
        let end = End::Failed { reason: reason.clone() };
        match self.runtime.orchestrator().end_if(run.id, &end, Seen::Orphan(owner)).await {
            Ok(true) => {
                tracing::warn!(reason, runId = %run.id, workflowName = run.workflow_name, "reaped");
                Ok(true)
            }
            // It ended meanwhile, or was handed off: its owner was slow, not dead.
            Ok(false) | Err(RuntimeError::Runs(RunsError::NotFound { .. })) => Ok(false),
            // The others can be helped.
            Err(RuntimeError::Runs(error @ RunsError::Corrupt { .. })) => {
                tracing::warn!(runId = %run.id, "not reaped: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes runs further whose children have ended without doing so: somebody else ended them.
    async fn advance_stalled(&self) -> Result<usize, RuntimeError> {
        let known: Vec<&str> = self.runtime.registry().names().collect();
        let mut session = self.runtime.database().acquire().await?;
        let stalled = runs::stalled(session.runs(), ORCHESTRATOR, &known, AT_MOST).await?;
        drop(session);
        for run in &stalled {
            self.runtime.orchestrator().advance(run.id).await?;
        }
        Ok(stalled.len())
    }

    /// Publishes queued runs that have no job: their dispatcher died, or the queue has lost it.
    async fn publish_again(&self) -> Result<usize, RuntimeError> {
        let oldest = self.runtime.queue().oldest().await?.unwrap_or_default();
        let mut session = self.runtime.database().acquire().await?;
        let overdue =
            runs::overdue(session.runs(), oldest.saturating_add(self.settings.publishing), AT_MOST).await?;
        let owner = self.runtime.owner(DISPATCHER);
        let mut published = 0;
        drop(session);
        for run in overdue {
            // A queue may need the connection: it is not kept.
            let mut session = self.runtime.database().acquire().await?;
            // This also marks it as touched now: if its job is lost again, that is seen as long after.
            let is_queued = runs::set_owner(session.runs(), run.id, Status::Queued, &owner).await?;
            drop(session);
            if is_queued {
                self.runtime.queue().publish(run.id).await?;
                published += 1;
                tracing::warn!(runId = %run.id, workflowName = run.workflow_name, "published again: it had no job");
            }
        }
        Ok(published)
    }
}
