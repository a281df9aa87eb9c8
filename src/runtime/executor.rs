//! Takes jobs from the queue and runs their handlers.
//!
//! An executor owns the runs that it has claimed for as long as it renews its lease. Each handler runs in a task of its
//! own, so that a panic or a timeout ends one run and nothing else.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::handler::{BoxError, Context, Outcome};
use super::queue::Job;
use super::registry::{Work, Workflow};
use super::scoped::Scoped;
use super::{End, Runtime, RuntimeError};
use crate::backoff::backoff;
use crate::error_chain::chain;
use crate::outage::{Extent, Outage};
use crate::run::{RunId, Status};
use crate::runs::{self, Owner, Run, RunsError};
use crate::semconv::Level;
use crate::{redact, telemetry};

/// How long a stopping executor retries to record the outcomes of its runs.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The longest delay between retries.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// How often an executor renews its lease per lease term. Each renewal may take as long as the pause before it, so one
/// may fail.
const HEARTBEATS_PER_TERM: u32 = 4;

/// Settings of an executor.
#[derive(Clone, Debug)]
pub struct ExecutorSettings {
    /// How many handlers run concurrently (16).
    pub concurrency: usize,
    /// How long its lease lasts; it is renewed four times per term (10 s).
    pub lease_term: Duration,
    /// How long handlers may continue after a stop was requested (30 s).
    pub drain: Duration,
}

impl Default for ExecutorSettings {
    fn default() -> Self {
        Self { concurrency: 16, lease_term: Duration::from_secs(10), drain: Duration::from_secs(30) }
    }
}

/// Runs handlers.
#[derive(Debug)]
pub struct Executor {
    runtime: Runtime,
    /// The owner of its runs. The executor's lease has this owner's id.
    owner: Owner,
    settings: ExecutorSettings,
}

impl Executor {
    pub(super) fn new(runtime: Runtime, settings: ExecutorSettings) -> Self {
        Self { owner: runtime.new_executor(), runtime, settings }
    }

    /// Takes jobs until `stop`, then waits for its handlers. A handler that takes longer than
    /// [`drain`](ExecutorSettings::drain) is dropped and its run fails, so that no run is left without an owner.
    ///
    /// If this future is dropped, the effect is that of a crash: the reaper fails the runs in progress.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RuntimeError> {
        self.hold_lease().await?;
        let worker = Arc::new(Worker {
            runtime: self.runtime.clone(),
            owner: self.owner.clone(),
            in_progress: Mutex::default(),
            stop: stop.clone(),
            abandon: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        tokio::select! {
            never = self.renew_lease() => match never {},
            () = self.take_jobs(&worker, &mut tasks) => {}
        }
        let drained = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            never = self.renew_lease() => match never {},
            () = self.drain(&worker, drained) => {}
        }
        let mut session = self.runtime.database().acquire().await?;
        Ok(runs::release_lease(session.runs(), &self.owner.id, &self.owner.id).await?)
    }

    async fn hold_lease(&self) -> Result<(), RuntimeError> {
        let name = &self.owner.id;
        let mut session = self.runtime.database().acquire().await?;
        runs::hold_lease(session.runs(), name, name, self.settings.lease_term).await?;
        Ok(())
    }

