//! Ends runs and advances their parents: the next step of a composite run, or its end.
//!
//! A child's end and its effect on the parent are one transaction that locks the parent. So two children that end
//! concurrently start the next step once, and a crash cannot leave a chain between two steps. Runs that such a
//! transaction inserts are enqueued after the commit.

use serde_json::Map;

use super::handler::INPUT;
use super::registry::Work;
use super::steps::Next;
use super::{ORCHESTRATOR, Runtime, RuntimeError, Tx};
use crate::run::{RunId, Status};
use crate::runs::{self, Connection, NewRun, Owner, Parent, Refusal, Run, RunsError};
use crate::semconv::{ErrorType, Event, Level};

/// The longest reason stored in a row, in bytes; the journal has the same limit.
const MAX_REASON: usize = 8 * 1024;

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It completed all its work.
    Succeeded,
    /// It failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// It ran cleanly, but work remains.
    Incomplete {
        /// Which.
        reason: String,
    },
}

impl End {
    /// Its outcome, as the log and the table name it.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Incomplete { .. } => "incomplete",
        }
    }

    /// The level of the event that the journal emits for it.
    pub(super) fn level(&self) -> Level {
        match self {
            Self::Succeeded => Event::Succeeded.level(None, None),
            Self::Failed { reason } => Event::Failed.level(None, Some(ErrorType::of_failure(Some(reason)))),
            Self::Incomplete { .. } => Event::Incomplete.level(None, None),
        }
    }

    /// The end that a row records; `None` while the run is in flight.
    fn of(run: &Run) -> Option<Self> {
        let reason = || run.reason().unwrap_or("no reason given").to_owned();
        match run.status {
            Status::Queued | Status::Running => None,
            Status::Succeeded => Some(Self::Succeeded),
            Status::Failed => Some(Self::Failed { reason: reason() }),
            Status::Incomplete => Some(Self::Incomplete { reason: reason() }),
            // The bundled table has no such runs; one that was altered may.
            Status::Cancelled => Some(Self::Failed { reason: "cancelled".to_owned() }),
        }
    }
}

/// Whether a run reached the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enqueue {
    Enqueued,
    /// The run was marked as failed, and its ancestors were advanced.
    FailedToEnqueue,
}

/// The state in which a run must still be, so that a decision about it holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected<'a> {
    /// Queued.
    Queued,
    /// Running, and its owner, this one, holds no lease.
    Orphan(&'a Owner),
}

/// Work to do after the commit.
#[derive(Default)]
struct AfterCommit {
    enqueue: Option<RunId>,
    refused: Option<Refusal>,
}

/// Ends runs and advances their parents.
#[derive(Clone, Debug)]
pub struct Orchestrator {
    runtime: Runtime,
}

/// A child of `parent` at step `step_index`, with the same target and input.
fn child_of(parent: &Run, step_index: i32, workflow: &str, runtime: &Runtime) -> NewRun {
    let mut child = NewRun::new(workflow, parent.target.clone());
    child.parent = Some(Parent { run: parent.id, step_index });
    child.state.extend(parent.state.get_key_value(INPUT).map(|(key, value)| (key.clone(), value.clone())));
    child.owner = Some(runtime.owner(ORCHESTRATOR));
    child
}

impl Orchestrator {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    /// Ends a run and advances its parent. The first end is final: for a run that has ended already, this is
    /// [`RunsError::IllegalTransition`].
    pub async fn end(&self, run: &Run, end: &End) -> Result<(), RuntimeError> {
        if run.parent.is_none() {
            let mut session = self.runtime.database().acquire().await?;
            return Ok(mark(session.runs(), run.id, end).await?);
        }
        let mut tx = self.runtime.database().begin().await?;
        let then = self.end_in(&mut tx, run, end).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Ends a run and advances its parent, if the run is still in the state `expected`. Returns whether it was.
    pub(super) async fn end_if(
        &self,
        run: RunId,
        end: &End,
        expected: Expected<'_>,
    ) -> Result<bool, RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let now = runs::lock(tx.runs(), run).await?;
        let still = match expected {
            Expected::Queued => now.status == Status::Queued,
            Expected::Orphan(owner) => {
                now.status == Status::Running
                    && now.owner.as_ref() == Some(owner)
                    && !runs::is_lease_held(tx.runs(), &owner.id).await?
            }
        };
        if !still {
            return Ok(false);
        }
        let then = self.end_in(&mut tx, &now, end).await?;
        tx.commit().await?;
        Box::pin(self.follow(then)).await;
        Ok(true)
    }

