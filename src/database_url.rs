//! Which database: `postgres://…` or `sqlite:…`.

mod parameters;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tracing::subscriber::{NoSubscriber, with_default};

use crate::redact::url::{ENCODE, Form, is_unclear};

/// PostgreSQL's parameters that may hold a raw `@`. A host with one is a directory of sockets; in the name of a
/// database, which is shown, it has to be `%40`.
const FORM: Form = Form {
    parameter: |name, value| match name {
        "host" => value.starts_with('/'),
        "user" | "password" | "application_name" | "options" => true,
        "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" => true,
        _ => false,
    },
    fragments: &[],
    sockets: false,
};

/// The URL of a database. What it shows of itself never holds a password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A PostgreSQL database.
    Postgres {
        /// How to connect.
        options: Box<PgConnectOptions>,
        /// How long to wait for a connection, if the URL says so.
        connect_timeout: Option<Duration>,
    },
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
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        match scheme {
            "postgres" | "postgresql" => postgres(text, rest).map_err(InvalidDatabaseUrl),
            "sqlite" => sqlite(rest).map(Self::Sqlite).map_err(InvalidDatabaseUrl),
            "" => Err(InvalidDatabaseUrl("the database URL has no scheme".to_owned())),
            // Only what is a scheme is repeated: anything else may be a secret.
            other
                if rest.starts_with("//")
                    && other.len() <= 16
                    && other.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
            {
                Err(InvalidDatabaseUrl(format!("unknown database URL scheme {other:?}")))
            }
            _ => Err(InvalidDatabaseUrl("unknown database URL scheme".to_owned())),
        }
    }
}

/// The file of a SQLite URL, given what follows `sqlite:`: a path, or `//` and a path, in which `%3F` is a question mark. Any
/// number of slashes begins an absolute path, as in `SQLAlchemy`'s `sqlite:////var/app.db`.
fn sqlite(rest: &str) -> Result<PathBuf, String> {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.is_empty() || path.starts_with(":memory:") {
        return Err("a SQLite database has to be a file, which its writers and the relay share".to_owned());
    }
    if path.starts_with("file:") {
        return Err("not a SQLite URL: write sqlite:PATH, without file:".to_owned());
    }
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter {
            // runspan reads and writes, and never creates a file.
            "mode=rw" | "mode=rwc" | "cache=private" | "cache=shared" => {}
            "mode=ro" | "immutable=1" | "immutable=true" => {
                return Err(
                    "runspan writes to the database: leave out what makes it read-only (mode=ro, immutable)"
                        .to_owned(),
                );
            }
            "mode=memory" => {
                return Err(
                    "a SQLite database has to be a file, which its writers and the relay share".to_owned()
                );
            }
            _ => {
                return Err("the SQLite URL has a parameter other than mode and cache: leave it out, or write a question mark \
                            in the file's name as %3F"
                    .to_owned());
            }
        }
    }
    let path = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| "the path in the SQLite URL is not UTF-8 once it is percent-decoded".to_owned())?;
    let is_absolute = path.starts_with('/');
    Ok(PathBuf::from(if is_absolute {
        format!("/{}", path.trim_start_matches('/'))
    } else {
        path.into_owned()
    }))
}

