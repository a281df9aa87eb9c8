//! The `workflow_runs` table: its migrations, and the functions that change it.
//!
//! Every function works on the caller's connection, so that a run changes in the same transaction as whatever
//! belongs to it, and none of them logs: what happened is told by the journal's triggers, whoever the writer is.
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
    Unattended, forget_leases, hold_lease, is_held, orphans, overdue, release_lease, stalled,
};
pub use self::migrate::migrate;
pub use self::refusal::{Refusal, dispatch_refused};
pub use self::row::{Run, has_succeeded, last_child, load, lock, root, status};
use crate::run::{RunId, Status, Target};

/// The reason's key in the state of a failed run.
const FAILED_REASON: &str = "failedReason";
/// The reason's key in the state of an incomplete run.
const INCOMPLETE_REASON: &str = "incompleteReason";

/// A run to be queued.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// The workflow's name.
    pub workflow_name: String,
    /// What it works on.
    pub target: Target,
    /// The run that spawns it, if one does.
    pub parent: Option<Parent>,
    /// Its state to begin with.
    pub state: Map<String, Value>,
    /// The delivery that caused it, if one did.
    pub delivery_id: Option<String>,
    /// The comment that shows its progress.
    pub tracking_comment_id: Option<i64>,
    /// Who looks after it.
    pub owner: Option<Owner>,
}

impl NewRun {
    /// A run of `workflow_name` on `target`, and nothing else.
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

/// The run that spawns another, and at which of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The run.
    pub run: RunId,
    /// Its step, from 0.
    pub step_index: i32,
}

/// Who looks after a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What kind of owner, as `executor`.
    pub kind: String,
    /// Which one.
    pub id: String,
}

/// Inserts a run as queued.
///
/// One that is in flight for the same workflow and target is [`RunsError::InFlight`]; a transaction goes on
/// after that, so that the refusal can be recorded in it.
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

/// A queued run begins.
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

/// A running run ended well.
pub async fn mark_succeeded<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Succeeded, Map::new(), None).await
}

/// A run failed, for `reason`: while it ran, or before it could begin.
pub async fn mark_failed<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(FAILED_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Failed, patch, None).await
}

/// A running run ended cleanly, but work remains, for `reason`.
pub async fn mark_incomplete<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(INCOMPLETE_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Incomplete, patch, None).await
}

/// Puts `patch` into a run's state: each of its keys takes the place of the one that was there, whole. A state
/// that is no object becomes one.
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

/// Gives a run to `owner`, if it is still `status`; whether it was. Otherwise it has an owner by now who counts on it.
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

/// `$2` put into the state, key by key.
const POSTGRES_MERGED: &str = "CASE jsonb_typeof(state) WHEN 'object' THEN state ELSE '{}' END || $2";

/// The same. SQLite's `json_patch` alone merges deeply and drops nulls, so it only takes the old values out (the
/// same keys, all null), and the new ones are put behind what is left.
const SQLITE_MERGED: &str = "(
    SELECT CASE WHEN $2 = '{}' THEN kept WHEN kept = '{}' THEN $2
                ELSE substr(kept, 1, length(kept) - 1) || ',' || substr($2, 2) END
    FROM (SELECT json_patch(CASE WHEN json_valid(state) THEN CASE json_type(state) WHEN 'object' THEN state
                                 ELSE '{}' END ELSE '{}' END,
                            (SELECT json_group_object(key, NULL) FROM json_each($2))) AS kept))";

/// Moves a run to `to`, if it may go there, puts `patch` into its state, and gives it to `owner` if there is one,
/// in one statement.
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
    // Once more if the run has moved between the statement and the question why it changed nothing.
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
    unreachable!("the last round returns")
}

/// A state as both databases can hold it: PostgreSQL's jsonb has no U+0000.
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
