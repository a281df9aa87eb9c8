//! What never became a run.

use super::{Connection, RunsError};
use crate::run::{RunId, Target, TargetKind};

/// A dispatch that was refused before there was a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The workflow that was asked for.
    pub workflow_name: String,
    /// The repository's owner.
    pub target_owner: String,
    /// The repository's name.
    pub target_repo: String,
    /// The issue or pull request, if it is about one.
    pub target: Option<(TargetKind, i64)>,
    /// Why.
    pub reason: &'static str,
    /// The delivery that asked for it, if one did.
    pub delivery_id: Option<String>,
    /// The run in flight that it collided with.
    pub inflight: Option<RunId>,
}

impl Refusal {
    /// What it is about, if it is about an issue or a pull request.
    pub fn target(&self) -> Option<Target> {
        let (owner, repo) = (self.target_owner.clone(), self.target_repo.clone());
        self.target.map(|(kind, number)| Target { kind, owner, repo, number })
    }
}

/// Has the journal note that a dispatch was refused.
///
/// The one function here that needs runspan to be attached; without it this is an error, and costs a transaction
/// around it on PostgreSQL. So call it on its own.
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
