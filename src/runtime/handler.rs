//! What a handler is given, and what it gives back.

use std::error::Error;

use serde_json::{Map, Value};

use super::{MAX_STATE, Runtime, RuntimeError};
use crate::run::RunId;
use crate::runs::{self, Run};
use crate::telemetry;

/// An error that escapes a handler: the run has then failed with a reason that begins `uncaught:`.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What became of a run, as its handler says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
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
    /// A child works on, and the run ends as that does.
    HandedOff {
        /// The child, from [`Context::hand_off`].
        child: RunId,
    },
}

/// Why a run's state could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is too large.
    #[error(
        "a state of {0} bytes: at most {MAX_STATE} fit; keep what is large elsewhere, and its address here"
    )]
    TooLarge(usize),
    /// The database failed, or the run is gone.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Whether a state fits into a row.
pub(super) fn check_state(state: &Map<String, Value>) -> Result<(), StateError> {
    let size = serde_json::to_string(state).map_or(0, |text| text.len());
    if size > MAX_STATE { Err(StateError::TooLarge(size)) } else { Ok(()) }
}

/// The run that a handler works on.
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

    /// Its row, as it was when the handler began: target, parent, delivery, state (a map: `state.get("key")`).
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The run at the top of its tree.
    pub fn root(&self) -> RunId {
        self.root
    }

    /// What the delivery said, as far as it was kept: for the children of a run, too. JSON null if there is none.
    pub fn input(&self) -> &Value {
        self.run.state.get(INPUT).unwrap_or(&Value::Null)
    }

    /// Puts `patch` into the run's state, each key in the place of the one that was there.
    pub async fn set_state(&self, patch: Map<String, Value>) -> Result<(), StateError> {
        check_state(&patch)?;
        let mut session = self.runtime.database().acquire().await.map_err(RuntimeError::from)?;
        Ok(runs::merge_state(session.runs(), self.run.id, &patch).await.map_err(RuntimeError::from)?)
    }

    /// Queues a run of `workflow` on the same target, the one child of this run, to which the handler can then [hand off](Outcome::HandedOff).
    pub async fn hand_off(&self, workflow: &str) -> Result<RunId, RuntimeError> {
        if self.runtime.registry().get(workflow).is_none() {
            return Err(RuntimeError::UnknownWorkflow(workflow.to_owned()));
        }
        self.runtime.orchestrator().queue_child(&self.run, workflow).await
    }

    /// The `traceparent` for a call to another service: the current span's, or else the run's.
    pub fn traceparent(&self) -> String {
        telemetry::outgoing_traceparent(self.run.id, self.root)
    }
}

/// The key of a state under which the delivery's words are.
pub(super) const INPUT: &str = "input";
