//! Takes jobs, and runs their handlers.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
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
use crate::run::{RunId, Status};
use crate::runs::{self, Owner, Run, RunsError};
use crate::semconv::Level;
use crate::{redact, telemetry};

/// How long an executor that was told to stop goes on trying to write down how its runs ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The longest wait between failed attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How often an executor gives a sign of life while a lease lasts. Each may take as long as the pause before it, so
/// that one may fail.
const SIGNS: u32 = 4;

/// How an executor works.
#[derive(Clone, Debug)]
pub struct ExecutorSettings {
    /// How many handlers run at a time (16).
    pub concurrency: usize,
    /// How long its runs are its own without a sign of life: it gives one four times as often (10 s).
    pub lease_term: Duration,
    /// How long handlers may go on after it was told to stop (30 s).
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
    /// Of its runs; its lease is on the id of it.
    owner: Owner,
    settings: ExecutorSettings,
}

impl Executor {
    pub(super) fn new(runtime: Runtime, settings: ExecutorSettings) -> Self {
        Self { owner: runtime.new_executor(), runtime, settings }
    }

    /// Works until `stop`, then lets its handlers come to their end. One that takes longer than
    /// [`drain`](ExecutorSettings::drain) is dropped, and its run has failed: none is left running without an owner.
    ///
    /// Dropped itself, it is as if its process had died: the reaper fails what its handlers had in hand.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RuntimeError> {
        self.hold_lease().await?;
        let hands = Arc::new(Hands {
            runtime: self.runtime.clone(),
            owner: self.owner.clone(),
            in_hand: Mutex::default(),
            stop: stop.clone(),
            abandon: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        tokio::select! {
            never = self.stay_alive() => match never {},
            () = self.take_jobs(&hands, &mut tasks) => {}
        }
        let drained = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            never = self.stay_alive() => match never {},
            () = self.let_end(&hands, drained) => {}
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

    async fn stay_alive(&self) -> std::convert::Infallible {
        // A lease of no time would be renewed without a pause.
        let pause = (self.settings.lease_term / SIGNS).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(pause).await;
            match tokio::time::timeout(pause, self.hold_lease()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("no sign of life: {error}"),
                Err(_) => tracing::warn!("no sign of life: the database took longer than {pause:?}"),
            }
        }
    }

    /// Takes as many jobs as there is room for, until told to stop.
    async fn take_jobs(&self, hands: &Arc<Hands>, tasks: &mut JoinSet<()>) {
        let room = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        let mut waits = backoff(LONGEST_WAIT);
        while let Some(Ok(first)) = hands.stop.run_until_cancelled(Arc::clone(&room).acquire_owned()).await {
            let at_most = 1 + room.available_permits();
            // Told to stop, it takes nothing more, even if there is something at the same moment.
            let taken = tokio::select! {
                biased;
                () = hands.stop.cancelled() => return,
                taken = self.runtime.queue().take(&self.owner.id, at_most) => taken,
            };
            match taken {
                Ok(jobs) => {
                    waits = backoff(LONGEST_WAIT);
                    let mut first = Some(first);
                    for job in jobs {
                        // Only this loop takes room, so what was free still is.
                        let permit = first.take().or_else(|| Arc::clone(&room).try_acquire_owned().ok());
                        let hands = Arc::clone(hands);
                        let work = async move {
                            hands.execute(&job).await;
                            drop(permit);
                        };
                        tasks.spawn(Scoped::new(work));
                    }
                    while tasks.try_join_next().is_some() {}
                }
                Err(error) => {
                    let wait = waits.next().unwrap_or_default();
                    tracing::warn!("no jobs: the queue failed: {error}");
                    hands.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
                }
            }
        }
    }

    async fn let_end(&self, hands: &Hands, drained: impl Future<Output = ()>) {
        let mut drained = std::pin::pin!(drained);
        if tokio::time::timeout(self.settings.drain, &mut drained).await.is_ok() {
            return;
        }
        hands.abandon.cancel();
        // What cannot even be written down is the reaper's.
        let _ = tokio::time::timeout(LAST_WORDS, drained).await;
    }
}

/// What the tasks of an executor share.
struct Hands {
    runtime: Runtime,
    owner: Owner,
    /// A job may come twice; a run is worked on once. With each, whether it has begun.
    in_hand: Mutex<HashMap<RunId, bool>>,
    stop: CancellationToken,
    abandon: CancellationToken,
}

impl Hands {
    async fn execute(&self, job: &Job) {
        let earlier = match self.in_hand().entry(job.run) {
            Entry::Occupied(has_begun) => Some(*has_begun.get()),
            Entry::Vacant(vacant) => {
                vacant.insert(false);
                None
            }
        };
        if let Some(has_begun) = earlier {
            // Left in the queue for as long as the handler takes, it would hide from the reaper which jobs are lost.
            if has_begun {
                self.acknowledge(job).await;
            }
            return;
        }
        let mut waits = backoff(LONGEST_WAIT);
        // Until it is known who has the run: an answer that was lost may have been a yes.
        while let Err(error) = self.try_execute(job).await {
            tracing::warn!(runId = %job.run, "not begun: {error}");
            let wait = tokio::time::sleep(waits.next().unwrap_or_default());
            if self.stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
        }
        self.in_hand().remove(&job.run);
    }