    async fn renew_lease(&self) -> std::convert::Infallible {
        // A term of zero must not become a busy loop.
        let pause = (self.settings.lease_term / HEARTBEATS_PER_TERM).max(Duration::from_millis(1));
        let mut outage = Outage::default();
        loop {
            tokio::time::sleep(pause).await;
            let cause = match tokio::time::timeout(pause, self.hold_lease()).await {
                Ok(Ok(())) => {
                    log_recovery(&mut outage, "renewed executor lease again");
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no response from the database within {pause:?}"),
            };
            if let Some(Extent { duration, attempts }) = outage.is_due(&cause) {
                let outage_ms = duration.as_millis();
                tracing::warn!(outage_ms, attempts, "failed to renew executor lease: {cause}");
            }
        }
    }

    /// Takes as many jobs as there are free slots, until a stop is requested.
    async fn take_jobs(&self, worker: &Arc<Worker>, tasks: &mut JoinSet<()>) {
        let room = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        let mut backoff_delays = backoff(MAX_BACKOFF);
        let mut outage = Outage::default();
        while let Some(Ok(first)) = worker.stop.run_until_cancelled(Arc::clone(&room).acquire_owned()).await {
            let at_most = 1 + room.available_permits();
            // A stop wins over jobs that are available at the same moment.
            let taken = tokio::select! {
                biased;
                () = worker.stop.cancelled() => return,
                taken = self.runtime.queue().take(&self.owner.id, at_most) => taken,
            };
            match taken {
                Ok(jobs) => {
                    log_recovery(&mut outage, "took jobs from the queue again");
                    backoff_delays = backoff(MAX_BACKOFF);
                    let mut first = Some(first);
                    for job in jobs {
                        // Only this loop acquires permits, so those counted above are still free.
                        let permit = first.take().or_else(|| Arc::clone(&room).try_acquire_owned().ok());
                        let worker = Arc::clone(worker);
                        let work = async move {
                            worker.execute(&job).await;
                            drop(permit);
                        };
                        tasks.spawn(Scoped::new(work));
                    }
                    while tasks.try_join_next().is_some() {}
                }
                Err(error) => {
                    let wait = backoff_delays.next().unwrap_or_default();
                    if let Some(Extent { duration, attempts }) = outage.is_due(&error.to_string()) {
                        let outage_ms = duration.as_millis();
                        tracing::warn!(outage_ms, attempts, "failed to take jobs from the queue: {error}");
                    }
                    worker.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
                }
            }
        }
    }

    async fn drain(&self, worker: &Worker, drained: impl Future<Output = ()>) {
        let mut drained = std::pin::pin!(drained);
        if tokio::time::timeout(self.settings.drain, &mut drained).await.is_ok() {
            return;
        }
        worker.abandon.cancel();
        // The reaper fails runs whose outcome could not be recorded.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, drained).await;
    }
}

/// State shared by an executor's tasks.
struct Worker {
    runtime: Runtime,
    owner: Owner,
    /// The runs in progress, each with whether it is claimed. A job may be delivered twice; its run executes once.
    in_progress: Mutex<HashMap<RunId, bool>>,
    stop: CancellationToken,
    abandon: CancellationToken,
}

impl Worker {
    async fn execute(&self, job: &Job) {
        let earlier = match self.in_progress().entry(job.run) {
            Entry::Occupied(is_claimed) => Some(*is_claimed.get()),
            Entry::Vacant(vacant) => {
                vacant.insert(false);
                None
            }
        };
        if let Some(is_claimed) = earlier {
            // If the job stayed in the queue while the handler runs, the reaper could not detect lost jobs.
            if is_claimed {
                self.acknowledge(job).await;
            }
            return;
        }
        let mut backoff_delays = backoff(MAX_BACKOFF);
        // Retry until the owner is known: a lost response may have been a successful claim.
        while let Err(error) = self.try_execute(job).await {
            tracing::warn!(runId = %job.run, "failed to claim run; retrying: {error}");
            let wait = tokio::time::sleep(backoff_delays.next().unwrap_or_default());
            if self.stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
        }
        self.in_progress().remove(&job.run);
    }

    /// Single inserts and removals leave the map consistent even if a task panics, so poisoning is ignored.
    fn in_progress(&self) -> MutexGuard<'_, HashMap<RunId, bool>> {
        self.in_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn try_execute(&self, job: &Job) -> Result<(), RuntimeError> {
        let claimed = self.claim(job.run).await?;
        self.in_progress().insert(job.run, true);
        self.acknowledge(job).await;
        if let Some(Claimed { run, root, workflow }) = claimed {
            let outcome = if let Some(workflow) = workflow {
                self.handle(workflow, &run, root).await
            } else {
                let (workflow, process) = (&run.workflow_name, &self.owner.id);
                Outcome::Failed { reason: format!("no workflow is named {workflow:?} in {process}") }
            };
            self.end(&run, outcome).await;
        }
        Ok(())
    }

