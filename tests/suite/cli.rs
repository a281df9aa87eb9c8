//! The program as a user meets it, on a SQLite file.

use std::process::{Command, Output, Stdio};

use runspan::otlp::Signal;
use runspan::relay::{Logs, Relay, serve_health};
use runspan::runs;
use runspan::store::StoreError;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::database::{Database, eventually};
use crate::receiver::Receiver;

fn command(database: &Database, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runspan"));
    command.args(arguments).env("DATABASE_URL", &database.url).env("OTEL_TRACES_EXPORTER", "none");
    command
}

pub(crate) fn runspan(database: &Database, arguments: &[&str]) -> Output {
    command(database, arguments).output().unwrap()
}

#[tokio::test]
async fn records_go_to_standard_output_as_json_lines() {
    let database = Database::sqlite().await;
    assert!(runspan(&database, &["attach"]).status.success());
    let mut session = database.connect().await;
    let run = session.queue("triage", 42).await;
    runs::mark_running(session.runs(), run).await.unwrap();
    runs::mark_failed(session.runs(), run, "uncaught: a\nb").await.unwrap();

    let relayed = runspan(&database, &["relay", "--until-idle", "--logs", "stdout"]);
    assert!(relayed.status.success(), "{}", String::from_utf8_lossy(&relayed.stderr));
    let lines: Vec<Value> = String::from_utf8(relayed.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<String> =
        lines.iter().map(|line| format!("{} {}", line["level"].as_str().unwrap(), line["event"])).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    info "workflow.run.queued"
    info "workflow.run.running"
    error "workflow.run.failed"
    error "workflow.run.completed"
    "#);
    let failed = &lines[2];
    assert_eq!(failed["runId"], run.to_string());
    assert_eq!(failed["target"], "acme/widgets#42");
    assert_eq!(failed["reason"], "uncaught: a b");
    assert_eq!(failed["trace_id"], run.to_string().replace('-', ""));
    assert!(failed.get("deliveryId").is_none(), "an absent value is an absent key");

    let again = runspan(&database, &["relay", "--until-idle", "--logs", "stdout"]);
    assert!(again.status.success() && again.stdout.is_empty(), "told once");
}

#[tokio::test]
async fn a_new_identity_discards_nothing_without_being_told_twice() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    database.connect().await.queue("triage", 1).await;
    let refused = runspan(&database, &["new-identity"]);
    assert_eq!(refused.status.code(), Some(1));
    let line = String::from_utf8(refused.stderr).unwrap();
    let pending =
        "1 entry of the journal, 0 requests in the outbox (0 dead), 0 entries set aside, 0 runs in flight";
    assert!(line.contains(&format!("this would discard {pending}: if sqlite:")), "{line}");
    assert_eq!((line.lines().count(), store.status().await.unwrap().journal_entries), (1, 1), "{line}");
    let done = runspan(&database, &["new-identity", "--yes"]);
    let lines = String::from_utf8(done.stdout).unwrap();
    assert!(lines.starts_with(&format!("discarded {pending}\nsqlite:")), "{lines}");
    assert_eq!(store.status().await.unwrap().journal_entries, 0);
}

