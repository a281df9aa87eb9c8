//! Turns a delivery into a queued run or a refusal.
//!
//! A refusal is not an error: it is journalled, so that the refusal rate can be queried like any other outcome.

use super::handler::{INPUT, StateError, check_state};
use super::orchestrator::Enqueue;
use super::registry::Workflow;
use super::{DISPATCHER, Delivery, Runtime, RuntimeError};
use crate::run::{RunId, Target};
use crate::runs::{self, NewRun, Refusal, RunsError};
use crate::semconv::ErrorType;

/// The result of a dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dispatched {
    /// A run is queued.
    Queued {
        /// The run.
        run: RunId,
    },
    /// A run was inserted and has failed, because it could not be enqueued. Its target is free again.
    EnqueueFailed {
        /// The run.
        run: RunId,
    },
    /// No run was inserted.
    Refused {
        /// Why: [`ErrorType::Inflight`], [`ErrorType::ContextMismatch`] or [`ErrorType::MissingPriorOutput`].
        reason: ErrorType,
        /// The run that is in flight, if that is the reason.
        inflight: Option<RunId>,
    },
}

/// Why a delivery could not be dispatched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// No workflow has this label.
    #[error("no workflow has the label {label:?} (known: {known})")]
    UnknownLabel {
        /// The label.
        label: String,
        /// The known ones.
        known: String,
    },
    /// No workflow has this name.
    #[error("no workflow is named {intent:?} (known: {known})")]
    UnknownIntent {
        /// The name that the classifier returned.
        intent: String,
        /// The known ones.
        known: String,
    },
    /// The delivery exceeds the size limit of a run's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The database or the queue failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl From<RunsError> for DispatchError {
    fn from(error: RunsError) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<sqlx::Error> for DispatchError {
    fn from(error: sqlx::Error) -> Self {
        Self::Runtime(error.into())
    }
}

/// Queues runs for deliveries.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    runtime: Runtime,
}

impl Dispatcher {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    /// Dispatches the workflow with this label.
    ///
    /// Cancel safe: a dropped call has inserted a run, which the reaper then enqueues, or it has not.
    pub async fn label(&self, label: &str, delivery: &Delivery) -> Result<Dispatched, DispatchError> {
        let registry = self.runtime.registry();
        let workflow = registry.by_label(label).ok_or_else(|| DispatchError::UnknownLabel {
            label: label.to_owned(),
            known: registry.labels().collect::<Vec<_>>().join(", "),
        })?;
        self.dispatch(workflow, delivery).await
    }

    /// Dispatches the workflow with this name, as returned by a classifier of comments. Cancel safe like
    /// [`label`](Self::label).
    pub async fn intent(&self, intent: &str, delivery: &Delivery) -> Result<Dispatched, DispatchError> {
        let registry = self.runtime.registry();
        let workflow = registry.get(intent).ok_or_else(|| DispatchError::UnknownIntent {
            intent: intent.to_owned(),
            known: registry.names().collect::<Vec<_>>().join(", "),
        })?;
        self.dispatch(workflow, delivery).await
    }

    async fn dispatch(&self, workflow: &Workflow, delivery: &Delivery) -> Result<Dispatched, DispatchError> {
        let target = delivery.target.as_ref().filter(|target| workflow.accepts.takes(target.kind));
        let Some(target) = target else {
            return Ok(self.refuse(workflow, delivery, ErrorType::ContextMismatch, None).await);
        };
        let new = self.new_run(workflow, target, delivery)?;
        let mut session = self.runtime.database().acquire().await?;
        if let Some(prior) = &workflow.requires
            && !runs::has_succeeded(session.runs(), prior, target).await?
        {
            drop(session);
            return Ok(self.refuse(workflow, delivery, ErrorType::MissingPriorOutput, None).await);
        }
        // The unique index decides whether a run is in flight: a read before the insert could be stale.
        let inserted = runs::insert_queued(session.runs(), &new).await;
        drop(session);
        let run = match inserted {
            Ok(run) => run,
            Err(RunsError::InFlight { run }) => {
                return Ok(self.refuse(workflow, delivery, ErrorType::Inflight, run).await);
            }
            Err(error) => return Err(error.into()),
        };
        tracing::info!(
            reason = "workflow-dispatch",
            runId = %run,
            workflowName = workflow.name,
            target = %target,
            deliveryId = delivery.id,
            "dispatched"
        );
        Ok(match self.runtime.orchestrator().enqueue(run).await? {
            Enqueue::Enqueued => Dispatched::Queued { run },
            Enqueue::FailedToEnqueue => Dispatched::EnqueueFailed { run },
        })
    }

    fn new_run(
        &self,
        workflow: &Workflow,
        target: &Target,
        delivery: &Delivery,
    ) -> Result<NewRun, StateError> {
        let mut new = NewRun::new(&workflow.name, target.clone());
        new.state.insert(INPUT.to_owned(), delivery.input.clone().into());
        new.state.extend(delivery.traceparent.clone().map(|it| ("traceparent".to_owned(), it.into())));
        check_state(&new.state)?;
        new.delivery_id = Some(delivery.id.clone());
        new.owner = Some(self.runtime.owner(DISPATCHER));
        Ok(new)
    }

    async fn refuse(
        &self,
        workflow: &Workflow,
        delivery: &Delivery,
        reason: ErrorType,
        inflight: Option<RunId>,
    ) -> Dispatched {
        let refusal = Refusal {
            workflow_name: workflow.name.clone(),
            target_owner: delivery.owner.clone(),
            target_repo: delivery.repo.clone(),
            target: delivery.target.as_ref().map(|target| (target.kind, target.number)),
            reason: reason.as_str(),
            delivery_id: Some(delivery.id.clone()),
            inflight,
        };
        self.runtime.refused(&refusal).await;
        Dispatched::Refused { reason, inflight }
    }
}
