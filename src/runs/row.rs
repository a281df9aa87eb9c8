//! Rows, read.

use serde_json::{Map, Value};

use super::{Connection, FAILED_REASON, INCOMPLETE_REASON, Owner, Parent, RunsError};
use crate::run::{MAX_ANCESTORS, RunId, Status, Target, TargetKind};

/// A run's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// What it works on.
    pub target: Target,
    /// The run that spawned it, if one did.
    pub parent: Option<Parent>,
    /// Where it stands.
    pub status: Status,
    /// What it knows; nothing, where that is no object, or not to be read.
    pub state: Map<String, Value>,
    /// The delivery that caused it, if one did.
    pub delivery_id: Option<String>,
    /// Who looks after it.
    pub owner: Option<Owner>,
}

impl Run {
    /// Why it failed or is incomplete, if it is.
    pub fn reason(&self) -> Option<&str> {
        let key = match self.status {
            Status::Failed => FAILED_REASON,
            Status::Incomplete => INCOMPLETE_REASON,
            Status::Queued | Status::Running | Status::Succeeded => return None,
        };
        self.state.get(key)?.as_str()
    }
}

/// The columns of a [`Row`]. A status or a kind may be an enum of the application's; a state comes as text, as not all
/// that the database takes for JSON is that to us.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.workflow_name, CAST(r.target_type AS text), r.target_owner, r.target_repo, \
             r.target_number, r.parent_run_id, r.parent_step_index, CAST(r.status AS text), CAST(r.state AS text), \
             r.delivery_id, r.owner_kind, r.owner_id FROM workflow_runs r ",
            $rest
        )
    };
}

type Row = (
    RunId,
    String,
    String,
    String,
    String,
    i64,
    Option<RunId>,
    Option<i32>,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

fn run(row: Row) -> Result<Run, RunsError> {
    let (id, workflow_name, kind, owner, repo, number, parent, step, status, state, delivery_id, by, whom) =
        row;
    let corrupt = |cause: String| RunsError::Corrupt { run: id, cause };
    let kind = [TargetKind::Issue, TargetKind::Pr]
        .into_iter()
        .find(|known| known.as_str() == kind)
        .ok_or_else(|| corrupt(format!("unknown target type {kind:?} (known: issue, pr)")))?;
    Ok(Run {
        id,
        workflow_name,
        target: Target { kind, owner, repo, number },
        parent: parent.map(|run| Parent { run, step_index: step.unwrap_or_default() }),
        status: status.parse().map_err(|error: crate::run::UnknownStatus| corrupt(error.to_string()))?,
        // Another writer's: a run is not stuck for it.
        state: state.and_then(|state| serde_json::from_str(&state).ok()).unwrap_or_default(),
        delivery_id,
        owner: by.zip(whom).map(|(kind, id)| Owner { kind, id }),
    })
}

/// A run's row.
pub async fn load<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<Run, RunsError> {
    const SQL: &str = select!("WHERE r.id = $1");
    let row: Option<Row> = query!(connection.into(), fetch_optional, SQL, SQL, id)?;
    row.map(run).ok_or(RunsError::NotFound { run: id })?
}

/// A run's row, which nobody else changes until the transaction ends. (On SQLite that is so in every transaction
/// that began with `BEGIN IMMEDIATE`.)
pub async fn lock<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<Run, RunsError> {
    let row: Option<Row> = query!(
        connection.into(),
        fetch_optional,
        select!("WHERE r.id = $1 FOR NO KEY UPDATE"),
        select!("WHERE r.id = $1"),
        id
    )?;
    row.map(run).ok_or(RunsError::NotFound { run: id })?
}

/// The child of the last step that a run has begun.
pub async fn last_child<'c>(
    connection: impl Into<Connection<'c>>,
    parent: RunId,
) -> Result<Option<Run>, RunsError> {
    const SQL: &str = select!(
        "WHERE r.parent_run_id = $1 ORDER BY r.parent_step_index DESC, r.created_at DESC, r.id DESC LIMIT 1"
    );
    let row: Option<Row> = query!(connection.into(), fetch_optional, SQL, SQL, parent)?;
    row.map(run).transpose()
}

/// The run at the top of a run's tree: itself, without a parent. As for the triggers that is the highest whose row is
/// there, and a parent whose row is gone for want of any.
pub async fn root<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<RunId, RunsError> {
    const SQL: &str = "WITH RECURSIVE above (id, depth) AS (
             SELECT parent_run_id, 1 FROM workflow_runs WHERE id = $1 AND parent_run_id IS NOT NULL
             UNION ALL
             SELECT p.id, above.depth + 1 FROM above JOIN workflow_runs r ON r.id = above.id
                 JOIN workflow_runs p ON p.id = r.parent_run_id
             WHERE above.depth < $2)
         SELECT id FROM above ORDER BY depth DESC LIMIT 1";
    let top: Option<(RunId,)> = query!(connection.into(), fetch_optional, SQL, SQL, id, MAX_ANCESTORS)?;
    Ok(top.map_or(id, |(id,)| id))
}

/// Whether a run of this workflow has succeeded on `target`.
pub async fn has_succeeded<'c>(
    connection: impl Into<Connection<'c>>,
    workflow_name: &str,
    target: &Target,
) -> Result<bool, RunsError> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM workflow_runs
         WHERE workflow_name = $1 AND target_owner = $2 AND target_repo = $3 AND target_number = $4
           AND status = 'succeeded')";
    let (found,): (bool,) = query!(
        connection.into(),
        fetch_one,
        SQL,
        SQL,
        workflow_name,
        &target.owner,
        &target.repo,
        target.number
    )?;
    Ok(found)
}

/// The status of a run.
pub async fn status<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<Status, RunsError> {
    const SQL: &str = "SELECT CAST(status AS text) FROM workflow_runs WHERE id = $1";
    let found: Option<(String,)> = query!(connection.into(), fetch_optional, SQL, SQL, id)?;
    let (status,) = found.ok_or(RunsError::NotFound { run: id })?;
    status
        .parse()
        .map_err(|cause: crate::run::UnknownStatus| RunsError::Corrupt { run: id, cause: cause.to_string() })
}
