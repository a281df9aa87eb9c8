//! What follows from a run's end: the next step of the run above it, or that run's own end.
//!
//! A child's end and what it means for its parent are one transaction, in which the parent is locked; so two
//! children that end at once begin one next step, and no crash leaves a chain between two steps. What such a
//! transaction queues is published after it has committed.

use serde_json::Map;

use super::handler::INPUT;
use super::registry::Work;
use super::steps::Next;
use super::{ORCHESTRATOR, Runtime, RuntimeError, Tx};
use crate::run::{RunId, Status};
use crate::runs::{self, Connection, NewRun, Owner, Parent, Refusal, Run, RunsError};
use crate::semconv::{ErrorType, Event, Level};

/// The most that a row keeps of a reason, in bytes: as much as the journal takes.
const MAX_REASON: usize = 8 * 1024;

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It did what it should.
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
    /// How it ends, in a word.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Incomplete { .. } => "incomplete",
        }
    }

    /// As grave as the event that the journal tells of it.
    pub(super) fn level(&self) -> Level {
        match self {
            Self::Succeeded => Event::Succeeded.level(None, None),
            Self::Failed { reason } => Event::Failed.level(None, Some(ErrorType::of_failure(Some(reason)))),
            Self::Incomplete { .. } => Event::Incomplete.level(None, None),
        }
    }

    /// How a run has ended, by its row.
    fn of(run: &Run) -> Option<Self> {
        let reason = || run.reason().unwrap_or("for no reason").to_owned();
        match run.status {
            Status::Queued | Status::Running => None,
            Status::Succeeded => Some(Self::Succeeded),
            Status::Failed => Some(Self::Failed { reason: reason() }),
            Status::Incomplete => Some(Self::Incomplete { reason: reason() }),
        }
    }
}

/// Whether a run could be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    Yes,
    /// It has failed, and what is above it has, too.
    No,
}

/// What somebody saw of a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen<'a> {
    /// It is queued.
    Queued,
    /// It runs, and this owner of it holds no lease.
    Orphan(&'a Owner),
}

/// What is to be done once a transaction has committed.
#[derive(Default)]
struct Then {
    publish: Option<RunId>,
    refused: Option<Refusal>,
}

/// Ends runs, and takes the runs above them further.
#[derive(Clone, Debug)]
pub struct Orchestrator {
    runtime: Runtime,
}

