//! Why a store failed, and which errors of a database pass by themselves.
//!
//! SQLSTATEs and SQLite's result codes are classified here and nowhere else.

use std::cmp::Ordering;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::sqlite::SqliteError;

use super::refused::{NOT_ATTACHED, Refused};
use super::{SCHEMA_VERSION, connect_error};

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another relay holds the lease. Nothing was changed.
    #[error("another relay has taken the lease")]
    LeaseLost,
    /// Entries that were read are gone: read again.
    #[error(
        "the journal changed under the relay: of the entries that were read ({read}), {deleted} were still there"
    )]
    JournalChanged {
        /// How many entries the batch held.
        read: usize,
        /// How many of them were still there.
        deleted: usize,
    },
    /// runspan is not installed in this database.
    #[error("{NOT_ATTACHED}")]
    NotAttached,
    /// A newer runspan attached this database.
    #[error(
        "the runspan schema has version {found}, this program knows {SCHEMA_VERSION}: install a newer runspan"
    )]
    SchemaNewer {
        /// The version in the database.
        found: i32,
    },
    /// An older runspan attached this database.
    #[error(
        "the runspan schema has version {found}, this program needs {SCHEMA_VERSION}: run `runspan attach --database-url …` again, which keeps what is there"
    )]
    SchemaOlder {
        /// The version in the database.
        found: i32,
    },
    /// This database is a copy of one that is there.
    #[error(
        "this is a copy of {original}, whose runs it would report once more: run `runspan new-identity`, or relay from the original"
    )]
    Copied {
        /// The original.
        original: String,
    },
    /// The table, or what is around it, does not allow what was asked.
    #[error("{0}")]
    Unfit(String),
    /// The role lacks rights: the statements that grant them.
    #[error("{0}")]
    RightsMissing(String),
    /// A stored value cannot be parsed.
    #[error("{what} is corrupt: {cause}")]
    Corrupt {
        /// Which thing.
        what: String,
        /// How so.
        cause: String,
    },
    /// What is stored was written by a newer runspan.
    #[error("{what} was written by a newer runspan ({cause}): standing by; install that version")]
    Newer {
        /// Which thing.
        what: String,
        /// What is not known here.
        cause: String,
    },
    /// The database refused a statement or cannot be reached.
    #[error("{}", connect_error::describe(.0))]
    Database(#[from] sqlx::Error),
}

impl StoreError {
    /// A database that did not answer in time.
    pub(crate) fn timed_out() -> Self {
        sqlx::Error::PoolTimedOut.into()
    }

    /// The database's message, if it refused a statement. A connection that it refused or ended (`FATAL`) is not meant:
    /// that shows nothing about the statement.
    pub fn refusal(&self) -> Option<&str> {
        let Self::Database(sqlx::Error::Database(error)) = self else { return None };
        let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
        let is_of_the_connection = matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic));
        (!is_of_the_connection).then(|| error.message())
    }

    /// PostgreSQL: whether the role may not connect, or may not do what was asked.
    pub(crate) fn is_access_denied(&self) -> bool {
        let Self::Database(error) = self else { return matches!(self, Self::RightsMissing(_)) };
        // Class 28: invalid authorization; 3D000: no such database; 42501: insufficient privilege.
        let code = error.as_database_error().and_then(DatabaseError::code);
        code.is_some_and(|code| code.starts_with("28") || matches!(code.as_ref(), "3D000" | "42501"))
    }

    /// PostgreSQL: whether a statement failed for want of a right.
    pub(super) fn is_right_missing(&self) -> bool {
        matches!(self, Self::Database(error) if is_denied(error)) && self.refusal().is_some()
    }

    /// Whether a later attempt may succeed without anyone's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotAttached
            | Self::SchemaNewer { .. }
            | Self::SchemaOlder { .. }
            | Self::Copied { .. }
            | Self::Unfit(_)
            | Self::RightsMissing(_)
            | Self::Corrupt { .. } => false,
            Self::Database(sqlx::Error::Configuration(error)) => !error.is::<Refused>(),
            // READONLY, CORRUPT, NOTADB.
            Self::Database(sqlx::Error::Database(error)) => {
                !self.is_access_denied() && !matches!(sqlite_kind(error.as_ref()), Some(8 | 11 | 26))
            }
            Self::LeaseLost | Self::JournalChanged { .. } | Self::Newer { .. } | Self::Database(_) => true,
        }
    }
}

