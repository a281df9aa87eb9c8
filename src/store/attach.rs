//! Attaching to a `workflow_runs` table, and letting go of it.

use async_trait::async_trait;

use super::StoreError;

/// What to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The table, with its schema or found by the search path.
    pub table: String,
    /// A role that may call `runspan.dispatch_refused` (PostgreSQL).
    pub grant: Option<String>,
}

/// What [`Attach::attach`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The table, as the database names it.
    pub table: String,
    /// Runs in flight that were taken in.
    pub adopted: u64,
    /// Worth knowing, one line each.
    pub warnings: Vec<String>,
}

/// What [`Attach::detach`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The triggers of this table are gone.
    Removed {
        /// The table.
        table: String,
    },
    /// There was nothing to remove.
    Nothing,
}

/// Everything a table needs to have: the columns that the triggers read.
pub(super) const COLUMNS: [&str; 12] = [
    "id",
    "workflow_name",
    "target_type",
    "target_owner",
    "target_repo",
    "target_number",
    "parent_run_id",
    "status",
    "state",
    "delivery_id",
    "created_at",
    "updated_at",
];

/// Says which columns `table` lacks.
pub(super) fn lacks(table: &str, missing: &[&str]) -> String {
    let columns = if missing.len() == 1 { "column" } else { "columns" };
    format!("{table} lacks the {columns} {}: see docs/table.md", missing.join(", "))
}

/// A database that runspan can be attached to.
#[async_trait]
pub trait Attach: Send + Sync + 'static {
    /// The SQL that [`attach`](Self::attach) would run.
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError>;

    /// Installs schema and triggers and takes in the runs in flight. Idempotent.
    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError>;

    /// The table that has runspan's triggers, as the database names it now; none after a detach.
    async fn attached_table(&self) -> Result<Option<String>, StoreError>;

    /// Removes the triggers, and with `purge` everything else of runspan's.
    async fn detach(&self, purge: bool) -> Result<Detached, StoreError>;
}
