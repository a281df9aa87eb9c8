//! Looks after runs that nobody looks after.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{DISPATCHER, EXECUTOR, End, ORCHESTRATOR, Runtime, RuntimeError};
use crate::run::Status;
use crate::runs::{self, Run, RunsError};

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
    /// reach the database: no shorter than the executors' lease, so that they can give a sign of life first.
    pub term: Duration,
    /// How often it looks.
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
}

impl Reaper {
    pub(super) fn new(runtime: Runtime, settings: ReaperSettings) -> Self {
        Self { runtime, settings }
    }

    /// Looks again and again until `stop`. Several may run: one works, the others stand by.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = self.settings.term;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = match self.round().await {
                Ok(_) => self.settings.every,
                Err(error) => {
                    tracing::warn!("reaping failed: {error}");
                    self.settings.term
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
        let database = self.runtime.database();
        let mut session = database.acquire().await?;
        if !runs::hold_lease(session.runs(), LEASE, self.runtime.name(), self.settings.term).await? {
            return Ok(None);
        }
        let orphans = runs::orphans(session.runs(), EXECUTOR, AT_MOST).await?;
        let stalled = runs::stalled(session.runs(), ORCHESTRATOR, AT_MOST).await?;
        runs::forget_leases(session.runs(), KEEP_LEASES).await?;
        drop(session);

        let orchestrator = self.runtime.orchestrator();
        let mut reaped = Reaped::default();
        for run in orphans {
            let owner = run.owner.as_ref().map_or("its owner", |owner| &owner.id);
            let reason = format!("owner lost: {owner} gives no sign of life");
            tracing::warn!(reason, runId = %run.id, workflowName = run.workflow_name, "reaped");
            let still = |now: &Run| now.status == Status::Running && now.owner == run.owner;
            match orchestrator.end_if(run.id, &End::Failed { reason }, still).await {
                Ok(true) => reaped.failed += 1,
                // It ended meanwhile, or was handed off: its owner was slow, not dead.
                Ok(false) | Err(RuntimeError::Runs(RunsError::NotFound { .. })) => {}
                // The others can be helped.
                Err(RuntimeError::Runs(error @ RunsError::Corrupt { .. })) => {
                    tracing::warn!(runId = %run.id, "not reaped: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        for run in stalled {
            match orchestrator.advance(run.id).await {
                Ok(()) => reaped.advanced += 1,
                Err(RuntimeError::Runs(error @ RunsError::Corrupt { .. })) => {
                    tracing::warn!(runId = %run.id, "not taken further: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        reaped.published = self.publish_again().await?;
        Ok(Some(reaped))
    }

    /// Publishes queued runs that have no job: their dispatcher died, or the queue has lost it.
    async fn publish_again(&self) -> Result<usize, RuntimeError> {
        let oldest = self.runtime.queue().oldest().await?.unwrap_or_default();
        let mut session = self.runtime.database().acquire().await?;
        let overdue = runs::overdue(session.runs(), oldest + self.settings.publishing, AT_MOST).await?;
        let owner = self.runtime.owner(DISPATCHER);
        let mut published = 0;
        for run in overdue {
            // This also marks it as touched now: if its job is lost again, that is seen as long after.
            if runs::set_owner(session.runs(), run.id, Status::Queued, &owner).await? {
                self.runtime.queue().publish(run.id).await?;
                published += 1;
                tracing::warn!(runId = %run.id, workflowName = run.workflow_name, "published again: it had no job");
            }
        }
        Ok(published)
    }
}
