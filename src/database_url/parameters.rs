//! The parameters of a PostgreSQL URL: each works, or an error names it. sqlx would ignore those of libpq that it does not
//! know, and log them with their values.

use std::time::Duration;

use url::Url;

/// What works.
const SUPPORTED: [&str; 17] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "gssencmode",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "target_session_attrs",
    "user",
];

/// Other names of some of them, which sqlx reads too.
const ALIASES: [&str; 5] = ["ssl-ca", "ssl-cert", "ssl-key", "ssl-mode", "ssl-root-cert"];

/// What libpq or other drivers know, and runspan does not. Only these names are repeated in an error: a name that nobody knows
/// may be a piece of a password with a raw `&`.
const UNSUPPORTED: [(&str, &str); 28] = [
    ("client_encoding", "leave it out: the encoding is UTF-8"),
    ("connection_limit", "leave it out"),
    ("currentSchema", "name the table with --table SCHEMA.TABLE"),
    ("fallback_application_name", "write application_name"),
    ("gssdelegation", "leave it out"),
    ("keepalives", "leave it out"),
    ("keepalives_count", "leave it out"),
    ("keepalives_idle", "leave it out"),
    ("keepalives_interval", "leave it out"),
    ("krbsrvname", "leave it out: Kerberos is not supported"),
    ("load_balance_hosts", "leave it out: one host is used"),
    ("passfile", "set PGPASSFILE"),
    ("pgbouncer", "write statement-cache-capacity=0"),
    ("pool_timeout", "write connect_timeout"),
    ("prepareThreshold", "write statement-cache-capacity=0"),
    ("replication", "leave it out"),
    ("require_auth", "leave it out, and write sslmode=verify-full"),
    ("requirepeer", "leave it out"),
    ("requiressl", "write sslmode=require"),
    ("schema", "name the table with --table SCHEMA.TABLE"),
    ("service", "write host, port, dbname and user"),
    ("ssl", "write sslmode=require"),
    ("ssl_min_protocol_version", "leave it out: TLS 1.2 is the least"),
    ("sslcompression", "leave it out"),
    ("sslcrl", "leave it out: revocation lists are not read"),
    ("sslnegotiation", "leave it out"),
    ("sslpassword", "leave it out, and name a key without a passphrase with sslkey"),
    ("tcp_user_timeout", "leave it out"),
];

/// The longest wait for a connection: longer ones would outlast the lease.
const MAX_CONNECT_TIMEOUT: u64 = 60;

/// Checks all parameters of a URL; how long to wait for a connection, if it says so.
pub(super) fn check(url: &Url) -> Result<Option<Duration>, String> {
    let mut timeout = None;
    for (at, (name, value)) in url.query_pairs().enumerate() {
        match &*name {
            "host" | "hostaddr" | "port" if value.contains(',') => return Err(SEVERAL_HOSTS.to_owned()),
            "channel_binding" if !matches!(&*value, "prefer" | "disable") => {
                return Err("channel_binding=require is not supported: leave it out, and write sslmode=verify-full, which \
                            authenticates the server too"
                    .to_owned());
            }
            "gssencmode" if !matches!(&*value, "prefer" | "disable") => {
                return Err(
                    "gssencmode=require is not supported: leave it out, and write sslmode=require".to_owned()
                );
            }
            "target_session_attrs" if !matches!(&*value, "any" | "read-write" | "primary") => {
                return Err("runspan writes to the database: target_session_attrs has to be read-write, primary or any"
                    .to_owned());
            }
            "connect_timeout" => timeout = Some(connect_timeout(&value)?),
            name if SUPPORTED.contains(&name) || ALIASES.contains(&name) => {}
            name if name.starts_with("options[") && name.ends_with(']') => {}
            name => return Err(unsupported(name, at + 1)),
        }
    }
    Ok(timeout)
}

/// Why several hosts are refused.
pub(super) const SEVERAL_HOSTS: &str =
    "several hosts are not supported: name one that leads to the primary, such as a DNS name or a proxy";

/// In seconds; 0 waits as long as possible.
fn connect_timeout(value: &str) -> Result<Duration, String> {
    let seconds: u64 =
        value.parse().map_err(|_| "connect_timeout has to be a number of seconds".to_owned())?;
    let seconds = if seconds == 0 { MAX_CONNECT_TIMEOUT } else { seconds.min(MAX_CONNECT_TIMEOUT) };
    Ok(Duration::from_secs(seconds))
}

fn unsupported(name: &str, position: usize) -> String {
    UNSUPPORTED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or_else(
        || format!("parameter {position} of the database URL is unknown; there are {}", SUPPORTED.join(", ")),
        |(known, remedy)| format!("the database URL's parameter {known} is not supported: {remedy}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(query: &str) -> Result<Option<Duration>, String> {
        check(&Url::parse(&format!("postgres://app:p@db:1/d?{query}")).expect("a URL"))
    }

    #[test]
    fn parameters_without_a_meaning_for_runspan_are_accepted_where_they_ask_for_nothing() {
        for query in [
            "",
            "sslmode=require&sslrootcert=/ca.pem&application_name=x&options=-c%20a%3Db&options[b]=c",
            "channel_binding=prefer&gssencmode=disable&target_session_attrs=read-write",
            "target_session_attrs=primary&statement-cache-capacity=0&host=/run&port=1",
        ] {
            assert_eq!(checked(query), Ok(None), "{query}");
        }
    }

    #[test]
    fn a_connect_timeout_is_kept_within_a_minute() {
        for (value, seconds) in [("7", 7), ("0", 60), ("3600", 60)] {
            let timeout = checked(&format!("connect_timeout={value}"));
            assert_eq!(timeout, Ok(Some(Duration::from_secs(seconds))), "{value}");
        }
        assert!(checked("connect_timeout=soon").is_err());
    }

    #[test]
    fn what_is_not_supported_is_named_with_the_remedy_and_without_its_value() {
        for (query, expected) in [
            (
                "sslpassword=hunter2",
                "parameter sslpassword is not supported: leave it out, and name a key without",
            ),
            ("channel_binding=require", "channel_binding=require is not supported"),
            ("target_session_attrs=standby", "runspan writes to the database"),
            (
                "sslmode=require&SSLMOD=hunter2",
                "parameter 2 of the database URL is unknown; there are application_name, ",
            ),
            ("hunter2", "parameter 1 of the database URL is unknown"),
            ("pgbouncer=true", "write statement-cache-capacity=0"),
            ("host=a,b", "several hosts are not supported"),
            ("port=1,2", "several hosts are not supported"),
        ] {
            let error = checked(query).expect_err(query);
            assert!(error.contains(expected), "{query}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("SSLMOD"), "{error}");
        }
    }
}