    async fn end_in(&self, tx: &mut Tx, run: &Run, end: &End) -> Result<AfterCommit, RuntimeError> {
        mark(tx.runs(), run.id, end).await?;
        match run.parent {
            Some(parent) => self.advance_in(tx, parent.run).await,
            None => Ok(AfterCommit::default()),
        }
    }

    /// Advances a run whose current child has ended. Otherwise it does nothing, so it is safe to call at any time.
    pub async fn advance(&self, run: RunId) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let then = self.advance_in(&mut tx, run).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Starts a composite run with its first step.
    pub(super) async fn begin(&self, run: &Run) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        runs::claim(tx.runs(), run.id, &self.runtime.owner(ORCHESTRATOR)).await?;
        let then = self.advance_in(&mut tx, run.id).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Inserts a child of `run`, whose handler is running, and enqueues it.
    pub(super) async fn queue_child(&self, run: &Run, workflow: &str) -> Result<RunId, RuntimeError> {
        let child = child_of(run, 0, workflow, &self.runtime);
        let mut tx = self.runtime.database().begin().await?;
        let now = runs::lock(tx.runs(), run.id).await?;
        if now.status != Status::Running || now.owner != run.owner {
            // The reaper considered this process dead: a child would compete with the run that replaces this one.
            return Err(
                RunsError::IllegalTransition { run: run.id, from: now.status, to: Status::Running }.into()
            );
        }
        if runs::last_child(tx.runs(), run.id).await?.is_some() {
            return Err(RuntimeError::SecondChild(run.id));
        }
        match runs::insert_queued(tx.runs(), &child).await {
            Ok(id) => {
                tx.commit().await?;
                self.enqueue(id).await?;
                Ok(id)
            }
            Err(error) => {
                drop(tx);
                if let RunsError::InFlight { run } = error {
                    self.runtime.refused(&refusal(&child, run)).await;
                }
                Err(error.into())
            }
        }
    }

