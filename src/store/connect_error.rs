//! The error of a database that cannot be reached: TLS, and the files that its URL names.
//!
//! Everything else is described by [`crate::runs::describe`], which the mutators share.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::refused::Refused;

/// One line: the cause and the remedy.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
            "cannot reach the database: connection refused; is it running, are host and port right?".to_owned()
        }
        sqlx::Error::Io(io) => by_tls(io).unwrap_or_else(|| crate::runs::describe(error)),
        // The server does not offer TLS. All other TLS errors are about a file that the URL names.
        sqlx::Error::Tls(error) if error.to_string() == "server does not support TLS" => {
            "the database does not support TLS, which the URL's sslmode requires: turn it on in the server (ssl = on), or \
             use sslmode=disable on a trusted network"
                .to_owned()
        }
        sqlx::Error::Configuration(error) if error.is::<Refused>() => error.to_string(),
        sqlx::Error::Tls(error) | sqlx::Error::Configuration(error) => {
            format!("TLS to the database cannot be set up ({error}): check sslrootcert, sslcert and sslkey in the URL")
        }
        other => crate::runs::describe(other),
    }
}

fn by_tls(error: &io::Error) -> Option<String> {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let line = match tls {
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
            "a file that the database's URL names does not exist ({error}): check sslrootcert, sslcert, sslkey and the \
             directory of the socket"
        ),
        _ => return None,
    };
    Some(line)
}