    /// Claims a run for this executor; `None` if the executor has nothing to do for it.
    async fn claim(&self, id: RunId) -> Result<Option<Claimed<'_>>, RuntimeError> {
        let mut session = self.runtime.database().acquire().await?;
        let run = match runs::load(session.runs(), id).await {
            Ok(run) => run,
            Err(error @ RunsError::NotFound { .. }) => {
                tracing::warn!(runId = %id, "ignoring job without a run: {error}");
                return Ok(None);
            }
            Err(RunsError::Corrupt { cause, .. }) => {
                let reason = format!("its row cannot be read: {cause}");
                tracing::warn!(runId = %id, "failing run: {reason}");
                return match runs::mark_failed(session.runs(), id, &reason).await {
                    // An unknown status belongs to another application.
                    Ok(()) | Err(RunsError::IllegalTransition { .. } | RunsError::Corrupt { .. }) => Ok(None),
                    Err(error) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        let workflow = self.runtime.registry().get(&run.workflow_name);
        if workflow.is_some_and(|workflow| matches!(workflow.work, Work::Steps(_))) {
            drop(session);
            return match self.runtime.orchestrator().begin(&run).await {
                Ok(()) | Err(RuntimeError::Runs(RunsError::IllegalTransition { .. })) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let root = match run.parent {
            Some(_) => runs::root(session.runs(), id).await?,
            None => id,
        };
        // The response to an earlier claim by this task may have been lost.
        let is_own = run.status == Status::Running && run.owner.as_ref() == Some(&self.owner);
        match runs::claim(session.runs(), id, &self.owner).await {
            Ok(()) => {}
            Err(RunsError::IllegalTransition { .. }) if is_own => {}
            Err(RunsError::IllegalTransition { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let run = Run { status: Status::Running, owner: Some(self.owner.clone()), ..run };
        Ok(Some(Claimed { run, root, workflow }))
    }

    /// Removes a job whose run is claimed or needs no executor. A job that cannot be removed is delivered again, which is
    /// harmless.
    async fn acknowledge(&self, job: &Job) {
        if let Err(error) = self.runtime.queue().acknowledge(job).await {
            tracing::warn!(runId = %job.run, "failed to acknowledge job: {error}");
        }
    }

    async fn handle(&self, workflow: &Workflow, run: &Run, root: RunId) -> Outcome {
        let Work::Handler(handler) = &workflow.work else {
            unreachable!("composite runs are started without a handler")
        };
        let span = telemetry::run_span(run.id, root);
        span.record("workflowName", &run.workflow_name).record("target", run.target.to_string());
        span.record("otel.name", format!("{} handler", run.workflow_name));
        if let Some(id) = &run.delivery_id {
            span.record("deliveryId", id);
        }
        let context = Context::new(self.runtime.clone(), run.clone(), root);
        let handler = Arc::clone(handler);
        // A task of its own contains a panic, and a timeout can drop it. Formatting the error is the handler's code too.
        let work = async move { handler(context).await.map_err(|error| error_chain(&error)) };
        let mut task = AbortOnDropHandle::new(tokio::spawn(Scoped::new(work.instrument(span))));
        let timeout = async {
            match workflow.timeout {
                Some(timeout) => {
                    tokio::time::sleep(timeout).await;
                    timeout
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = &mut task => match ended {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(error)) => uncaught(&error),
                Err(ended) => uncaught(&panic_message(ended)),
            },
            timeout = timeout => {
                let reason = format!("timeout: no end after {}", humantime::format_duration(timeout));
                Outcome::Failed { reason }
            }
            () = self.abandon.cancelled() => {
                let reason = format!("owner lost: {} was stopped before the run ended", self.owner.id);
                Outcome::Failed { reason }
            }
        }
    }

    /// Records a run's outcome; retries for as long as the database is unreachable.
    async fn end(&self, run: &Run, outcome: Outcome) {
        let end = match outcome {
            Outcome::HandedOff { child } => Err(child),
            Outcome::Succeeded => Ok(End::Succeeded),
            Outcome::Failed { reason } => Ok(End::Failed { reason }),
            Outcome::Incomplete { reason } => Ok(End::Incomplete { reason }),
        };
        let orchestrator = self.runtime.orchestrator();
        let mut backoff_delays = backoff(MAX_BACKOFF);
        loop {
            let recorded = match &end {
                Ok(end) => orchestrator.end(run, end).await,
                Err(child) => orchestrator.hand_off(run, *child).await,
            };
            match recorded {
                Ok(()) => break,
                Err(RuntimeError::Runs(
                    error @ (RunsError::IllegalTransition { .. } | RunsError::NotFound { .. }),
                )) => {
                    // The reaper considered this process dead, or the response to an earlier attempt was lost.
                    tracing::warn!(runId = %run.id, "run already ended; ignoring later outcome: {error}");
                    return;
                }
                Err(error) => {
                    tracing::warn!(runId = %run.id, "failed to record outcome; retrying: {error}");
                    tokio::time::sleep(backoff_delays.next().unwrap_or_default()).await;
                }
            }
        }
        let reason = match &end {
            Ok(End::Failed { reason } | End::Incomplete { reason }) => Some(redact::reason(reason)),
            Ok(End::Succeeded) | Err(_) => None,
        };
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    outcome = end.as_ref().map_or("handed_off", End::outcome),
                    reason,
                    childRunId = end.as_ref().err().map(tracing::field::display),
                    runId = %run.id,
                    workflowName = run.workflow_name,
                    target = %run.target,
                    deliveryId = run.delivery_id,
                    "handled"
                )
            };
        }
        match end.as_ref().map_or(Level::Info, End::level) {
            Level::Info => log!(info),
            Level::Warn => log!(warn),
            Level::Error => log!(error),
        }
    }
}

fn log_recovery(outage: &mut Outage, message: &'static str) {
    if let Some(Extent { duration, attempts }) = outage.recovered(Instant::now()) {
        tracing::info!(outage_ms = duration.as_millis(), attempts, "{message}");
    }
}

/// A run that this executor has claimed.
struct Claimed<'a> {
    run: Run,
    root: RunId,
    /// `None` if no workflow has its name.
    workflow: Option<&'a Workflow>,
}

fn uncaught(what: &str) -> Outcome {
    Outcome::Failed { reason: format!("uncaught: {what}") }
}

fn error_chain(error: &BoxError) -> String {
    let mut texts: Vec<String> = chain(&**error).map(ToString::to_string).collect();
    // An io::Error has the text of its contents.
    texts.dedup();
    texts.join(": ")
}

fn panic_message(ended: JoinError) -> String {
    let Ok(payload) = ended.try_into_panic() else { return "the handler was cancelled".to_owned() };
    let payload: &(dyn Any + Send) = &*payload;
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panic without a message").to_owned()
}
