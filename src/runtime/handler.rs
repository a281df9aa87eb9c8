//! The interface of a handler: the context it gets and the outcome it returns.

use std::error::Error;

use serde_json::{Map, Value};

use super::{MAX_STATE, Runtime, RuntimeError};
use crate::run::RunId;
use crate::runs::{self, Run};
use crate::telemetry;

/// An error that a handler returns: the run fails with a reason that begins with `uncaught:`.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The outcome of a run, as its handler returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
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
    /// A child continues the work, and the run ends as the child does.
    HandedOff {
        /// The child, from [`Context::hand_off`].
        child: RunId,
    },
}

/// Why a run's state could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is too large.
    #[error(
        "a state of {0} bytes exceeds the limit of {MAX_STATE}: store large values elsewhere and keep a reference to them"
    )]
    TooLarge(usize),
    /// The database failed, or the run no longer exists.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Rejects a state that is too large for a row.
pub(super) fn check_state(state: &Map<String, Value>) -> Result<(), StateError> {
    let size = serde_json::to_string(state).map_or(0, |text| text.len());
    if size > MAX_STATE { Err(StateError::TooLarge(size)) } else { Ok(()) }
}

/// The run that a handler executes.
#[derive(Clone, Debug)]
pub struct Context {
    runtime: Runtime,
    run: Run,
    root: RunId,
}

impl Context {
    pub(super) fn new(runtime: Runtime, run: Run, root: RunId) -> Self {
        Self { runtime, run, root }
    }

    /// The run's row when the handler started: target, parent, delivery, state (a map: `state.get("key")`).
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The root of the run's tree.
    pub fn root(&self) -> RunId {
        self.root
    }

    /// The input extracted from the delivery, which children inherit. JSON null if there is none.
    pub fn input(&self) -> &Value {
        self.run.state.get(INPUT).unwrap_or(&Value::Null)
    }

    /// Merges `patch` into the run's state; each key replaces the previous value as a whole.
    pub async fn set_state(&self, patch: Map<String, Value>) -> Result<(), StateError> {
        check_state(&patch)?;
        let mut session = self.runtime.database().acquire().await.map_err(RuntimeError::from)?;
        Ok(runs::merge_state(session.runs(), self.run.id, &patch).await.map_err(RuntimeError::from)?)
    }

    /// Inserts and enqueues a run of `workflow` on the same target as this run's only child, to which the handler can then
    /// [hand off](Outcome::HandedOff).
    pub async fn hand_off(&self, workflow: &str) -> Result<RunId, RuntimeError> {
        if self.runtime.registry().get(workflow).is_none() {
            return Err(RuntimeError::UnknownWorkflow(workflow.to_owned()));
        }
        self.runtime.orchestrator().queue_child(&self.run, workflow).await
    }

    /// The `traceparent` for a call to another service: that of the current span, otherwise that of the run.
    pub fn traceparent(&self) -> String {
        telemetry::outgoing_traceparent(self.run.id, self.root)
    }
}

/// The key of the delivery's input in a run's state.
pub(super) const INPUT: &str = "input";