    /// A map that is only ever inserted into and removed from is sound whoever panicked.
    fn in_hand(&self) -> MutexGuard<'_, HashMap<RunId, bool>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn try_execute(&self, job: &Job) -> Result<(), RuntimeError> {
        let begun = self.begin(job.run).await?;
        self.in_hand().insert(job.run, true);
        self.acknowledge(job).await;
        if let Some(Begun { run, root, workflow }) = begun {
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

    /// Claims a run for this executor; `None` if there is nothing for it to do.
    async fn begin(&self, id: RunId) -> Result<Option<Begun<'_>>, RuntimeError> {
        let mut session = self.runtime.database().acquire().await?;
        let run = match runs::load(session.runs(), id).await {
            Ok(run) => run,
            Err(error @ RunsError::NotFound { .. }) => {
                tracing::warn!(runId = %id, "a job without a run: {error}");
                return Ok(None);
            }
            Err(RunsError::Corrupt { cause, .. }) => {
                let reason = format!("its row cannot be read: {cause}");
                tracing::warn!(runId = %id, "{reason}");
                return match runs::mark_failed(session.runs(), id, &reason).await {
                    // One whose status is none is nobody's.
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
        // The answer to an earlier claim of this task's may have been lost.
        let is_ours = run.status == Status::Running && run.owner.as_ref() == Some(&self.owner);
        match runs::claim(session.runs(), id, &self.owner).await {
            Ok(()) => {}
            Err(RunsError::IllegalTransition { .. }) if is_ours => {}
            Err(RunsError::IllegalTransition { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let run = Run { status: Status::Running, owner: Some(self.owner.clone()), ..run };
        Ok(Some(Begun { run, root, workflow }))
    }

    /// The run has begun, or needs no executor. A job that could not be removed comes again, and changes nothing.
    async fn acknowledge(&self, job: &Job) {
        if let Err(error) = self.runtime.queue().acknowledge(job).await {
            tracing::warn!(runId = %job.run, "a job is not removed: {error}");
        }
    }

    async fn handle(&self, workflow: &Workflow, run: &Run, root: RunId) -> Outcome {
        let Work::Handler(handler) = &workflow.work else {
            unreachable!("steps have begun without a handler")
        };
        let span = telemetry::run_span(run.id, root);
        span.record("workflowName", &run.workflow_name).record("target", run.target.to_string());
        span.record("otel.name", format!("{} handler", run.workflow_name));
        if let Some(id) = &run.delivery_id {
            span.record("deliveryId", id);
        }
        let context = Context::new(self.runtime.clone(), run.clone(), root);
        let handler = Arc::clone(handler);
        // In a task of its own, which a panic does not outlive and a timeout can drop; an error's text is its code too.
        let work = async move { handler(context).await.map_err(|error| with_causes(&error)) };
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
                Err(ended) => uncaught(&panicked(ended)),
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

    /// Writes down how a run ended, however long the database is away.
    async fn end(&self, run: &Run, outcome: Outcome) {
        let end = match outcome {
            Outcome::HandedOff { child } => Err(child),
            Outcome::Succeeded => Ok(End::Succeeded),
            Outcome::Failed { reason } => Ok(End::Failed { reason }),
            Outcome::Incomplete { reason } => Ok(End::Incomplete { reason }),
        };
        let orchestrator = self.runtime.orchestrator();
        let mut waits = backoff(LONGEST_WAIT);
        loop {
            let written = match &end {
                Ok(end) => orchestrator.end(run, end).await,
                Err(child) => orchestrator.hand_off(run, *child).await,
            };
            match written {
                Ok(()) => break,
                Err(RuntimeError::Runs(
                    error @ (RunsError::IllegalTransition { .. } | RunsError::NotFound { .. }),
                )) => {
                    // The reaper took this process for dead, or an answer was lost and this is the second try.
                    tracing::warn!(runId = %run.id, "the first end stands: {error}");
                    return;
                }
                Err(error) => {
                    tracing::warn!(runId = %run.id, "its end is not written down yet: {error}");
                    tokio::time::sleep(waits.next().unwrap_or_default()).await;
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

/// A run that is this executor's to work on.
struct Begun<'a> {
    run: Run,
    root: RunId,
    /// Unless no workflow has its name.
    workflow: Option<&'a Workflow>,
}

fn uncaught(what: &str) -> Outcome {
    Outcome::Failed { reason: format!("uncaught: {what}") }
}

fn with_causes(error: &BoxError) -> String {
    let mut texts: Vec<String> = chain(&**error).map(ToString::to_string).collect();
    // An io::Error has the text of its contents.
    texts.dedup();
    texts.join(": ")
}

fn panicked(ended: JoinError) -> String {
    let Ok(payload) = ended.try_into_panic() else { return "the handler was cancelled".to_owned() };
    let payload: &(dyn Any + Send) = &*payload;
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