/// Parses a PostgreSQL URL, of which `rest` is what follows the first colon. Errors repeat nothing of it.
fn postgres(text: &str, rest: &str) -> Result<DatabaseUrl, String> {
    // Without the slashes all of it would be the name of a database on this machine.
    if !rest.starts_with("//") {
        return Err("not a PostgreSQL URL: no // follows its scheme".to_owned());
    }
    if is_unclear(text, &FORM) {
        return Err(format!(
            "the database URL holds a reserved character that is not percent-encoded: write {ENCODE}, or leave the \
             password out and set PGPASSWORD or PGPASSFILE"
        ));
    }
    let authority = rest[2..].split(['/', '?', '#']).next().unwrap_or_default();
    if authority.rsplit('@').next().is_some_and(|host| host.contains(',')) {
        return Err(parameters::SEVERAL_HOSTS.to_owned());
    }
    let url = url::Url::parse(text).map_err(|error| format!("not a PostgreSQL URL: {error}"))?;
    let connect_timeout = parameters::check(&url)?;
    // sqlx logs lines of a password file that it cannot read.
    let options: Result<PgConnectOptions, _> = with_default(NoSubscriber::new(), || text.parse());
    // The error may quote a value.
    let options = options.map_err(|_| {
        "the database URL has a parameter with an invalid value: check sslmode, hostaddr, port and \
         statement-cache-capacity, and that what is percent-encoded is UTF-8"
            .to_owned()
    })?;
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("runspan"),
    };
    Ok(DatabaseUrl::Postgres { options: Box::new(options), connect_timeout })
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { options, .. } => {
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
    use proptest::prelude::*;
    use sqlx::ConnectOptions as _;

    use super::*;

    const HINT: &str = "is not percent-encoded: write @ as %40, / as %2F, ? as %3F, # as %23, % as %25, or leave the \
                        password out and set PGPASSWORD or PGPASSFILE (write postgres://USER:PASSWORD@HOST:PORT/\
                        DATABASE or sqlite:PATH)";

    fn error(text: &str) -> String {
        text.parse::<DatabaseUrl>().unwrap_err().to_string()
    }

    /// User, password, host with port, and database, as they will be used.
    fn parts(text: &str) -> [String; 4] {
        let url = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let DatabaseUrl::Postgres { options, .. } = url else { panic!("{text}: no PostgreSQL") };
        // There is no other way to the password; a host that is a name has no need of encoding.
        let password = options.clone().username("user").to_url_lossy();
        let password = percent_encoding::percent_decode_str(password.password().unwrap_or_default());
        [
            options.get_username().to_owned(),
            password.decode_utf8().unwrap().into_owned(),
            format!("{}:{}", options.get_host(), options.get_port()),
            options.get_database().unwrap_or_default().to_owned(),
        ]
    }

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
            "hunter2:x",
            "hunter2:app@db/orders",
            "app:hunter2@db/orders",
            "mysql://app:hunter2@db/orders",
            "postgres:hunter2@db/orders",
            "postgres:/hunter2@db/orders",
            "postgres://app:hunter2@db:port/x",
            "postgres://app:hunter2",
            "postgres://db/x?sslmode=hunter2",
            "postgres://db/x?hostaddr=hunter2",
            "postgres://db/x?port=hunter2",
            "postgres://db/x?password=hunter2#",
        ] {
            let error = error(wrong);
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.ends_with("(write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)"));
        }
    }

    #[test]
    fn a_raw_reserved_character_is_refused_with_the_remedy_alone() {
        for url in [
            "postgres://owner:S3@cr/et@127.0.0.1:15432/app",
            "postgres://owner:S3@cret@db/app",
            "postgres://owner@corp:S3cret@db/app",
            "postgres://owner:12/x@db/app",
            "postgres://owner:12?x@db/app",
            "postgres://owner:12?user=x@db/app",
            "postgres://owner:12?dbname=x@db",
            "postgres://owner:12/x?host=y@db",
            "postgres://owner:12#x@db/app",
            "postgres://owner:S3%cret@db/app",
            "postgres://owner:S3\tcret@db/app",
            "postgres://owner:S3\ncret@db/app",
            "postgres://db/app@home",
        ] {
            assert_eq!(
                error(url),
                format!("the database URL holds a reserved character that {HINT}"),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_clear_is_taken_as_it_is_meant() {
        for (url, expected) in [
            ("postgres://u:S3%40cr%2Fet@h:1/d%40e", ["u", "S3@cr/et", "h:1", "d@e"]),
            ("postgres://u%40corp:%23%3f%25@h/d\n", ["u@corp", "#?%", "h:5432", "d"]),
            ("postgresql://u:a:b c[d]\\e@[::1]:1/d", ["u", "a:b c[d]\\e", "[::1]:1", "d"]),
            ("postgres://h:1/d?user=me@server&password=a@b", ["me@server", "a@b", "h:1", "d"]),
            ("postgres://h/d?user=u&password=p@ss/w?d", ["u", "p@ss/w?d", "h:5432", "d"]),
        ] {
            assert_eq!(parts(url), expected, "{url}");
        }
        let url = "postgres:///d?host=/run/@x".parse().unwrap();
        let DatabaseUrl::Postgres { options, .. } = url else { panic!("no PostgreSQL") };
        assert_eq!(options.get_socket().unwrap().to_str(), Some("/run/@x"));
    }

    #[test]
    fn a_sqlite_url_is_a_path() {
        for (url, expected) in [
            ("sqlite:app.db", "app.db"),
            ("sqlite://app.db", "app.db"),
            ("sqlite:../data/app.db", "../data/app.db"),
            ("sqlite:/var/app.db", "/var/app.db"),
            ("sqlite:///var/app.db", "/var/app.db"),
            ("sqlite:////var/app.db", "/var/app.db"),
            ("sqlite://///var//app.db", "/var//app.db"),
            ("sqlite:app.db?mode=rwc", "app.db"),
            ("sqlite:app.db?", "app.db"),
            ("sqlite:///var/app.db?mode=rw&cache=shared", "/var/app.db"),
            ("sqlite:what%3F%20now%25.db", "what? now%.db"),
            ("sqlite:100%.db", "100%.db"),
        ] {
            let DatabaseUrl::Sqlite(path) = url.parse().unwrap() else { panic!("{url}: no SQLite") };
            assert_eq!(path, PathBuf::from(expected), "{url}");
        }
        for (url, expected) in [
            ("sqlite:", "has to be a file"),
            ("sqlite://", "has to be a file"),
            ("sqlite::memory:", "has to be a file"),
            ("sqlite:app.db?mode=memory", "has to be a file"),
            ("sqlite:?mode=rwc", "has to be a file"),
            ("sqlite:app.db?mode=ro", "leave out what makes it read-only"),
            ("sqlite:app.db?immutable=1", "leave out what makes it read-only"),
            ("sqlite:app.db?key=hunter2", "a parameter other than mode and cache"),
            ("sqlite:what?.db", "as %3F"),
            ("sqlite:file:app.db", "without file:"),
            ("sqlite:%FF.db", "not UTF-8"),
        ] {
            let error = error(url);
            assert!(error.contains(expected) && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn several_hosts_are_refused_and_a_name_of_the_application_stays() {
        for url in [
            "postgres://u:p@a,b/d",
            "postgres://u:p@a:1,b:2/d",
            "postgres://a,b?dbname=d",
            "postgres:///d?host=a,b",
        ] {
            assert!(error(url).starts_with("several hosts are not supported"), "{}", error(url));
        }
        let name = |url: &str| match url.parse().unwrap() {
            DatabaseUrl::Postgres { options, .. } => options.get_application_name().map(str::to_owned),
            DatabaseUrl::Sqlite(_) => None,
        };
        assert_eq!(name("postgres://db/d").as_deref(), Some("runspan"));
        assert_eq!(name("postgres://db/d?application_name=ours").as_deref(), Some("ours"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn any_raw_password_is_refused_unseen_or_taken_exactly(
            // Of letters and digits that no message has, so that no piece of it is there by chance; many escapes,
            // which parsers decode, are not among them.
            password in "([QXZ]|[789]{1,3}|[@/?#%:&=+\\[\\]\\\\;,!$'()*|^`{}<>\"~.é\u{85}\u{2028} \t\r\n\0-]|(\\?|&)(user|host|password|options|dbname|port)=/?){1,12}",
            user in "(jq|jq%40jq|jq@jq|jq/jq)?",
            tail in prop::sample::select(vec!["@wv:4/ky", "@wv:4/ky?sslmode=disable", "@wv:4/ky?application_name=jj@jj"]),
        ) {
            prop_assume!(!password.contains("%8") && !password.contains("%7") && !password.contains("%9"));
            let text = format!("postgres://{user}:{password}{tail}");
            match text.parse::<DatabaseUrl>() {
                Err(error) => {
                    let shown = format!("{error} {error:?}");
                    prop_assert!(!shown.contains('\n'), "{}", shown);
                    let characters: Vec<char> = password.chars().collect();
                    for piece in characters.windows(3).filter(|piece| piece.iter().any(|c| "QXZ789".contains(*c))) {
                        let piece: String = piece.iter().collect();
                        prop_assert!(!shown.contains(&piece), "{}: {}", text, shown);
                    }
                }
                Ok(url) => {
                    let [_, found, host, database] = parts(&text);
                    prop_assert_eq!([&*found, &*host, &*database], [&*password, "wv:4", "ky"], "{}", &text);
                    prop_assert_eq!(url.to_string(), "postgres://wv:4/ky");
                }
            }
        }
    }
}
