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

mod connection;
mod error;
mod migrate;

use serde_json::{Map, Value};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

pub use self::connection::Connection;
pub use self::error::RunsError;
pub use self::migrate::migrate;
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
    let id = RunId::generate();
    match connection.into() {
        Connection::Postgres(connection) => insert_postgres(connection, id, run).await,
        Connection::Sqlite(connection) => insert_sqlite(connection, id, run).await,
    }
}

async fn insert_postgres(connection: &mut PgConnection, id: RunId, run: &NewRun) -> Result<RunId, RunsError> {
    let inserted = sqlx::query(
        "INSERT INTO workflow_runs (
             id, workflow_name, target_type, target_owner, target_repo, target_number, parent_run_id,
             parent_step_index, state, tracking_comment_id, delivery_id, owner_kind, owner_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10, $11, $12, $13)
         ON CONFLICT (workflow_name, target_owner, target_repo, target_number)
             WHERE status IN ('queued', 'running') DO NOTHING",
    )
    .bind(id.uuid())
    .bind(&run.workflow_name)
    .bind(run.target.kind.as_str())
    .bind(&run.target.owner)
    .bind(&run.target.repo)
    .bind(run.target.number)
    .bind(run.parent.map(|parent| parent.run.uuid()))
    .bind(run.parent.map(|parent| parent.step_index))
    .bind(json(&run.state))
    .bind(run.tracking_comment_id)
    .bind(&run.delivery_id)
    .bind(run.owner.as_ref().map(|owner| &owner.kind))
    .bind(run.owner.as_ref().map(|owner| &owner.id))
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(id);
    }
    let inflight: Option<uuid::Uuid> = sqlx::query_scalar(
        "SELECT id FROM workflow_runs
         WHERE workflow_name = $1 AND target_owner = $2 AND target_repo = $3 AND target_number = $4
           AND status IN ('queued', 'running')",
    )
    .bind(&run.workflow_name)
    .bind(&run.target.owner)
    .bind(&run.target.repo)
    .bind(run.target.number)
    .fetch_optional(connection)
    .await?;
    Err(RunsError::InFlight { run: inflight.map(RunId::from) })
}

async fn insert_sqlite(
    connection: &mut SqliteConnection,
    id: RunId,
    run: &NewRun,
) -> Result<RunId, RunsError> {
    let inserted = sqlx::query(
        "INSERT INTO workflow_runs (
             id, workflow_name, target_type, target_owner, target_repo, target_number, parent_run_id,
             parent_step_index, state, tracking_comment_id, delivery_id, owner_kind, owner_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (workflow_name, target_owner, target_repo, target_number)
             WHERE status IN ('queued', 'running') DO NOTHING",
    )
    .bind(id.to_string())
    .bind(&run.workflow_name)
    .bind(run.target.kind.as_str())
    .bind(&run.target.owner)
    .bind(&run.target.repo)
    .bind(run.target.number)
    .bind(run.parent.map(|parent| parent.run.to_string()))
    .bind(run.parent.map(|parent| parent.step_index))
    .bind(json(&run.state))
    .bind(run.tracking_comment_id)
    .bind(&run.delivery_id)
    .bind(run.owner.as_ref().map(|owner| &owner.kind))
    .bind(run.owner.as_ref().map(|owner| &owner.id))
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(id);
    }
    let inflight: Option<String> = sqlx::query_scalar(
        "SELECT id FROM workflow_runs
         WHERE workflow_name = ?1 AND target_owner = ?2 AND target_repo = ?3 AND target_number = ?4
           AND status IN ('queued', 'running')",
    )
    .bind(&run.workflow_name)
    .bind(&run.target.owner)
    .bind(&run.target.repo)
    .bind(run.target.number)
    .fetch_optional(connection)
    .await?;
    Err(RunsError::InFlight { run: inflight.and_then(|id| id.parse().ok()) })
}

/// An executor begins a queued run.
pub async fn mark_running<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Running, Map::new()).await
}

/// A running run ended well.
pub async fn mark_succeeded<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<(), RunsError> {
    transition(connection.into(), id, Status::Succeeded, Map::new()).await
}

/// A run failed, for `reason`: while it ran, or before it could begin.
pub async fn mark_failed<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(FAILED_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Failed, patch).await
}

/// A running run ended cleanly, but work remains, for `reason`.
pub async fn mark_incomplete<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    reason: &str,
) -> Result<(), RunsError> {
    let patch = Map::from_iter([(INCOMPLETE_REASON.to_owned(), reason.into())]);
    transition(connection.into(), id, Status::Incomplete, patch).await
}

