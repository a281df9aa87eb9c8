//! Recovers orphaned runs: those whose owner, job or next step was lost.
//!
//! Any process may die at any moment, so recovery rests on the table alone: on leases that expired, on runs queued for
//! longer than the oldest job, and on parents without a child in flight.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::orchestrator::Expected;
use super::{DISPATCHER, EXECUTOR, End, ORCHESTRATOR, Runtime, RuntimeError};
use crate::outage::{Extent, Outage};
use crate::run::Status;
use crate::runs::{self, OrphanedRun, RunsError};

/// The lease that ensures one active reaper.
const LEASE: &str = "reaper";

/// The most runs of each kind that one round recovers.
const BATCH: u32 = 200;

/// How long an expired lease is kept, for diagnosis.
const EXPIRED_LEASE_RETENTION: Duration = Duration::from_hours(24);

/// Settings of a reaper.
#[derive(Clone, Debug)]
pub struct ReaperSettings {
    /// How long a round may take before another reaper takes over, and how long this one waits after it could not
    /// reach the database (10 s).
    pub lease_term: Duration,
    /// The interval between rounds (5 s). An owner must be without a lease for this long, in two rounds, before its runs
    /// fail. At least half of the executors' lease term, so that executors can renew first after a database outage.
    pub interval: Duration,
    /// How long enqueueing a run may take (30 s). A run queued for longer than this plus the age of the oldest job has no
    /// job.
    pub enqueue_grace: Duration,
}

impl Default for ReaperSettings {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { lease_term: secs(10), interval: secs(5), enqueue_grace: secs(30) }
    }
}

/// What a round recovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Runs that failed because their owner is dead.
    pub failed: usize,
    /// Queued runs without a job that were enqueued again.
    pub re_enqueued: usize,
    /// Runs whose children had ended without advancing them.
    pub advanced: usize,
}

/// Fails runs whose executor is dead, enqueues queued runs whose job is lost, and advances stalled parents.
#[derive(Debug)]
pub struct Reaper {
    runtime: Runtime,
    settings: ReaperSettings,
    /// Owners without a lease in the last round, and since when.
    expired_since: Mutex<HashMap<String, Instant>>,
}

impl Reaper {
    pub(super) fn new(runtime: Runtime, settings: ReaperSettings) -> Self {
        Self { runtime, settings, expired_since: Mutex::default() }
    }

