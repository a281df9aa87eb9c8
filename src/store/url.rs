//! Which database: `postgres://…` or `sqlite:…`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// The URL of a database. What it shows of itself never holds a password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A PostgreSQL database.
    Postgres(Box<PgConnectOptions>),
    /// A SQLite file.
    Sqlite(PathBuf),
}

/// Why a text is no database URL. Never repeats the text, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)")]
pub struct InvalidDatabaseUrl(String);

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            "postgres" | "postgresql" => {
                let options: PgConnectOptions = text.parse().map_err(|error: sqlx::Error| {
                    let why = match error {
                        sqlx::Error::Configuration(error) => error.to_string(),
                        other => other.to_string(),
                    };
                    InvalidDatabaseUrl(format!("not a PostgreSQL URL: {why}"))
                })?;
                Ok(Self::Postgres(Box::new(options.application_name("runspan"))))
            }
            "sqlite" => {
                let path = text["sqlite:".len()..].trim_start_matches("//");
                if path.is_empty() || path.starts_with(":memory:") {
                    let why = "a SQLite database has to be a file, which its writers and the relay share";
                    return Err(InvalidDatabaseUrl(why.to_owned()));
                }
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            "" => Err(InvalidDatabaseUrl("the database URL has no scheme".to_owned())),
            // Only what can be a scheme is repeated: anything else may be a secret.
            other if other.len() <= 16 && other.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Err(InvalidDatabaseUrl(format!("unknown database URL scheme {other:?}")))
            }
            _ => Err(InvalidDatabaseUrl("unknown database URL scheme".to_owned())),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(options) => {
                let host = options.get_host();
                write!(f, "postgres://{host}:{}", options.get_port())?;
                options.get_database().map_or(Ok(()), |database| write!(f, "/{database}"))
            }
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        let url: DatabaseUrl =
            "postgres://app:hunter2@db.example:6432/orders?sslmode=require".parse().unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://db.example:6432/orders postgres://db.example:6432/orders"
        );
        for wrong in [
            "hunter2",
            "app:hunter2@db/orders",
            "mysql://app:hunter2@db/orders",
            "postgres://app:hunter2@db:port/x",
        ] {
            let error = wrong.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.ends_with("(write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)"));
        }
    }
}
