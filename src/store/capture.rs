//! Whether the transitions of the table reach the journal.
//!
//! The triggers are on a table that belongs to the application. It may disable them, put another table in its place,
//! or hand it to another owner, and none of that is an error for anyone: so the relay has to look.

/// Why transitions of the table do not reach the journal, or cannot be compared with it. One line each: what is wrong
/// and which command fixes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureProblem {
    /// There are no triggers, and none are expected: `runspan detach` was run.
    #[error("runspan is detached: no transition is journalled; run `runspan attach`")]
    Detached,
    /// The table is gone, and with it the triggers.
    #[error(
        "the table {table} is gone: no transition is journalled; run `runspan attach --table '{table}'` once it is back, or name another with --table"
    )]
    TableMissing {
        /// The name it was attached under.
        table: String,
    },
    /// The table has lost triggers, or it is a new one that never had them.
    #[error(
        "the table {table} has lost runspan's triggers ({triggers}): its transitions are not journalled; run `runspan attach --table '{table}'`"
    )]
    TriggersMissing {
        /// The table.
        table: String,
        /// Which of them, separated by commas.
        triggers: String,
    },
    /// Somebody has disabled triggers (`ALTER TABLE … DISABLE TRIGGER`).
    #[error(
        "runspan's triggers on {table} are disabled ({triggers}): its transitions are not journalled; run `runspan attach --table '{table}'`, which enables them"
    )]
    TriggersDisabled {
        /// The table.
        table: String,
        /// Which of them, separated by commas.
        triggers: String,
    },
    /// Another table has taken the name (an online schema change), and the triggers are on the old one.
    #[error(
        "{table} is another table now, and runspan's triggers are on {attached}: the transitions of {table} are not journalled; run `runspan attach --table '{table}'`, which moves the triggers"
    )]
    TableReplaced {
        /// The name that was attached to.
        table: String,
        /// What the table with the triggers is called now.
        attached: String,
    },
    /// The table has another owner than the schema `runspan`, as which the triggers run.
    #[error(
        "{table} belongs to {owner} now, and the schema runspan to {schema_owner}, as whom the triggers read it: child runs lose their root, and nothing can be reconciled; run ALTER TABLE {table} OWNER TO {schema_owner}, or `runspan detach --purge` and `runspan attach --table '{table}'`"
    )]
    OwnerChanged {
        /// The table.
        table: String,
        /// Its owner.
        owner: String,
        /// The owner of the schema `runspan`.
        schema_owner: String,
    },
    /// The trigger's function is not the one that was installed, or runs as someone else (PostgreSQL).
    #[error(
        "the function runspan.journal_run() has been changed: transitions of {table} are not journalled; run `runspan attach --table '{table}'`, which replaces it, as {schema_owner} or a superuser"
    )]
    FunctionChanged {
        /// The table.
        table: String,
        /// The owner of the schema `runspan`.
        schema_owner: String,
    },
    /// The role as which the trigger runs may not write the journal, or the journal is gone (PostgreSQL).
    #[error(
        "{schema_owner}, as whom the trigger of {table} runs, cannot write runspan.journal: its transitions are not journalled; GRANT ALL ON SCHEMA runspan and on ALL TABLES and ALL SEQUENCES IN SCHEMA runspan to {schema_owner}, or `runspan detach --purge` and `runspan attach --table '{table}'`"
    )]
    JournalClosed {
        /// The table.
        table: String,
        /// The owner of the schema `runspan`.
        schema_owner: String,
    },
    /// Sessions whose triggers do not fire (PostgreSQL).
    #[error(
        "session_replication_role is replica by default for {whom}: no trigger fires in such sessions, so their transitions are not journalled; run {reset}"
    )]
    TriggersAsleep {
        /// The roles or the database, in words.
        whom: String,
        /// The statement that undoes it.
        reset: String,
    },
    /// The table lacks columns that identify a run (PostgreSQL).
    #[error(
        "{table} no longer has the columns {columns}: its transitions are not journalled; give them their names back (ALTER TABLE {table} RENAME COLUMN …)"
    )]
    ColumnsMissing {
        /// The table.
        table: String,
        /// The columns, separated by commas.
        columns: String,
    },
    /// Row security hides rows from the role that reconciles.
    #[error(
        "{table} forces row security on its owner {owner}: nothing can be reconciled; run ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, or ALTER ROLE {owner} BYPASSRLS"
    )]
    RowSecurity {
        /// The table.
        table: String,
        /// Its owner.
        owner: String,
    },
}

impl CaptureProblem {
    /// Whether transitions are lost while it lasts. Otherwise the triggers write them, and only what they miss cannot be
    /// recovered from the table.
    pub const fn loses_transitions(&self) -> bool {
        match self {
            Self::Detached
            | Self::TableMissing { .. }
            | Self::TriggersMissing { .. }
            | Self::TriggersDisabled { .. }
            | Self::TableReplaced { .. }
            | Self::FunctionChanged { .. }
            | Self::JournalClosed { .. }
            | Self::TriggersAsleep { .. }
            | Self::ColumnsMissing { .. } => true,
            Self::OwnerChanged { .. } | Self::RowSecurity { .. } => false,
        }
    }
}