#[tokio::test]
async fn a_disabled_sdk_relays_nothing_and_loses_nothing() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    database.connect().await.queue("triage", 1).await;
    let relay = |variables: &[(&str, &str)]| {
        let mut command = command(&database, &["relay", "--until-idle", "--logs", "stdout"]);
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let disabled = relay(&[("OTEL_SDK_DISABLED", "true")]);
    let said = String::from_utf8(disabled.stderr).unwrap();
    assert!(disabled.status.success() && disabled.stdout.is_empty(), "{said}");
    assert!(said.contains("OTEL_SDK_DISABLED is true: relaying nothing"), "{said}");
    assert_eq!(store.status().await.unwrap().journal_entries, 1);

    let refused = relay(&[("OTEL_CONFIG_FILE", "/etc/otel.yaml")]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && said.lines().count() == 1, "{said}");
    assert_eq!(store.status().await.unwrap().journal_entries, 1);

    let off = [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "none")];
    let enabled = relay(&off);
    assert!(enabled.status.success() && !enabled.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_over_http_and_one_of_several_exporters() {
    let database = Database::sqlite().await;
    database.attach().await;
    database.connect().await.queue("triage", 1).await;
    let proxy = Receiver::http().await;
    let output = command(&database, &["relay", "--until-idle"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid:4318")
        .env("HTTP_PROXY", proxy.endpoint())
        .env("OTEL_LOGS_EXPORTER", "otlp,console")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("OTEL_LOGS_EXPORTER names console beside otlp").count(), 1, "{said}");
    assert!(proxy.requests().iter().any(|request| request.signal == Signal::Logs));
}

/// Status and body of a path of the health server at `address`.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> (u16, Value) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str::<Value>(body).unwrap_or_default())
}

#[tokio::test]
async fn health_says_how_the_relay_stands() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let relay = Relay::new(store.clone(), Logs::Stdout, &|name| {
        (name == "OTEL_TRACES_EXPORTER").then(|| "none".to_owned())
    })
    .unwrap();
    let status = relay.status();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve_health(listener, store.clone(), status.clone(), stop.clone()));

    let get = async |path: &str| get(address, path).await;
    assert_eq!(get("/live").await.0, 200);
    let (code, ready) = get("/ready").await;
    assert_eq!((code, ready["role"].as_str()), (200, Some("starting")));
    assert_eq!(ready["journal"], serde_json::json!({ "live": null, "since": null, "problems": [] }));

    database.connect().await.queue("triage", 1).await;
    assert_eq!(get("/ready").await.1["database"]["journalEntries"], 1);
    let relay = relay.spawn();
    eventually("acknowledged", || async { status.snapshot().acknowledged_at.is_some() }).await;
    let (_, ready) = get("/ready").await;
    assert_eq!(ready["role"], "relaying");
    assert_eq!(ready["database"]["journalEntries"], 0);
    assert_eq!(ready["database"]["openRuns"], 1);
    assert!(ready["lastAcknowledgementSecondsAgo"].is_number());
    assert_eq!(ready["journal"]["live"], true);
    assert!(ready["journal"]["since"].is_string());
    eventually("idle", async || get("/ready").await.1["senders"]["stdout"]["state"] == "idle").await;

    let standby = Relay::new(store.clone(), Logs::Stdout, &|name| {
        (name == "OTEL_TRACES_EXPORTER").then(|| "none".to_owned())
    })
    .unwrap();
    let (listener, second) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), standby.status());
    let second_address = listener.local_addr().unwrap();
    tokio::spawn(serve_health(listener, store.clone(), second.clone(), stop.clone()));
    assert_eq!(self::get(second_address, "/ready").await.1["senders"]["stdout"]["state"], "inactive");
    let standby = standby.spawn();
    eventually("a standby", async || second.snapshot().stands_by).await;
    let (_, ready) = self::get(second_address, "/ready").await;
    assert_eq!(
        (&ready["role"], &ready["senders"]["stdout"]["state"]),
        (&"standby".into(), &"standby".into())
    );
    standby.stop().await.unwrap();
    relay.stop().await.unwrap();

    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_invalid_log_filter_is_one_line() {
    let database = Database::sqlite().await;
    for filter in ["debgu", "runspan=inof", "runspam=debug", "runspan="] {
        let output = command(&database, &["outbox"]).env("RUST_LOG", filter).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{filter}: {said}");
        assert!(
            said.starts_with("error: RUST_LOG is invalid") && said.contains("error, warn, info"),
            "{said}"
        );
    }
    let output = command(&database, &["outbox"]).env("RUST_LOG", "").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "an empty one is none");
}

