//! Leases: who is alive, and which runs nobody looks after.

use std::time::Duration;

use sqlx::types::Json;

use super::{Connection, Owner, RunsError};
use crate::run::RunId;

/// Takes or prolongs the lease `name` for `holder` by `term`; `false` while another holds it.
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

/// Gives the lease `name` back, if `holder` has it.
pub async fn release_lease<'c>(
    connection: impl Into<Connection<'c>>,
    name: &str,
    holder: &str,
) -> Result<(), RunsError> {
    const SQL: &str = "DELETE FROM workflow_leases WHERE name = $1 AND holder = $2";
    execute!(connection.into(), SQL, SQL, name, holder)?;
    Ok(())
}

/// Whether somebody holds the lease `name`.
pub async fn is_held<'c>(connection: impl Into<Connection<'c>>, name: &str) -> Result<bool, RunsError> {
    let (held,): (bool,) = query!(
        connection.into(),
        fetch_one,
        "SELECT EXISTS (SELECT 1 FROM workflow_leases WHERE name = $1 AND expires_at > clock_timestamp())",
        "SELECT EXISTS (SELECT 1 FROM workflow_leases WHERE name = $1 AND expires_at > julianday('now'))",
        name
    )?;
    Ok(held)
}

/// Removes leases that expired longer than `age` ago.
pub async fn forget_leases<'c>(
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

/// A run that somebody should look after. Not its whole row, which may be large, or not to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattended {
    /// Its id.
    pub id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// Whose it is, or was.
    pub owner: Option<Owner>,
}

/// The columns of a [`Row`], of runs in this status and with what else is asked. IN repeats what the index of runs in
/// flight says: SQLite uses that only where its words stand.
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

fn unattended((id, workflow_name, by, whom): Row) -> Unattended {
    Unattended { id, workflow_name, owner: by.zip(whom).map(|(kind, id)| Owner { kind, id }) }
}

/// Running runs, at most `limit`, whose owner is of `kind` and holds no lease on its own id any more.
pub async fn orphans<'c>(
    connection: impl Into<Connection<'c>>,
    kind: &str,
    limit: u32,
) -> Result<Vec<Unattended>, RunsError> {
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
    Ok(rows.into_iter().map(unattended).collect())
}

/// Queued runs, at most `limit`, that nothing has touched for longer than `age`; the oldest first.
pub async fn overdue<'c>(
    connection: impl Into<Connection<'c>>,
    age: Duration,
    limit: u32,
) -> Result<Vec<Unattended>, RunsError> {
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
    Ok(rows.into_iter().map(unattended).collect())
}

/// Running runs of these workflows, at most `limit`, whose owner is of `kind`, and of whose children none is in
/// flight.
pub async fn stalled<'c>(
    connection: impl Into<Connection<'c>>,
    kind: &str,
    workflows: &[&str],
    limit: u32,
) -> Result<Vec<Unattended>, RunsError> {
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
    Ok(rows.into_iter().map(unattended).collect())
}
