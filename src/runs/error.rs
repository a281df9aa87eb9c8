//! Errors of the functions that change runs.

use crate::run::{RunId, Status};

/// Why a run was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// A run of the same workflow and target is in flight.
    #[error("a run of this workflow is already in flight for this target{}", .run.map(|run| format!(": {run}")).unwrap_or_default())]
    InFlight {
        /// That run; `None` if it has ended since.
        run: Option<RunId>,
    },
    /// The run does not exist.
    #[error("run {run} does not exist")]
    NotFound {
        /// The unknown id.
        run: RunId,
    },
    /// The transition is not allowed.
    #[error("run {run} is {from} and cannot become {to}")]
    IllegalTransition {
        /// The run.
        run: RunId,
        /// Its status.
        from: Status,
        /// The rejected status.
        to: Status,
    },
    /// The row has an invalid value.
    #[error("run {run} is corrupt: {cause}")]
    Corrupt {
        /// The run.
        run: RunId,
        /// Which value, and what is wrong with it.
        cause: String,
    },
    /// The table has newer migrations than this program.
    #[error("workflow_runs has migration {found}, this program knows {known}: install a newer version")]
    Newer {
        /// The last applied migration.
        found: i64,
        /// The last migration that this program knows.
        known: i64,
    },
    /// The database returned an error or is unreachable.
    #[error("{}", describe(.0))]
    Database(#[from] sqlx::Error),
}

/// One clear line, without sqlx's prefix "error returned from database: …".
pub(crate) fn describe(error: &sqlx::Error) -> String {
    match error {
        // Duplicate, or unknown, prepared statement.
        sqlx::Error::Database(error) if matches!(error.code().as_deref(), Some("42P05" | "26000")) => {
            format!(
                "the database says: {}; is there a pooler of transactions? Then the database URL needs \
             ?statement-cache-capacity=0",
                error.message()
            )
        }
        // Read-only transaction.
        sqlx::Error::Database(error) if error.code().as_deref() == Some("25006") => format!(
            "the database accepts no writes ({}): the URL has to lead to the primary, and default_transaction_read_only \
             has to be off",
            error.message()
        ),
        sqlx::Error::Database(error) => format!("the database says: {}", error.message()),
        sqlx::Error::Io(error) => format!("cannot reach the database: {error}"),
        sqlx::Error::PoolTimedOut => {
            "cannot reach the database: no connection in time; is it overloaded, or does a firewall drop packets?"
                .to_owned()
        }
        other => format!("the database failed: {other}"),
    }
}
