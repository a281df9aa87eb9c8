//! Attaching to a table of runs, detaching from it, and what that takes and loses.

use async_trait::async_trait;

use super::StoreError;

/// What to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The table, with its schema or found by the search path.
    pub table: String,
    /// A role that may call `runspan.dispatch_refused` (PostgreSQL).
    pub grant: Option<String>,
    /// Whether to create runspan's tables although a publication `FOR ALL TABLES` would publish them (PostgreSQL).
    pub published: bool,
    /// The most entries of the journal, beyond which the triggers skip transitions; `None` keeps what is there, at first
    /// 10,000,000.
    pub max_journal_entries: Option<u32>,
}

impl Plan {
    /// The table alone.
    pub fn of(table: &str) -> Self {
        Self { table: table.to_owned(), grant: None, published: false, max_journal_entries: None }
    }
}

/// What [`Admin::attach`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The table, as the database names it.
    pub table: String,
    /// Runs in flight that were adopted; `None` where that is left to the relay.
    pub adopted: Option<u64>,
    /// What was changed on an attached table, and what is worth knowing: one line each.
    pub warnings: Vec<String>,
}

/// What [`Admin::detach`] did.
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

/// What a purge would remove for good, and who would notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeLoss {
    /// Entries that are not projected.
    pub entries: i64,
    /// Requests that wait to be sent.
    pub waiting: i64,
    /// Requests that no receiver accepts.
    pub dead: i64,
    /// Entries that could not be parsed.
    pub set_aside: i64,
    /// Runs in flight, whose spans would never be sent.
    pub open_runs: i64,
    /// Roles that lose their rights on runspan's schema (PostgreSQL).
    pub roles: Vec<String>,
    /// Whether calls of `dispatch_refused` fail afterwards: the roles that may make them, or `None` where that is
    /// anyone.
    pub callers: Option<Vec<String>>,
}

/// The error where runspan is attached to `other`, with the way to `table`.
pub(super) fn attached_elsewhere(other: &str, table: &str) -> StoreError {
    StoreError::Unfit(format!(
        "runspan is attached to {other} in this database: run `runspan detach`, and then `runspan attach --table {}`",
        shell_quoted(table)
    ))
}

/// A name as a word of a shell.
pub(super) fn shell_quoted(name: &str) -> String {
    format!("'{}'", name.replace('\'', "'\\''"))
}

/// The error for columns that `table` does not have.
pub(super) fn missing_columns(table: &str, missing: &[&str]) -> String {
    let columns = if missing.len() == 1 { "column" } else { "columns" };
    format!("{table} lacks the {columns} {}: see docs/table.md", missing.join(", "))
}

/// Installs and removes runspan.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// The SQL that [`attach`](Self::attach) would run.
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError>;

    /// Installs schema and triggers and adopts the runs in flight. Idempotent.
    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError>;

    /// The SQL that gives `role` what a relay needs (PostgreSQL).
    async fn relay_grants(&self, role: &str) -> Result<String, StoreError> {
        let _ = role;
        Err(StoreError::Unfit(
            "SQLite has no roles: omit --relay-role; every process that can write the file can relay"
                .to_owned(),
        ))
    }

    /// Gives `role` what a relay needs.
    async fn grant_relay(&self, role: &str) -> Result<(), StoreError> {
        self.relay_grants(role).await.map(|_| ())
    }

    /// Replaces an error that a missing right may have caused by one that names the statements which grant it.
    async fn explain_denial(&self, error: StoreError) -> StoreError {
        error
    }

    /// What [`detach`](Self::detach) with `purge` would remove for good; `None` if nothing is installed.
    async fn purge_loss(&self) -> Result<Option<PurgeLoss>, StoreError>;

    /// Removes the triggers, and with `purge` everything else of runspan's.
    async fn detach(&self, purge: bool) -> Result<Detached, StoreError>;
}