/// Checks that a schema of version `found` is the one that this program knows.
pub(super) fn check_schema_version(found: i32) -> Result<(), StoreError> {
    match found.cmp(&SCHEMA_VERSION) {
        Ordering::Less if found == 0 => Err(StoreError::NotAttached),
        Ordering::Less => Err(StoreError::SchemaOlder { found }),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(StoreError::SchemaNewer { found }),
    }
}

/// SQLite: another connection holds a lock (BUSY, LOCKED and their extended codes, such as `BUSY_SNAPSHOT`).
pub(super) fn is_busy(error: &dyn DatabaseError) -> bool {
    matches!(sqlite_kind(error), Some(5 | 6))
}

/// The kind of an error of SQLite's: the low byte of its extended code.
fn sqlite_kind(error: &dyn DatabaseError) -> Option<i32> {
    error.try_downcast_ref::<SqliteError>()?;
    error.code()?.parse().map(|code: i32| code & 0xff).ok()
}

/// PostgreSQL: a schema or a relation is not there (`undefined_table`, `invalid_schema_name`).
pub(super) fn is_missing(error: &sqlx::Error) -> bool {
    has_code(error, &["42P01", "3F000"])
}

/// PostgreSQL: another session holds a lock (`lock_not_available`).
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03"])
}

/// PostgreSQL: the server starts or stops (`cannot_connect_now`).
pub(super) fn is_starting(error: &sqlx::Error) -> bool {
    has_code(error, &["57P03"])
}

/// PostgreSQL: a right is missing (`insufficient_privilege`).
pub(super) fn is_denied(error: &sqlx::Error) -> bool {
    has_code(error, &["42501"])
}

/// PostgreSQL: the server or the session accepts no writes (`read_only_sql_transaction`).
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    has_code(error, &["25006"])
}

/// PostgreSQL: a sequence has come to its end (`sequence_generator_limit_exceeded`): the journal is full.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    has_code(error, &["2200H"])
}

/// PostgreSQL: a function is not there for this role or on this server (`insufficient_privilege`, `feature_not_supported`,
/// `undefined_function`).
pub(super) fn is_unavailable(error: &sqlx::Error) -> bool {
    has_code(error, &["42501", "0A000", "42883"])
}

/// PostgreSQL: a text has no form in the client's encoding (`untranslatable_character`, `character_not_in_repertoire`).
pub(super) fn is_untranslatable(error: &sqlx::Error) -> bool {
    has_code(error, &["22P05", "22021"])
}

/// PostgreSQL: a text is not a valid name (`invalid_name`, `syntax_error`, `feature_not_supported`).
pub(super) fn is_not_a_name(error: &sqlx::Error) -> bool {
    has_code(error, &["42602", "42601", "0A000"])
}

/// Whether PostgreSQL's error has one of these SQLSTATEs.
fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| codes.contains(&code.as_ref()))
}

#[cfg(test)]
impl StoreError {
    pub(crate) fn denied() -> Self {
        Self::Database(sqlx::Error::Database(Box::new(tests::Denied)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_may_not_log_in_is_denied_access() {
        assert!(StoreError::denied().is_access_denied());
        assert!(!StoreError::denied().is_transient());
        assert!(!StoreError::NotAttached.is_access_denied());
    }

    /// PostgreSQL's answer to a role without LOGIN.
    #[derive(Debug, thiserror::Error)]
    #[error("role is not permitted to log in")]
    pub(super) struct Denied;

    impl DatabaseError for Denied {
        fn message(&self) -> &'static str {
            "role is not permitted to log in"
        }

        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some("28000".into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }
}
