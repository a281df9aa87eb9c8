//! Runs that have been in flight for too long.

use serde::Serialize;

use crate::run::RunId;

/// The age in seconds past which a run in flight is stuck: twice what 99 of 100 runs of its workflow stay within
/// (`usual.seconds`), but a minute at least; an hour where too few have ended to tell. SQL of both databases.
pub(super) const STUCK_THRESHOLD: &str = "CASE WHEN usual.seconds IS NULL THEN 3600 \
    WHEN 2 * usual.seconds < 60 THEN 60 ELSE 2 * usual.seconds END";

/// The runs that are stuck now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stuck {
    /// How many.
    pub count: u64,
    /// Those asked for, the oldest first.
    pub runs: Vec<StuckRun>,
}

/// A run in flight that has taken far longer than its like.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StuckRun {
    /// Its id.
    pub run_id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// What it works on, `acme/widgets#42`; nothing, where the row lacks a part of that.
    pub target: Option<String>,
    /// The repository's owner.
    pub target_owner: Option<String>,
    /// The repository's name.
    pub target_repo: Option<String>,
    /// `queued` or `running`.
    pub status: String,
    /// When it took that status: RFC 3339.
    pub since: Option<String>,
    /// How long ago it was queued, in seconds, by the database's clock.
    pub age_seconds: f64,
    /// How long 99 of 100 runs of its workflow take at most, in seconds; nothing, where too few have ended to tell.
    pub usual_seconds: Option<f64>,
    /// The run that spawned it, if one did.
    pub parent_run_id: Option<RunId>,
    /// The delivery that caused it, if one did.
    pub delivery_id: Option<String>,
}