/// A run under `parent`, at its step `step_index`. It works on the same target and the same input.
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

    /// Ends a run, and does what follows. A run that has ended stays as it is: the first end stands, and this is
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

    /// Ends a run and does what follows, if it still is what somebody saw a while ago; whether it was.
    pub(super) async fn end_if(&self, run: RunId, end: &End, seen: Seen<'_>) -> Result<bool, RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let now = runs::lock(tx.runs(), run).await?;
        let still = match seen {
            Seen::Queued => now.status == Status::Queued,
            Seen::Orphan(owner) => {
                now.status == Status::Running
                    && now.owner.as_ref() == Some(owner)
                    && !runs::is_held(tx.runs(), &owner.id).await?
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

    async fn end_in(&self, tx: &mut Tx, run: &Run, end: &End) -> Result<Then, RuntimeError> {
        mark(tx.runs(), run.id, end).await?;
        match run.parent {
            Some(parent) => self.advance_in(tx, parent.run).await,
            None => Ok(Then::default()),
        }
    }

    /// Takes a run further whose children have ended, if its children work for it. Does nothing where there is
    /// nothing to do, so anyone may call it at any time.
    pub async fn advance(&self, run: RunId) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let then = self.advance_in(&mut tx, run).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Begins a run whose work is `steps`, with its first step.
    pub(super) async fn begin(&self, run: &Run) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        runs::claim(tx.runs(), run.id, &self.runtime.owner(ORCHESTRATOR)).await?;
        let then = self.advance_in(&mut tx, run.id).await?;
        tx.commit().await?;
        self.follow(then).await;
        Ok(())
    }

    /// Queues a child of `run`, which a handler works on, and publishes it.
    pub(super) async fn queue_child(&self, run: &Run, workflow: &str) -> Result<RunId, RuntimeError> {
        let child = child_of(run, 0, workflow, &self.runtime);
        let mut tx = self.runtime.database().begin().await?;
        let now = runs::lock(tx.runs(), run.id).await?;
        if now.status != Status::Running || now.owner != run.owner {
            // The reaper took this process for dead: a child would work on beside the run that comes after this one.
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
                self.publish(id).await?;
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

    /// From now on `run`, which a handler worked on, ends as `child` does; fails it if that is no child of its.
    pub(super) async fn hand_off(&self, run: &Run, child: RunId) -> Result<(), RuntimeError> {
        let mut tx = self.runtime.database().begin().await?;
        let is_child = match runs::load(tx.runs(), child).await {
            Ok(child) => child.parent.is_some_and(|parent| parent.run == run.id),
            Err(RunsError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_child {
            drop(tx);
            let reason = format!("handed off to {child}, which is no child of this run");
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

    /// Publishes a queued run. If that fails, the run fails, and what is above it: its target is free again.
    pub(super) async fn publish(&self, run: RunId) -> Result<Published, RuntimeError> {
        let Err(error) = self.runtime.queue().publish(run).await else { return Ok(Published::Yes) };
        tracing::error!(reason = "workflow-dispatch-enqueue-failed", runId = %run, "not published: {error}");
        let end = End::Failed { reason: format!("enqueue failed: {error}") };
        // If it is not queued any more, it did arrive, and an executor has it: only the answer was lost.
        let has_failed = self.end_if(run, &end, Seen::Queued).await?;
        Ok(if has_failed { Published::No } else { Published::Yes })
    }

    /// What was decided is true already: whatever goes wrong here, the reaper finds a queued run without a job.
    async fn follow(&self, then: Then) {
        if let Some(refusal) = &then.refused {
            self.runtime.refused(refusal).await;
        }
        if let Some(run) = then.publish
            && let Err(error) = self.publish(run).await
        {
            tracing::warn!(runId = %run, "neither published nor failed: {error}");
        }
    }

    /// Looks at the last child of `run`, and does what that means for `run`, and for what is above.
    async fn advance_in(&self, tx: &mut Tx, mut run: RunId) -> Result<Then, RuntimeError> {
        let mut then = Then::default();
        loop {
            let parent = match runs::lock(tx.runs(), run).await {
                Ok(parent) => parent,
                // Removed, as old rows may be.
                Err(RunsError::NotFound { .. }) => return Ok(then),
                // That must not keep the child from its end.
                Err(error @ RunsError::Corrupt { .. }) => {
                    tracing::warn!(runId = %run, "not taken further: {error}");
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
                            then.publish = Some(child);
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

    /// What comes after the last child of `parent`, at `step`: `None` while that is in flight.
    fn next(&self, parent: &Run, step: i32, last: Option<&Run>) -> Option<Next<'_>> {
        let Some(workflow) = self.runtime.registry().get(&parent.workflow_name) else {
            // The reaper of a process that knows it will find it stalled.
            tracing::warn!(runId = %parent.id, workflowName = parent.workflow_name, "no such workflow here");
            return None;
        };
        let Some(last) = last else {
            return match &workflow.work {
                Work::Steps(steps) => Some(steps.first()),
                Work::Handler(_) => {
                    let reason = "the run that it was handed off to is gone".to_owned();
                    Some(Next::End(End::Failed { reason }))
                }
            };
        };
        let end = End::of(last)?;
        Some(match &workflow.work {
            Work::Steps(steps) => steps.after(usize::try_from(step).unwrap_or(0), &end),
            // A handler handed off to it.
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

/// A reason, as long as a row should carry it.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON)]
}

/// The end of a run whose next step collides with a run of that workflow in flight.
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
