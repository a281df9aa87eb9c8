//! The `workflow_runs` table: its migrations, and the functions that change it.
//!
//! Every function uses the caller's connection, so that a run changes in the same transaction as the application's own
//! data. None of them logs: the triggers journal each transition, whichever program makes it.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool, id: runspan::run::RunId) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! runspan::runs::mark_running(&mut *tx, id).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```

#[macro_use]
mod connection;
mod error;
mod lease;
mod migrate;
mod refusal;
mod row;

use serde_json::{Map, Value};
use sqlx::types::Json;

pub use self::connection::Connection;
pub use self::error::RunsError;
#[cfg(feature = "relay")]
pub(crate) use self::error::describe;
pub use self::lease::{
    OrphanedRun, delete_expired_leases, hold_lease, is_lease_held, orphans, overdue, release_lease, stalled,
};
pub use self::migrate::migrate;
pub use self::refusal::{Refusal, dispatch_refused};
pub use self::row::{Run, has_succeeded, last_child, load, lock, root, status};
use crate::run::{RunId, Status, Target};

/// The reason's key in the state of a failed run.
const FAILED_REASON: &str = "failedReason";
/// The reason's key in the state of an incomplete run.
const INCOMPLETE_REASON: &str = "incompleteReason";

/// A run to insert as queued.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// The workflow's name.
    pub workflow_name: String,
    /// The issue or pull request.
    pub target: Target,
    /// The run that spawns it, if any.
    pub parent: Option<Parent>,
    /// Its initial state.
    pub state: Map<String, Value>,
    /// The delivery that caused it, if any.
    pub delivery_id: Option<String>,
    /// The comment that shows its progress.
    pub tracking_comment_id: Option<i64>,
    /// Its owner.
    pub owner: Option<Owner>,
}

impl NewRun {
    /// A run of `workflow_name` on `target`, with all other fields empty.
    pub fn new(workflow_name: impl Into<String>, target: Target) -> Self {
        Self {
            workflow_name: workflow_name.into(),
            target,
            parent: None,
            state: Map::new(),
            delivery_id: None,
            tracking_comment_id: None,
            owner: None,
        }
    }
}

/// The parent of a run, and the step that spawned the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The parent run.
    pub run: RunId,
    /// The step's index, from 0.
    pub step_index: i32,
}

/// The owner of a run: the process that must make progress on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The kind of owner, such as `executor`.
    pub kind: String,
    /// The owner's id.
    pub id: String,
}

/// Inserts a run as queued.
///
/// Returns [`RunsError::InFlight`] if a run of the same workflow and target is in flight. The transaction stays usable,
/// so that the refusal can be recorded in it.
pub async fn insert_queued<'c>(
    connection: impl Into<Connection<'c>>,
    run: &NewRun,
) -> Result<RunId, RunsError> {
    const INSERT: &str = "INSERT INTO workflow_runs (
             id, workflow_name, target_type, target_owner, target_repo, target_number, parent_run_id,
             parent_step_index, state, tracking_comment_id, delivery_id, owner_kind, owner_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (workflow_name, target_owner, target_repo, target_number)
             WHERE status IN ('queued', 'running') DO NOTHING";
    const IN_FLIGHT: &str = "SELECT id FROM workflow_runs
         WHERE workflow_name = $1 AND target_owner = $2 AND target_repo = $3 AND target_number = $4
           AND status IN ('queued', 'running')";
    let mut connection = connection.into();
    let id = RunId::generate();
    let target = &run.target;
    let inserted = execute!(
        connection.reborrow(),
        INSERT,
        INSERT,
        id,
        &run.workflow_name,
        target.kind.as_str(),
        &target.owner,
        &target.repo,
        target.number,
        run.parent.map(|parent| parent.run),
        run.parent.map(|parent| parent.step_index),
        json(&run.state),
        run.tracking_comment_id,
        &run.delivery_id,
        run.owner.as_ref().map(|owner| &owner.kind),
        run.owner.as_ref().map(|owner| &owner.id),
    )?;
    if inserted == 1 {
        return Ok(id);
    }
    let inflight: Option<(RunId,)> = query!(
        connection,
        fetch_optional,
        IN_FLIGHT,
        IN_FLIGHT,
        &run.workflow_name,
        &target.owner,
        &target.repo,
        target.number
    )?;
    Err(RunsError::InFlight { run: inflight.map(|(id,)| id) })
}

/// Marks a queued run as running.
pub async fn mark_running<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Running, Map::new(), None).await
}

/// A queued run begins, and `owner` looks after it from now on.
pub async fn claim<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    owner: &Owner,
) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Running, Map::new(), Some(owner)).await
}

