//! Queries for rows.

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
    /// The issue or pull request.
    pub target: Target,
    /// The run that spawned it, if any.
    pub parent: Option<Parent>,
    /// Its status.
    pub status: Status,
    /// Its state; empty if the column is not a JSON object.
    pub state: Map<String, Value>,
    /// The delivery that caused it, if any.
    pub delivery_id: Option<String>,
    /// Its owner.
    pub owner: Option<Owner>,
}

impl Run {
    /// Why it failed or is incomplete, if it is.
    pub fn reason(&self) -> Option<&str> {
        let key = match self.status {
            Status::Failed => FAILED_REASON,
            Status::Incomplete => INCOMPLETE_REASON,
            Status::Queued | Status::Running | Status::Succeeded | Status::Cancelled => return None,
        };
        self.state.get(key)?.as_str()
    }
}

/// Selects the columns of a [`Row`]. Status and kind may be enums of the application; the state is read as text, as not
/// every value that the database accepts as JSON can be parsed.
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
        // Written by another program: it must not block the run.
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

/// A run's row, locked until the transaction ends. (On SQLite, any `BEGIN IMMEDIATE` transaction holds that lock.)
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

/// The child of the last step that a run has started.
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

/// The root of a run's tree, as for the triggers: the run itself if it has no parent; a parent whose row is gone; of a
/// cycle the smallest id.
pub async fn root<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<RunId, RunsError> {
    // A walk that does not end goes round a cycle, and its second half does nothing else.
    const SQL: &str = "WITH RECURSIVE above (id, parent, depth) AS (
             SELECT id, parent_run_id, 0 FROM workflow_runs WHERE id = $1
             UNION ALL
             SELECT r.id, r.parent_run_id, above.depth + 1 FROM above JOIN workflow_runs r ON r.id = above.parent
             WHERE above.depth < $2)
         SELECT CASE WHEN last.depth < $2 AND parent IS NOT NULL THEN parent ELSE id END
         FROM above CROSS JOIN (SELECT max(depth) AS depth FROM above) AS last
         WHERE above.depth = last.depth OR last.depth = $2 AND above.depth > $2 / 2
         ORDER BY id LIMIT 1";
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