    /// Makes `run` end as `child` does; its handler has returned. Fails the run if `child` is not its child.
    pub(super) async fn hand_off(&self, run: &Run, child: RunId) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let is_child = match runs::load(tx.runs(), child).await {
            Ok(child) => child.parent.is_some_and(|parent| parent.run == run.id),
            Err(RunsError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_child {
            drop(tx);
            let reason = format!("handed off to {child}, which is not a child of this run");
            return Box::pin(self.end(run, &End::Failed { reason })).await;
        }
        let owner = self.runtime.owner(ORCHESTRATOR);
        if !runs::set_owner(tx.runs(), run.id, Status::Running, &owner).await? {
            let (run, from) = (run.id, runs::status(tx.runs(), run.id).await?);
            return Err(RunsError::IllegalTransition { run, from, to: Status::Running }.into());
        }
        let then = self.advance_in(&mut tx, run.id).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Enqueues a queued run. If that fails, the run is marked as failed, so that its target is free again.
    pub(super) async fn enqueue(&self, run: RunId) -> Result<Enqueue, RuntimeError> {
        let Err(error) = self.runtime.queue().enqueue(run).await else { return Ok(Enqueue::Enqueued) };
        tracing::error!(reason = "workflow-dispatch-enqueue-failed", runId = %run, "failed to enqueue run: {error}");
        let end = End::Failed { reason: format!("enqueue failed: {error}") };
        // If it is no longer queued, the job did arrive and an executor has claimed it: only the response was lost.
        let has_failed = self.end_if(run, &end, Expected::Queued).await?;
        Ok(if has_failed { Enqueue::FailedToEnqueue } else { Enqueue::Enqueued })
    }

    /// The transaction has committed: if anything fails here, the reaper finds a queued run without a job.
    async fn follow(&self, then: AfterCommit) {
        if let Some(refusal) = &then.refused {
            self.runtime.refused(refusal).await;
        }
        if let Some(run) = then.enqueue
            && let Err(error) = self.enqueue(run).await
        {
            tracing::warn!(runId = %run, "failed to enqueue run or to mark it as failed: {error}");
        }
    }

    /// Advances `run` according to its last child, then its ancestors as far as they end too.
    async fn advance_in(&self, tx: &mut Tx, mut run: RunId) -> Result<AfterCommit, RuntimeError> {
        let mut then = AfterCommit::default();
        loop {
            let parent = match runs::lock(tx.runs(), run).await {
                Ok(parent) => parent,
                // Deleted, as old rows may be.
                Err(RunsError::NotFound { .. }) => return Ok(then),
                // This must not prevent the child's end.
                Err(error @ RunsError::Corrupt { .. }) => {
                    tracing::warn!(runId = %run, "failed to advance parent run: {error}");
                    return Ok(then);
                }
                Err(error) => return Err(error.into()),
            };
            let is_ours = parent.owner.as_ref().is_some_and(|owner| owner.kind == ORCHESTRATOR);
            if parent.status != Status::Running || !is_ours {
                return Ok(then);
            }
            let last = runs::last_child(tx.runs(), run).await?;
            let step = last.as_ref().and_then(|child| child.parent).map_or(0, |parent| parent.step_index);
            let Some(next) = self.next(&parent, step, last.as_ref()) else { return Ok(then) };
            let (end, at) = match next {
                Next::End(end) => (end, step),
                Next::Step(index, workflow) => {
                    let index = i32::try_from(index).unwrap_or(i32::MAX);
                    let child = child_of(&parent, index, workflow, &self.runtime);
                    match runs::insert_queued(tx.runs(), &child).await {
                        Ok(child) => {
                            then.enqueue = Some(child);
                            return Ok(then);
                        }
                        Err(RunsError::InFlight { run }) => {
                            then.refused = Some(refusal(&child, run));
                            (refused_step(workflow, run), index)
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            if matches!(end, End::Failed { .. }) {
                let patch = Map::from_iter([("failedAtStepIndex".to_owned(), at.into())]);
                runs::merge_state(tx.runs(), run, &patch).await?;
            }
            mark(tx.runs(), run, &end).await?;
            match parent.parent {
                Some(above) => run = above.run,
                None => return Ok(then),
            }
        }
    }

    /// What follows the last child of `parent`, which is at `step`; `None` while that child is in flight.
    fn next(&self, parent: &Run, step: i32, last: Option<&Run>) -> Option<Next<'_>> {
        let Some(workflow) = self.runtime.registry().get(&parent.workflow_name) else {
            // The reaper of a process that has registered it will advance the run.
            tracing::warn!(runId = %parent.id, workflowName = parent.workflow_name, "workflow is not registered in this process");
            return None;
        };
        let Some(last) = last else {
            return match &workflow.work {
                Work::Steps(steps) => Some(steps.first()),
                Work::Handler(_) => {
                    let reason = "the run that it was handed off to no longer exists".to_owned();
                    Some(Next::End(End::Failed { reason }))
                }
            };
        };
        let end = End::of(last)?;
        Some(match &workflow.work {
            Work::Steps(steps) => steps.after(usize::try_from(step).unwrap_or(0), &end),
            // Its handler handed off to this child.
            Work::Handler(_) => Next::End(end),
        })
    }
}

async fn mark(connection: Connection<'_>, run: RunId, end: &End) -> Result<(), RunsError> {
    match end {
        End::Succeeded => runs::mark_succeeded(connection, run).await,
        End::Failed { reason } => runs::mark_failed(connection, run, cut(reason)).await,
        End::Incomplete { reason } => runs::mark_incomplete(connection, run, cut(reason)).await,
    }
}

/// The reason, truncated to what a row stores.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON)]
}

/// The end of a run whose next step was refused, because a run of that workflow is in flight.
fn refused_step(workflow: &str, inflight: Option<RunId>) -> End {
    let which = inflight.map(|run| format!(": {run}")).unwrap_or_default();
    End::Failed { reason: format!("{workflow} was refused, as a run of it is in flight{which}") }
}

fn refusal(child: &NewRun, inflight: Option<RunId>) -> Refusal {
    Refusal {
        workflow_name: child.workflow_name.clone(),
        target_owner: child.target.owner.clone(),
        target_repo: child.target.repo.clone(),
        target: Some((child.target.kind, child.target.number)),
        reason: ErrorType::Inflight.as_str(),
        delivery_id: None,
        inflight,
    }
}
