//! Warnings about entries that are projected all the same.

use crate::run::{RunId, Timestamp};

/// Something about an entry that somebody should know. The projection reports each; the relay logs one of each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A run has a status that runspan does not know.
    UnknownStatus {
        /// The status.
        status: String,
        /// The run.
        run: RunId,
        /// Its workflow.
        workflow: String,
    },
    /// A run's `created_at` was not believed: it begins when its entry was written.
    CreatedAt {
        /// The workflow.
        workflow: String,
        /// The run.
        run: RunId,
        /// What the row has; `None` if that is not a time.
        created_at: Option<Timestamp>,
        /// When the entry was written.
        at: Timestamp,
    },
}