/// Puts `patch` into a run's state: each of its keys takes the place of the one that was there, whole. A state
/// that is no object becomes one.
pub async fn merge_state<'c>(
    connection: impl Into<Connection<'c>>,
    id: RunId,
    patch: &Map<String, Value>,
) -> Result<(), RunsError> {
    let changed = match connection.into() {
        Connection::Postgres(connection) => sqlx::query(
            "UPDATE workflow_runs
                 SET state = CASE jsonb_typeof(state) WHEN 'object' THEN state ELSE '{}' END || $2::jsonb
                 WHERE id = $1",
        )
        .bind(id.uuid())
        .bind(json(patch))
        .execute(connection)
        .await?
        .rows_affected(),
        Connection::Sqlite(connection) => {
            let sql = sqlx::AssertSqlSafe(format!("UPDATE workflow_runs SET state = {MERGED} WHERE id = ?1"));
            sqlx::query(sql)
                .bind(id.to_string())
                .bind(json(patch))
                .bind(without(patch))
                .execute(connection)
                .await?
                .rows_affected()
        }
    };
    if changed == 1 { Ok(()) } else { Err(RunsError::NotFound { run: id }) }
}

/// The status of a run.
pub async fn status<'c>(connection: impl Into<Connection<'c>>, id: RunId) -> Result<Status, RunsError> {
    let found: Option<String> = match connection.into() {
        Connection::Postgres(connection) => {
            sqlx::query("SELECT status::text FROM workflow_runs WHERE id = $1")
                .bind(id.uuid())
                .fetch_optional(connection)
                .await?
                .map(|row| row.try_get(0))
                .transpose()?
        }
        Connection::Sqlite(connection) => {
            sqlx::query("SELECT CAST(status AS TEXT) FROM workflow_runs WHERE id = ?1")
                .bind(id.to_string())
                .fetch_optional(connection)
                .await?
                .map(|row| row.try_get(0))
                .transpose()?
        }
    };
    let status = found.ok_or(RunsError::NotFound { run: id })?;
    status.parse().map_err(|cause| RunsError::Corrupt { run: id, cause })
}

/// `?2` put into the state, key by key. SQLite's `json_patch` alone merges deeply and drops nulls, so it only
/// takes the old values out (`?3`: the same keys, all null), and the new ones are put behind what is left.
const MERGED: &str = "(
    SELECT CASE WHEN ?2 = '{}' THEN kept WHEN kept = '{}' THEN ?2
                ELSE substr(kept, 1, length(kept) - 1) || ',' || substr(?2, 2) END
    FROM (SELECT json_patch(CASE WHEN json_valid(state) THEN CASE json_type(state) WHEN 'object' THEN state
                                 ELSE '{}' END ELSE '{}' END, ?3) AS kept))";

/// Moves a run to `to`, if it may go there, and puts `patch` into its state, in one statement.
async fn transition(
    mut connection: Connection<'_>,
    id: RunId,
    to: Status,
    patch: Map<String, Value>,
) -> Result<(), RunsError> {
    let from = || Status::ALL.into_iter().filter(|from| from.may_become(to)).map(Status::as_str);
    // Once more if the run has moved between the statement and the question why it changed nothing.
    for last in [false, true] {
        let changed = match &mut connection {
            Connection::Postgres(connection) => {
                let sql = "UPDATE workflow_runs
                     SET status = $2,
                         state = CASE jsonb_typeof(state) WHEN 'object' THEN state ELSE '{}' END || $4::jsonb
                     WHERE id = $1 AND status = ANY($3)";
                sqlx::query(sql)
                    .bind(id.uuid())
                    .bind(to.as_str())
                    .bind(from().collect::<Vec<_>>())
                    .bind(json(&patch))
                    .execute(&mut **connection)
                    .await?
                    .rows_affected()
            }
            Connection::Sqlite(connection) => {
                let sql = format!(
                    "UPDATE workflow_runs SET status = ?4, state = {MERGED}
                     WHERE id = ?1 AND status IN (SELECT value FROM json_each(?5))"
                );
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(id.to_string())
                    .bind(json(&patch))
                    .bind(without(&patch))
                    .bind(to.as_str())
                    .bind(from().collect::<Value>().to_string())
                    .execute(&mut **connection)
                    .await?
                    .rows_affected()
            }
        };
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

/// A state as JSON text, as both databases can hold it: PostgreSQL's jsonb has no U+0000.
fn json(state: &Map<String, Value>) -> String {
    let text = Value::Object(state.clone()).to_string();
    if text.contains("\\u0000") { without_nul(Value::Object(state.clone())).to_string() } else { text }
}

/// `patch` with null for every value.
fn without(patch: &Map<String, Value>) -> String {
    json(&patch.keys().map(|key| (key.clone(), Value::Null)).collect())
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
