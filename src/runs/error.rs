//! What can go wrong with a run's row.

use std::io;

use rustls::{AlertDescription, CertificateError};

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
        sqlx::Error::Database(error) => format!("the database says: {}", error.message()),
        sqlx::Error::Io(error) => unreachable_because(error),
        // What sqlx says where the server answers that it has none; all else is about a file of the URL's.
        sqlx::Error::Tls(error) if error.to_string() == "server does not support TLS" => {
            "the database takes no TLS, which the URL's sslmode asks for: switch it on there (ssl = on), or write \
             sslmode=disable if nobody listens on the way"
                .to_owned()
        }
        sqlx::Error::Tls(error) | sqlx::Error::Configuration(error) => {
            format!("TLS to the database cannot be set up ({error}): check sslrootcert, sslcert and sslkey in the URL")
        }
        // sqlx keeps trying where nothing listens, and forgets why.
        sqlx::Error::PoolTimedOut => {
            "cannot reach the database: no connection in time; is it running, are host and port right?"
                .to_owned()
        }
        other => format!("the database failed: {other}"),
    }
}

fn unreachable_because(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!(
            "the database's certificate is for another host name ({error}): name the host in the URL as the \
             certificate does, or write sslmode=verify-ca"
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => format!("the database's certificate has expired ({error}): renew it"),
        Some(rustls::Error::InvalidCertificate(_)) => format!(
            "the database's certificate is not trusted ({error}): name a PEM file with the certificate of the \
             authority that signed it, sslrootcert=FILE in the URL"
        ),
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate,
        )) => format!(
            "the database does not accept our client certificate ({error}): check sslcert and sslkey in the URL"
        ),
        None if error.kind() == io::ErrorKind::NotFound => format!(
            "something that the database's URL names is not there ({error}): check sslrootcert, sslcert, sslkey, and \
             the directory of a socket"
        ),
        _ => format!("cannot reach the database: {error}"),
    }
}
