//! The whole way with real processes: plain SQL writers (psql, pgbench), PostgreSQL's triggers, `runspan relay`, and
//! the OpenTelemetry Collector, whose files are compared with the tables.

mod bad_database;
mod bad_receiver;
mod cost;
mod load;
mod metrics;
mod order;
mod poison;
mod pooled;
mod prometheus;
mod reconcile;
mod standby;

use runspan_test_support::end_to_end::{
    DEADLINE, LOOK, MIX, database, ledger, output, pooler, test_file, wait_within,
};
pub(crate) use runspan_test_support::end_to_end::{collector, process, service, wait_for};

use self::database::Database;
use self::process::{Ended, Process, runspan};

/// A relay on `database` that sends to the OTLP/HTTP receiver at `endpoint`.
fn relay(database: &Database, endpoint: &str) -> std::process::Command {
    let mut command = runspan(&["relay", "--database-url", database.url()]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_SERVICE_NAME", "shop");
    command
}

/// Relays until nothing is left, which has to work.
fn drain(database: &Database, endpoint: &str) {
    let ended = Process::start(relay(database, endpoint).arg("--until-idle")).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// The exit code and stderr, with names that are the same each time.
fn outcome(ended: &Ended, database: &Database) -> String {
    let code = ended.code.expect("no signal ended it");
    format!("exit code {code}\n{}", plain(&ended.stderr, database))
}

/// Without times, ports and names of this run; a line that is repeated counts once.
fn plain(stderr: &str, database: &Database) -> String {
    let text = stderr.replace(database.address(), "HOST").replace(database.name(), "DATABASE");
    let replace = |text: String, pattern: &str, by: &str| {
        regex::Regex::new(pattern).expect("a valid pattern").replace_all(&text, by).into_owned()
    };
    let text = replace(text, r"retry_in_ms=\d+", "retry_in_ms=…");
    let text = replace(text, r"(?m)^\S+Z +", "");
    let text = replace(text, r"(127\.0\.0\.1|localhost):\d+", "RECEIVER");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.dedup();
    lines.join("\n")
}
