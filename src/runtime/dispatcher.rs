//! From a delivery to a queued run, or to a refusal.

use super::handler::{INPUT, StateError, check_state};
use super::orchestrator::Published;
use super::registry::Workflow;
use super::{DISPATCHER, Delivery, Runtime, RuntimeError};
use crate::run::{RunId, Target};
use crate::runs::{self, NewRun, Refusal, RunsError};
use crate::semconv::ErrorType;

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dispatched {
    /// A run is queued.
    Queued {
        /// The run.
        run: RunId,
    },
    /// A run was queued, and has failed because it could not be published. Its target is free again.
    EnqueueFailed {
        /// The run.
        run: RunId,
    },
    /// There is no run.
    Refused {
        /// Why: [`ErrorType::Inflight`], [`ErrorType::ContextMismatch`] or [`ErrorType::MissingPriorOutput`].
        reason: ErrorType,
        /// The run that is in flight.
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
        /// Those that there are.
        known: String,
    },
    /// No workflow has this name.
    #[error("no workflow is named {intent:?} (known: {known})")]
    UnknownIntent {
        /// What the classifier said.
        intent: String,
        /// Those that there are.
        known: String,
    },
    /// The delivery says more than a run's state may hold.
    #[error(transparent)]
    State(#[from] StateError),
    /// Database or queue failed.
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

    /// Dispatches the workflow that a label asks for.
    ///
    /// Cancel safe: a dropped call has queued a run, which the reaper then publishes, or it has not.
    pub async fn label(&self, label: &str, delivery: &Delivery) -> Result<Dispatched, DispatchError> {
        let registry = self.runtime.registry();
        let workflow = registry.by_label(label).ok_or_else(|| DispatchError::UnknownLabel {
            label: label.to_owned(),
            known: registry.labels().collect::<Vec<_>>().join(", "),
        })?;
        self.dispatch(workflow, delivery).await
    }

    /// Dispatches the workflow of this name, which a classifier has found in a comment's words. Cancel
    /// safe as [`label`](Self::label) is.
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
        // Whether one is in flight is for the index to say: a read before this could be out of date.
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
        Ok(match self.runtime.orchestrator().publish(run).await? {
            Published::Yes => Dispatched::Queued { run },
            Published::No => Dispatched::EnqueueFailed { run },
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
