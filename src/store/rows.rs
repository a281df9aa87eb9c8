//! What both databases store in the same form.

use super::{Channel, StoreError};
use crate::projection::OpenRun;
use crate::run::RunId;

/// The state of an open run, as stored.
pub(super) fn encode_open_run(run: RunId, open: &OpenRun) -> Result<String, StoreError> {
    serde_json::to_string(open).map_err(|error| corrupt(format!("open run {run}"), &error))
}

/// An open run from its stored state.
pub(super) fn decode_open_run(run: RunId, state: &str) -> Result<OpenRun, StoreError> {
    serde_json::from_str(state).map_err(|error| corrupt(format!("open run {run}"), &error))
}

pub(super) fn channel(text: &str) -> Result<Channel, StoreError> {
    text.parse().map_err(|cause| StoreError::Corrupt { what: "the outbox".to_owned(), cause })
}

/// A size or count, as stored.
pub(super) fn stored(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A size or count from what is stored.
pub(super) fn count(stored: i64) -> usize {
    usize::try_from(stored).unwrap_or_default()
}

fn corrupt(what: String, cause: &serde_json::Error) -> StoreError {
    StoreError::Corrupt { what, cause: cause.to_string() }
}