/// Everything that prints, each with what it needs to get there.
const PRINTING: [&[&str]; 8] = [
    &["attach", "--dry-run"],
    &["attach"],
    &["outbox"],
    &["outbox", "--json"],
    &["stuck"],
    &["detach"],
    &["demo", "--json"],
    &["schema"],
];

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_behind_standard_output_is_one_line() {
    let database = Database::sqlite().await;
    for arguments in PRINTING.into_iter().chain([&["demo"][..]]) {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(&database, arguments).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: cannot write to standard output: "), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_reader_that_has_read_enough_is_no_error() {
    let database = Database::sqlite().await;
    for arguments in PRINTING {
        let mut child =
            command(&database, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.contains("error")), (Some(0), false), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn an_empty_variable_names_no_database() {
    let database = Database::sqlite().await;
    let output = command(&database, &["outbox"]).env("DATABASE_URL", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "error: which database? Set DATABASE_URL or give --database-url URL\n");
}

#[tokio::test]
async fn a_database_that_fails_is_named() {
    let database = Database::sqlite().await;
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&other, "This is a diary, and no database at all.".repeat(100)).unwrap();
    let diary = format!("sqlite:{}", other.path().display());
    // An option behind the action beats the variable.
    for arguments in
        [&["attach", "--database-url", &diary][..], &["outbox", "retry", "1", "--database-url", &diary]]
    {
        let output = runspan(&database, arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.ends_with(&format!("error: {diary}: the database says: file is not a database\n")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn stopped_with_work_left_is_no_success() {
    let database = Database::sqlite().await;
    assert!(runspan(&database, &["attach"]).status.success());
    database.connect().await.queue("triage", 42).await;
    // Takes connections, and never answers.
    let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", receiver.local_addr().unwrap());
    let child = command(&database, &["relay", "--until-idle"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let connection = receiver.accept().await.unwrap();
    // As timeout(1) does it: the process, and at once the group that it is in.
    for _ in 0..2 {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    drop(connection);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("released the lease"), "not cut short: {said}");
    assert!(said.ends_with("error: stopped before all was sent\n"), "{said}");
}

#[tokio::test]
async fn what_a_relay_cannot_do_with_an_option_is_said() {
    let database = Database::sqlite().await;
    let refusal = |option: &str, value: &str| {
        let output = runspan(&database, &["relay", "--until-idle", option, value]);
        let said = String::from_utf8(output.stderr).unwrap();
        format!("{} {}", output.status.code().unwrap(), said.lines().next().unwrap_or_default())
    };
    insta::assert_snapshot!(refusal("--max-outbox", "0"), @"2 error: invalid value '0' for '--max-outbox <SIZE>': at least 1MiB: what does not fit is dropped");
    insta::assert_snapshot!(refusal("--max-outbox", "1000KB"), @"2 error: invalid value '1000KB' for '--max-outbox <SIZE>': at least 1MiB: what does not fit is dropped");
    insta::assert_snapshot!(refusal("--max-outbox", "much"), @"2 error: invalid value 'much' for '--max-outbox <SIZE>': write a size, as in 512MiB or 2GiB");
    insta::assert_snapshot!(refusal("--health-addr", ":9477"), @"2 error: invalid value ':9477' for '--health-addr <HOST:PORT>': write 127.0.0.1:9477");
    insta::assert_snapshot!(refusal("--health-addr", "localhost"), @"2 error: invalid value 'localhost' for '--health-addr <HOST:PORT>': write HOST:PORT, as in 127.0.0.1:9477");
    let unknown = refusal("--health-addr", "no-such-host.invalid:9477");
    assert!(
        unknown.starts_with("2 error: cannot listen on --health-addr no-such-host.invalid:9477: "),
        "{unknown}"
    );

    assert!(runspan(&database, &["attach"]).status.success());
    let output = runspan(&database, &["relay", "--until-idle", "--health-addr", "localhost:0"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("health on http://"), "{said}");
}

#[tokio::test]
async fn a_relay_without_triggers_says_so() {
    let database = Database::sqlite().await;
    assert!(runspan(&database, &["attach"]).status.success());
    assert!(runspan(&database, &["detach"]).status.success());
    let relayed = runspan(&database, &["relay", "--until-idle", "--logs", "stdout"]);
    assert!(relayed.status.success());
    let said = String::from_utf8(relayed.stderr).unwrap();
    assert!(
        said.contains("runspan is detached: no transition is journalled; run `runspan attach`"),
        "{said}"
    );
}

#[tokio::test]
async fn attach_and_detach_say_what_comes_next() {
    let database = Database::sqlite().await;
    database.connect().await.queue("triage", 42).await;
    let say = |arguments: &[&str]| {
        let output = runspan(&database, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().replace(&database.url, "DATABASE")
    };
    insta::assert_snapshot!(say(&["attach"]), @r"
    attached to workflow_runs in DATABASE
    1 run in flight is adopted
    next: OTEL_SERVICE_NAME=APP OTEL_EXPORTER_OTLP_ENDPOINT=http://COLLECTOR:4318 runspan relay
    ");
    insta::assert_snapshot!(say(&["detach"]), @"detached from workflow_runs");
    insta::assert_snapshot!(say(&["detach"]), @"the triggers are gone already; `runspan detach --purge` removes the schema too");
    let said = say(&["detach", "--purge", "--yes"]);
    assert!(said.lines().last().unwrap_or_default().starts_with("detached from "), "{said}");
    insta::assert_snapshot!(say(&["detach"]), @"runspan is not attached: nothing to do");
}

#[tokio::test]
async fn a_purge_that_loses_something_needs_a_yes() {
    let database = Database::sqlite().await;
    assert!(runspan(&database, &["attach"]).status.success());
    database.connect().await.queue("triage", 42).await;
    let refused = runspan(&database, &["detach", "--purge"]);
    assert_eq!(refused.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8(refused.stdout).unwrap(), @r"
    the purge discards permanently:
      1 entry not projected
    calls that fail afterwards: inserts into runspan_dispatch_refused by any writer
    ");
    insta::assert_snapshot!(String::from_utf8(refused.stderr).unwrap(), @"error: nothing was changed: the purge would lose 1 unprojected entry, and make inserts into runspan_dispatch_refused by any writer fail; first send pending data (`runspan relay --until-idle`, after the runs in flight have ended), or continue with --yes");
    let store = database.store();
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert!(store.attached_table().await.unwrap().is_some());

    let purged = runspan(&database, &["detach", "--purge", "--yes"]);
    assert!(purged.status.success());
    let said = String::from_utf8(purged.stdout).unwrap();
    assert!(
        said.contains("  1 entry not projected\n") && said.ends_with("detached from workflow_runs\n"),
        "{said}"
    );
    assert!(matches!(store.check().await, Err(StoreError::NotAttached)));
}

#[tokio::test]
async fn yes_is_an_answer_to_a_purge_alone() {
    let database = Database::sqlite().await;
    assert!(runspan(&database, &["attach"]).status.success());
    let output = runspan(&database, &["detach", "--yes"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("required arguments were not provided") && said.contains("--purge"), "{said}");
    assert!(database.store().attached_table().await.unwrap().is_some());
    let help = String::from_utf8(runspan(&database, &["detach", "--help"]).stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("--yes") && help.contains("changes nothing without --yes"), "{help}");
}

#[tokio::test]
async fn the_demo_says_how_much_a_receiver_took() {
    let database = Database::sqlite().await;
    // Nothing listens where something has just stopped.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = command(&database, &["demo"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{nowhere}"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let records = regex::Regex::new(r"/v1/logs  0 of [1-9]\d* records accepted: connection refused").unwrap();
    assert!(records.is_match(&text), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
}

#[tokio::test]
async fn metrics_that_cannot_be_meant_are_one_line() {
    let database = Database::sqlite().await;
    database.attach().await;
    let said = |arguments: &[&str], variable: (&str, &str)| {
        let mut command =
            command(&database, &[&["relay", "--until-idle", "--logs", "stdout"], arguments].concat());
        let output = command.env(variable.0, variable.1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default().to_owned();
        format!("{} {error}\n", output.status.code().unwrap())
    };
    let none = ("OTEL_SERVICE_NAME", "shop");
    let all = [
        said(&["--duration-buckets", ""], none),
        said(&["--duration-buckets", "5,1"], none),
        said(&["--duration-buckets", "0.5,x"], none),
        said(&[], ("OTEL_METRIC_EXPORT_INTERVAL", "0")),
        said(&[], ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")),
        said(&[], ("OTEL_METRICS_EXPORTER", "prometheus")),
    ];
    insta::assert_snapshot!(all.concat(), @r#"
    2 error: invalid value '' for '--duration-buckets <S,S,…>': the list of buckets is empty: write seconds, rising, as in 0.5,1,5,60
    2 error: invalid value '5,1' for '--duration-buckets <S,S,…>': bucket 2 (1) is not above the one before it: write them rising, each once
    2 error: invalid value '0.5,x' for '--duration-buckets <S,S,…>': bucket 2 is "x", not a number of seconds above 0: write e.g. 0.5,1,5,60
    2 error: OTEL_METRIC_EXPORT_INTERVAL is "0", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000
    2 error: OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for delta temporality: runspan's series are cumulative, because a delta whose acknowledgement is lost would count twice; unset it, and convert in the Collector (cumulativetodelta) for a backend that needs deltas
    2 error: OTEL_METRICS_EXPORTER names the exporter "prometheus", which runspan does not support: set it to otlp or none
    "#);
}
