//! What both databases store in the same form.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Channel, StoreError};
use crate::projection::Tracked;
use crate::run::RunId;
use crate::series::{Change, InFlight, Recorded, Totals};

/// The state of an open run, as stored.
pub(super) fn encode_open_run(run: RunId, open: &Tracked) -> Result<String, StoreError> {
    serde_json::to_string(open).map_err(|error| corrupt(format!("open run {run}"), &error))
}

/// An open run from its stored state.
pub(super) fn decode_open_run(run: RunId, state: &str) -> Result<Tracked, StoreError> {
    serde_json::from_str(state).map_err(|error| corrupt(format!("open run {run}"), &error))
}

/// The acknowledged series, as stored.
pub(super) fn decode_recorded(head: &str, totals: &str) -> Result<Recorded, StoreError> {
    Ok(Recorded { head: decode_series(head)?, totals: decode_series(totals)? })
}

/// Pending totals from what is stored.
pub(super) fn decode_totals(delta: &str) -> Result<Totals, StoreError> {
    decode_series(delta)
}

/// A part of the series, as stored.
pub(super) fn encode_series(part: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(part).map_err(|error| corrupt("the series".to_owned(), &error))
}

/// What of a change is not always there: the totals, and what is usual.
pub(super) fn encode_change(change: &Change) -> Result<[Option<String>; 2], StoreError> {
    let totals = change.totals.as_ref().map(encode_series).transpose()?;
    Ok([totals, change.usual.as_ref().map(encode_series).transpose()?])
}

fn decode_series<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt("the series".to_owned(), &error))
}

/// A row of the table's runs in flight: workflow, status, how many, and the age of the oldest in seconds.
pub(super) fn in_flight(
    (workflow, status, runs, oldest_age): (String, String, i64, f64),
) -> Option<InFlight> {
    Some(InFlight { workflow, status: status.parse().ok()?, runs, oldest_age: oldest_age.max(0.0) })
}

/// The columns of an entry that was set aside.
pub(super) fn decode_entry(text: &str) -> Result<serde_json::Value, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt("an entry that was set aside".to_owned(), &error))
}

/// Counts, as a list in JSON.
pub(super) fn decode_counts<const N: usize>(text: &str) -> Result<[i64; N], StoreError>
where
    [i64; N]: DeserializeOwned,
{
    serde_json::from_str(text).map_err(|error| corrupt("the counts of the schema runspan".to_owned(), &error))
}

pub(super) fn channel(text: &str) -> Result<Channel, StoreError> {
    // A newer version may send what this one does not know.
    text.parse().map_err(|cause| StoreError::Newer { what: "the outbox".to_owned(), cause })
}

/// A size or count, as stored.
pub(super) fn stored(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A size or count from what is stored.
pub(super) fn count(stored: i64) -> usize {
    usize::try_from(stored).unwrap_or_default()
}

/// An event, an outcome or an error type that this version does not know is no damage: a newer one wrote it.
fn corrupt(what: String, cause: &serde_json::Error) -> StoreError {
    let cause = cause.to_string();
    if cause.starts_with("unknown variant") {
        StoreError::Newer { what, cause }
    } else {
        StoreError::Corrupt { what, cause }
    }
}
