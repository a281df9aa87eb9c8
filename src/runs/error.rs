//! What can go wrong with a run's row.

use crate::run::{RunId, Status};

/// Why a run was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// A run of the same workflow and target is in flight.
    #[error("a run of this workflow is in flight for this target{}", .run.map(|run| format!(": {run}")).unwrap_or_default())]
    InFlight {
        /// That run; `None` if it ended meanwhile.
        run: Option<RunId>,
    },
    /// There is no such run.
    #[error("there is no run {run}")]
    NotFound {
        /// The id that no row has.
        run: RunId,
    },
    /// The run may not go from its state to that one.
    #[error("run {run} is {from}, and cannot become {to}")]
    IllegalTransition {
        /// The run.
        run: RunId,
        /// Its state.
        from: Status,
        /// The state it should have taken.
        to: Status,
    },
    /// The row holds what it cannot.
    #[error("run {run} is corrupt: {cause}")]
    Corrupt {
        /// The run.
        run: RunId,
        /// How so.
        cause: String,
    },
    /// The table has migrations that this program does not know.
    #[error("workflow_runs has migration {found}, this program knows {known}: install a newer version")]
    Newer {
        /// The last one that is applied.
        found: i64,
        /// The last one that is known.
        known: i64,
    },
    /// The database refused, or is away.
    #[error("{}", describe(.0))]
    Database(#[from] sqlx::Error),
}

/// One clear line. sqlx's own says "error returned from database: …" before all else.
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
        sqlx::Error::Database(error) => format!("the database says: {}", error.message()),
        sqlx::Error::Io(error) => format!("cannot reach the database: {error}"),
        // sqlx keeps trying where nothing listens, and forgets why.
        sqlx::Error::PoolTimedOut => {
            "cannot reach the database: no connection in time; is it running, are host and port right?"
                .to_owned()
        }
        other => format!("the database failed: {other}"),
    }
}