/// Marks a running run as succeeded.
pub async fn mark_succeeded<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Succeeded, Map::new(), None).await
}

/// Marks a queued or running run as failed, with its reason.
pub async fn mark_failed<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(FAILED_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Failed, patch, None).await
}

/// Marks a running run as incomplete (it ended cleanly, but work remains), with its reason.
pub async fn mark_incomplete<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(INCOMPLETE_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Incomplete, patch, None).await
}

/// Merges `patch` into a run's state; each key replaces the previous value as a whole. A state that is not an object
/// becomes one.
pub async fn merge_state<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    patch: &Map<String, Value>,
) -> Result<(), RunsError> {
    let changed = execute!(
        connection.into(),
        sqlx::AssertSqlSafe(format!("UPDATE workflow_runs SET state = {POSTGRES_MERGED} WHERE id = $1")),
        sqlx::AssertSqlSafe(format!("UPDATE workflow_runs SET state = {SQLITE_MERGED} WHERE id = $1")),
        id,
        json(patch),
    )?;
    if changed == 1 { Ok(()) } else { Err(RunsError::NotFound { run: id }) }
}

/// Makes `owner` the owner of a run that still has this status. Returns whether it had: otherwise it has a new owner.
pub async fn set_owner<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    status: Status,
    owner: &Owner,
) -> Result<bool, RunsError> {
    const SQL: &str = "UPDATE workflow_runs SET owner_kind = $3, owner_id = $4 WHERE id = $1 AND status = $2";
    let changed = execute!(connection.into(), SQL, SQL, id, status.as_str(), &owner.kind, &owner.id)?;
    Ok(changed == 1)
}

/// `$2` merged into the state, key by key.
const POSTGRES_MERGED: &str = "CASE jsonb_typeof(state) WHEN 'object' THEN state ELSE '{}' END || $2";

/// The same for SQLite, whose `json_patch` merges deeply and drops nulls. So it only removes the old values (the same
/// keys, all null), and the new ones are appended to the rest.
const SQLITE_MERGED: &str = "(
    SELECT CASE WHEN $2 = '{}' THEN kept WHEN kept = '{}' THEN $2
                ELSE substr(kept, 1, length(kept) - 1) || ',' || substr($2, 2) END
    FROM (SELECT json_patch(CASE WHEN json_valid(state) THEN CASE json_type(state) WHEN 'object' THEN state
                                 ELSE '{}' END ELSE '{}' END,
                            (SELECT json_group_object(key, NULL) FROM json_each($2))) AS kept))";

/// Changes a run's status to `to` if that transition is allowed, merges `patch` into its state, and sets its owner if one
/// is given, in one statement.
async fn transition(
    mut connection: Connection<'_>,
    id: RunId,
    to: Status,
    patch: Map<String, Value>,
    owner: Option<&Owner>,
) -> Result<(), RunsError> {
    let from: Vec<String> =
        Status::ALL.into_iter().filter(|from| from.may_become(to)).map(|from| format!("'{from}'")).collect();
    let update = |merged: &str| {
        sqlx::AssertSqlSafe(format!(
            "UPDATE workflow_runs SET status = $3, state = {merged},
                 owner_kind = coalesce($4, owner_kind), owner_id = coalesce($5, owner_id)
             WHERE id = $1 AND status IN ({})",
            from.join(", ")
        ))
    };
    // Retry once, in case the run changed between the update and the query for its status.
    for last in [false, true] {
        let changed = execute!(
            connection.reborrow(),
            update(POSTGRES_MERGED),
            update(SQLITE_MERGED),
            id,
            json(&patch),
            to.as_str(),
            owner.map(|owner| &owner.kind),
            owner.map(|owner| &owner.id),
        )?;
        if changed == 1 {
            return Ok(());
        }
        let is = status(connection.reborrow(), id).await?;
        if last || !is.may_become(to) {
            return Err(RunsError::IllegalTransition { run: id, from: is, to });
        }
    }
    unreachable!("the second attempt returns")
}

/// A state that both databases can store: PostgreSQL's jsonb rejects U+0000.
fn json(state: &Map<String, Value>) -> Json<Value> {
    let state = Value::Object(state.clone());
    Json(if state.to_string().contains("\\u0000") { without_nul(state) } else { state })
}

fn without_nul(value: Value) -> Value {
    let replaced = |text: String| text.replace('\0', "\u{fffd}");
    match value {
        Value::String(text) => Value::String(replaced(text)),
        Value::Array(values) => values.into_iter().map(without_nul).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (replaced(key), without_nul(value))).collect()
        }
        other => other,
    }
}
