//! Leases, which show whether an owner is alive, and queries for runs to recover.

use std::time::Duration;

use sqlx::types::Json;

use super::{Connection, Owner, RunsError};
use crate::run::RunId;

/// Acquires or renews the lease `name` for `holder`. Returns `false` while another holder has it.
pub async fn hold_lease<'c>(
    connection: impl Into<Connection<'c>>,
    name: &str,
    holder: &str,
    term: Duration,
) -> Result<bool, RunsError> {
    let changed = execute!(
        connection.into(),
        "INSERT INTO workflow_leases VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
         WHERE workflow_leases.holder = excluded.holder OR workflow_leases.expires_at < clock_timestamp()",
        "INSERT INTO workflow_leases VALUES ($1, $2, julianday('now') + $3 / 86400.0)
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
         WHERE workflow_leases.holder = excluded.holder OR workflow_leases.expires_at < julianday('now')",
        name,
        holder,
        term.as_secs_f64(),
    )?;
    Ok(changed == 1)
}

/// Releases the lease `name` if `holder` has it.
pub async fn release_lease<'c>(
    connection: impl Into<Connection<'c>>,
    name: &str,
    holder: &str,
) -> Result<(), RunsError> {
    const SQL: &str = "DELETE FROM workflow_leases WHERE name = $1 AND holder = $2";
    execute!(connection.into(), SQL, SQL, name, holder)?;
    Ok(())
}

/// Whether the lease `name` is held.
pub async fn is_lease_held<'c>(connection: impl Into<Connection<'c>>, name: &str) -> Result<bool, RunsError> {
    let (held,): (bool,) = query!(
        connection.into(),
        fetch_one,
        "SELECT EXISTS (SELECT 1 FROM workflow_leases WHERE name = $1 AND expires_at > clock_timestamp())",
        "SELECT EXISTS (SELECT 1 FROM workflow_leases WHERE name = $1 AND expires_at > julianday('now'))",
        name
    )?;
    Ok(held)
}

/// Deletes leases that expired longer than `age` ago.
pub async fn delete_expired_leases<'c>(
    connection: impl Into<Connection<'c>>,
    age: Duration,
) -> Result<(), RunsError> {
    execute!(
        connection.into(),
        "DELETE FROM workflow_leases WHERE expires_at < clock_timestamp() - make_interval(secs => $1)",
        "DELETE FROM workflow_leases WHERE expires_at < julianday('now') - $1 / 86400.0",
        age.as_secs_f64(),
    )?;
    Ok(())
}

/// A run to recover. Not its whole row, which may be large or corrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanedRun {
    /// Its id.
    pub id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// Its owner, dead or alive.
    pub owner: Option<Owner>,
}

/// Selects the columns of a [`Row`] from runs with a status and further conditions. IN repeats the condition of the
/// index of runs in flight: SQLite uses a partial index only if the query contains its condition.
macro_rules! select {
    ($status:literal, $rest:literal) => {
        concat!(
            "SELECT r.id, r.workflow_name, r.owner_kind, r.owner_id FROM workflow_runs r
             WHERE r.status IN ('queued', 'running') AND r.status = '",
            $status,
            "' AND ",
            $rest
        )
    };
}

type Row = (RunId, String, Option<String>, Option<String>);

fn orphaned_run((id, workflow_name, by, whom): Row) -> OrphanedRun {
    OrphanedRun { id, workflow_name, owner: by.zip(whom).map(|(kind, id)| Owner { kind, id }) }
}

/// Up to `limit` running runs whose owner has this kind and no longer holds the lease with its id.
pub async fn orphans<'c>(
    connection: impl Into<Connection<'c>>,
    kind: &str,
    limit: u32,
) -> Result<Vec<OrphanedRun>, RunsError> {
    let rows: Vec<Row> = query!(
        connection.into(),
        fetch_all,
        select!(
            "running",
            "r.owner_kind = $1 AND NOT EXISTS (
                 SELECT 1 FROM workflow_leases l WHERE l.name = r.owner_id AND l.expires_at > clock_timestamp())
             LIMIT $2"
        ),
        select!(
            "running",
            "r.owner_kind = $1 AND NOT EXISTS (
                 SELECT 1 FROM workflow_leases l WHERE l.name = r.owner_id AND l.expires_at > julianday('now'))
             LIMIT $2"
        ),
        kind,
        i64::from(limit)
    )?;
    Ok(rows.into_iter().map(orphaned_run).collect())
}

/// Up to `limit` queued runs that were not updated for longer than `age`, oldest first.
pub async fn overdue<'c>(
    connection: impl Into<Connection<'c>>,
    age: Duration,
    limit: u32,
) -> Result<Vec<OrphanedRun>, RunsError> {
    let rows: Vec<Row> = query!(
        connection.into(),
        fetch_all,
        select!(
            "queued",
            "r.updated_at < clock_timestamp() - make_interval(secs => $1)
             ORDER BY r.updated_at LIMIT $2"
        ),
        select!(
            "queued",
            "julianday(r.updated_at) < julianday('now') - $1 / 86400.0
             ORDER BY r.updated_at LIMIT $2"
        ),
        age.as_secs_f64(),
        i64::from(limit)
    )?;
    Ok(rows.into_iter().map(orphaned_run).collect())
}

/// Up to `limit` running runs of these workflows whose owner has this kind and that have no child in flight.
pub async fn stalled<'c>(
    connection: impl Into<Connection<'c>>,
    kind: &str,
    workflows: &[&str],
    limit: u32,
) -> Result<Vec<OrphanedRun>, RunsError> {
    let rows: Vec<Row> = query!(
        connection.into(),
        fetch_all,
        select!(
            "running",
            "r.owner_kind = $1
               AND r.workflow_name IN (SELECT jsonb_array_elements_text($2)) AND NOT EXISTS (
                 SELECT 1 FROM workflow_runs c WHERE c.parent_run_id = r.id AND c.status IN ('queued', 'running'))
             LIMIT $3"
        ),
        select!(
            "running",
            "r.owner_kind = $1
               AND r.workflow_name IN (SELECT value FROM json_each($2)) AND NOT EXISTS (
                 SELECT 1 FROM workflow_runs c WHERE c.parent_run_id = r.id AND c.status IN ('queued', 'running'))
             LIMIT $3"
        ),
        kind,
        Json(workflows),
        i64::from(limit)
    )?;
    Ok(rows.into_iter().map(orphaned_run).collect())
}
