//! Why a database cannot be reached: TLS, and the files of its URL, which the mutators of `runs` know nothing of.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::postgres::as_owner::Refused;

/// One clear line: what is wrong, and how to mend it.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(io) => by_tls(io).unwrap_or_else(|| crate::runs::describe(error)),
        // What sqlx says where the server answers that it has none; all else is about a file of the URL's.
        sqlx::Error::Tls(error) if error.to_string() == "server does not support TLS" => {
            "the database takes no TLS, which the URL's sslmode asks for: switch it on there (ssl = on), or write \
             sslmode=disable if nobody listens on the way"
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
            "something that the database's URL names is not there ({error}): check sslrootcert, sslcert, sslkey, and \
             the directory of a socket"
        ),
        _ => return None,
    };
    Some(line)
}