    /// Runs a round per interval until `stop`. Of several reapers one is active, the others stand by.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = self.settings.interval;
        let mut outage = Outage::default();
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = match self.round().await {
                Ok(_) => {
                    if let Some(Extent { duration, attempts }) = outage.recovered(tokio::time::Instant::now())
                    {
                        tracing::info!(outage_ms = duration.as_millis(), attempts, "reaper works again");
                    }
                    self.settings.interval
                }
                Err(error) => {
                    if let Some(Extent { duration, attempts }) = outage.is_due(&error.to_string()) {
                        let outage_ms = duration.as_millis();
                        tracing::warn!(outage_ms, attempts, "reaper round failed: {error}");
                    }
                    // Dead owners can be found without the queue.
                    if matches!(error, RuntimeError::Queue(_)) {
                        self.settings.interval
                    } else {
                        self.settings.lease_term
                    }
                }
            };
        }
        let released = async {
            let mut session = self.runtime.database().acquire().await?;
            runs::release_lease(session.runs(), LEASE, self.runtime.name()).await
        };
        // If this fails, the next reaper waits until the lease expires.
        let _: Result<(), RunsError> = released.await;
    }

    /// Runs one round; `None` while another reaper is active.
    pub async fn round(&self) -> Result<Option<Reaped>, RuntimeError> {
        // Needs no lease: not every process knows every workflow, and advancing a run twice changes nothing.
        let advanced = self.advance_stalled().await?;
        let before = std::mem::take(&mut *self.expired_since());
        let asked = Instant::now();
        let mut session = self.runtime.database().acquire().await?;
        if !runs::hold_lease(session.runs(), LEASE, self.runtime.name(), self.settings.lease_term).await? {
            return Ok(None);
        }
        let orphans = runs::orphans(session.runs(), EXECUTOR, BATCH).await?;
        runs::delete_expired_leases(session.runs(), EXPIRED_LEASE_RETENTION).await?;
        drop(session);
        let seen = Instant::now();
        // If this round waited for the database, executors could not renew their leases either.
        let prompt = seen - asked <= self.settings.interval / 2;
        let before = if prompt { before } else { HashMap::new() };
        let owners = orphans.iter().filter_map(|run| run.owner.as_ref());
        let expired_since: HashMap<_, _> =
            owners.map(|owner| (owner.id.clone(), before.get(&owner.id).copied().unwrap_or(seen))).collect();
        let mut failed = 0;
        for run in orphans {
            let since = run.owner.as_ref().and_then(|owner| expired_since.get(&owner.id));
            if since.is_some_and(|since| seen - *since >= self.settings.interval) && self.fail(&run).await? {
                failed += 1;
            }
        }
        *self.expired_since() = expired_since;
        let re_enqueued = self.re_enqueue().await?;
        Ok(Some(Reaped { failed, re_enqueued, advanced }))
    }

    /// The map is only ever replaced as a whole, so poisoning is ignored.
    fn expired_since(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.expired_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails a run whose owner is dead. Returns whether the run was still orphaned.
    async fn fail(&self, run: &OrphanedRun) -> Result<bool, RuntimeError> {
        let Some(owner) = &run.owner else { return Ok(false) };
        let reason = format!("owner lost: {} did not renew its lease", owner.id);
        let end = End::Failed { reason: reason.clone() };
        match self.runtime.orchestrator().end_if(run.id, &end, Expected::Orphan(owner)).await {
            Ok(true) => {
                tracing::warn!(reason, runId = %run.id, workflowName = run.workflow_name, "failed orphaned run");
                Ok(true)
            }
            // It ended or was handed off since: its owner was slow, not dead.
            Ok(false) | Err(RuntimeError::Runs(RunsError::NotFound { .. })) => Ok(false),
            // Continue with the other runs.
            Err(RuntimeError::Runs(error @ RunsError::Corrupt { .. })) => {
                tracing::warn!(runId = %run.id, "failed to recover orphaned run: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Advances runs whose children were ended by other means than the orchestrator.
    async fn advance_stalled(&self) -> Result<usize, RuntimeError> {
        let known: Vec<&str> = self.runtime.registry().names().collect();
        let mut session = self.runtime.database().acquire().await?;
        let stalled = runs::stalled(session.runs(), ORCHESTRATOR, &known, BATCH).await?;
        drop(session);
        for run in &stalled {
            self.runtime.orchestrator().advance(run.id).await?;
        }
        Ok(stalled.len())
    }

    /// Enqueues queued runs that have no job: their dispatcher died, or the queue lost it.
    async fn re_enqueue(&self) -> Result<usize, RuntimeError> {
        let oldest = self.runtime.queue().oldest().await?.unwrap_or_default();
        let mut session = self.runtime.database().acquire().await?;
        let overdue =
            runs::overdue(session.runs(), oldest.saturating_add(self.settings.enqueue_grace), BATCH).await?;
        let owner = self.runtime.owner(DISPATCHER);
        let mut re_enqueued = 0;
        drop(session);
        for run in overdue {
            // Released before enqueueing: a queue may need a connection of this pool.
            let mut session = self.runtime.database().acquire().await?;
            // This also updates `updated_at`, so a job that is lost again is detected after the same time.
            let is_queued = runs::set_owner(session.runs(), run.id, Status::Queued, &owner).await?;
            drop(session);
            if is_queued {
                self.runtime.queue().enqueue(run.id).await?;
                re_enqueued += 1;
                tracing::warn!(runId = %run.id, workflowName = run.workflow_name, "re-enqueued run without a job");
            }
        }
        Ok(re_enqueued)
    }
}
