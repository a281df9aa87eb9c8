//! An event of a run: stored with the open run, and carried by its span.

use serde::{Deserialize, Serialize};

use crate::run::{RunId, Timestamp};
use crate::semconv::Event;

/// An event of a run, as its span carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Which one.
    pub event: Event,
    /// When it happened.
    pub at: Timestamp,
    /// On `handed_off`: the child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<Child>,
    /// Whether reconciliation found it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reconciled: bool,
}

/// The child that a run hands off to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its run.
    pub run: RunId,
    /// Its workflow.
    pub workflow_name: String,
}
