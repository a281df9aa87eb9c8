//! What the example says of what it cannot use, and how it ends.

use std::fmt::Write as _;
use std::process::Output;

use super::bot::{bot, dispatch, payload};
use crate::database::Database;
use crate::runtime::queue::server::Server;

/// No server listens here.
const NOWHERE: &str = "127.0.0.1:1";

/// Output and exit code as a user sees them, the same each time.
fn plain(database: &Database, server: &Server, output: &Output) -> String {
    let mut text = String::from_utf8([&*output.stdout, &*output.stderr].concat()).unwrap();
    for (from, to) in [(&*database.url, "DATABASE"), (&*server.url(), "QUEUE")] {
        text = text.replace(from, to);
    }
    let id = regex::Regex::new("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").unwrap();
    let code = output.status.code().expect("no signal ended it");
    format!("{code} {}", id.replace_all(&text, "RUN").trim_end())
}

#[tokio::test]
async fn what_cannot_be_dispatched_says_why() {
    let (database, server) = (Database::sqlite().await, Server::start(&["--appendonly", "no"]).await);
    database.attach().await;
    let mut told = String::new();
    let mut dispatched = |label: &str, payload: &str| {
        let output = dispatch(&database, &server.url(), label, payload);
        writeln!(told, "{label} {}", plain(&database, &server, &output)).unwrap();
    };
    let issue = payload(42, "fix it", "");
    dispatched("bot:triage", &issue);
    dispatched("bot:triage", &issue);
    dispatched("bot:plan", &issue);
    dispatched("bot:plan", &issue.replace("\"issue\"", "\"pull_request\""));
    dispatched("bot:deploy", &issue);
    dispatched("bot:triage", &issue[..40]);
    dispatched("bot:triage", "");
    dispatched("bot:triage", "{}");
    dispatched("bot:triage", &payload(0, "fix it", ""));
    dispatched("bot:triage", &payload(-1, "fix it", ""));
    dispatched("bot:triage", &payload(43, "fix it", &"x".repeat(10 << 20)));
    insta::assert_snapshot!(told, @r#"
    bot:triage 0 RUN
    bot:triage 3 refused: workflow-dispatch-inflight: RUN
    bot:plan 3 refused: missing-prior-output
    bot:plan 3 refused: context-mismatch
    bot:deploy 2 error: no workflow has the label "bot:deploy" (known: bot:implement, bot:plan, bot:resolve, bot:review, bot:ship, bot:triage)
    bot:triage 2 error: delivery by-hand: not a GitHub webhook payload: EOF while parsing a value at line 1 column 40
    bot:triage 2 error: delivery by-hand: not a GitHub webhook payload: EOF while parsing a value at line 1 column 0
    bot:triage 2 error: delivery by-hand: not a GitHub webhook payload: missing field `repository` at line 1 column 2
    bot:triage 2 error: delivery by-hand: 0 is not an issue or pull request number: numbers start at 1
    bot:triage 2 error: delivery by-hand: -1 is not an issue or pull request number: numbers start at 1
    bot:triage 2 error: a state of 10485798 bytes exceeds the limit of 1048576: store large values elsewhere and keep a reference to them
    "#);
    assert_eq!(database.connect().await.count("workflow_runs").await, 1);
}

#[tokio::test]
async fn what_it_cannot_reach_says_where() {
    let (database, server) = (Database::sqlite().await, Server::start(&["--appendonly", "no"]).await);
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = format!("sqlite:{}", empty.path().display());
    let url = server.url();
    let mut told = String::new();
    for [database_url, queue_url] in [
        ["", &url],
        ["mysql://app:s3cret@db/app", &url],
        [&format!("postgres://app:s3cret@{NOWHERE}/app"), &url],
        ["sqlite:/no/such/folder/app.db", &url],
        [&empty, &url],
        [&database.url, ""],
        [&database.url, "s3cret"],
        [&database.url, &format!("redis://:s3cret@{NOWHERE}/0")],
    ] {
        let mut work = bot(&["work"]);
        work.env("DATABASE_URL", database_url).env("REDIS_URL", queue_url).env("RUST_LOG", "off");
        let output = work.output().unwrap();
        assert_eq!(output.stdout, b"", "only lines of its log are there");
        let text = plain(&database, &server, &output).replace(&empty, "EMPTY");
        assert!(!text.contains("s3cret"), "{text}");
        writeln!(told, "{text}").unwrap();
    }
    insta::assert_snapshot!(told, @r#"
    2 error: the database URL has no scheme (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)
    2 error: unknown database URL scheme "mysql" (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)
    1 error: postgres://127.0.0.1:1/app: cannot reach the database: Connection refused (os error 111) (see --database-url, DATABASE_URL)
    1 error: sqlite:/no/such/folder/app.db: the database says: unable to open database file (see --database-url, DATABASE_URL)
    1 error: the database says: no such table: workflow_leases (has the database seen `bot migrate`?)
    2 error: invalid queue URL: write redis://HOST:6379/0, or rediss:// for TLS, and with a password redis://USER:PASSWORD@HOST:6379/0, percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23, % as %25)
    2 error: invalid queue URL: write redis://HOST:6379/0, or rediss:// for TLS, and with a password redis://USER:PASSWORD@HOST:6379/0, percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23, % as %25)
    1 error: cannot reach the queue at 127.0.0.1:1: Connection refused (os error 111) (see --queue-url, REDIS_URL)
    "#);
}

#[tokio::test]
async fn a_wrong_option_is_said() {
    let (database, server) = (Database::sqlite().await, Server::start(&["--appendonly", "no"]).await);
    let mut told = String::new();
    for options in [["--concurrency", "0"], ["--lease", "999ms"], ["--pace", "soon"]] {
        let mut work = bot(&["work"]);
        work.args(options).env("DATABASE_URL", &database.url).env("REDIS_URL", server.url());
        let text = plain(&database, &server, &work.output().unwrap());
        writeln!(told, "{}", text.lines().next().unwrap()).unwrap();
    }
    insta::assert_snapshot!(told, @r"
    2 error: invalid value '0' for '--concurrency <N>': number would be zero for non-zero type
    2 error: invalid value '999ms' for '--lease <DURATION>': at least 1s
    2 error: invalid value 'soon' for '--pace <DURATION>': expected number at 0
    ");
}

#[tokio::test]
async fn a_run_that_the_queue_did_not_take_has_failed_or_is_not_there() {
    let (database, mut server) = (Database::sqlite().await, Server::start(&["--appendonly", "no"]).await);
    server.kill();
    let output = dispatch(&database, &server.url(), "bot:triage", &payload(42, "fix it", ""));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(database.connect().await.count("workflow_runs WHERE status <> 'failed'").await, 0);
}
