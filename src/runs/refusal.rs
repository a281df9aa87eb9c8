//! Dispatches that were refused before a row existed.

use super::{Connection, RunsError};
use crate::run::{RunId, Target, TargetKind};

/// A dispatch that was refused before a row existed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The requested workflow.
    pub workflow_name: String,
    /// The repository's owner.
    pub target_owner: String,
    /// The repository's name.
    pub target_repo: String,
    /// The issue or pull request, if any.
    pub target: Option<(TargetKind, i64)>,
    /// The reason.
    pub reason: &'static str,
    /// The delivery that requested it, if any.
    pub delivery_id: Option<String>,
    /// The run in flight that caused the refusal, if any.
    pub inflight: Option<RunId>,
}

impl Refusal {
    /// The full target, if the dispatch has one.
    pub fn target(&self) -> Option<Target> {
        let (owner, repo) = (self.target_owner.clone(), self.target_repo.clone());
        self.target.map(|(kind, number)| Target { kind, owner, repo, number })
    }
}

/// Journals that a dispatch was refused.
///
/// The only function here that needs runspan to be attached. Otherwise it fails, and on PostgreSQL aborts the
/// transaction around it: call it outside of one.
pub async fn dispatch_refused<'c>(
    connection: impl Into<Connection<'c>>,
    refusal: &Refusal,
) -> Result<(), RunsError> {
    execute!(
        connection.into(),
        "SELECT runspan.dispatch_refused($1, $2, $3, $4, $5, $6, $7, $8)",
        "INSERT INTO runspan_dispatch_refused VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &refusal.workflow_name,
        refusal.target.map(|(kind, _)| kind.as_str()),
        &refusal.target_owner,
        &refusal.target_repo,
        refusal.target.map(|(_, number)| number),
        refusal.reason,
        &refusal.delivery_id,
        refusal.inflight,
    )?;
    Ok(())
}
