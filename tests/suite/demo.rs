//! `runspan demo`, as a person runs it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use runspan::otlp::Signal;
use runspan::semconv::{ErrorType, Event};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::receiver::{Receiver, Reply};

/// The demo in an environment that says nothing, with a directory for what it leaves behind.
fn demo(arguments: &[&str]) -> (Command, TempDir) {
    let temporary = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runspan"));
    command.arg("demo").args(arguments).env_clear().env("TMPDIR", temporary.path()).stdin(Stdio::null());
    (command, temporary)
}

fn is_empty(directory: &TempDir) -> bool {
    directory.path().read_dir().unwrap().next().is_none()
}

/// Exit code and the one line that it says.
fn refusal(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((said.lines().count(), &*output.stdout), (1, &b""[..]), "{said}");
    (output.status.code().unwrap(), said.trim_end().to_owned())
}

#[test]
fn every_event_occurs_and_every_run_is_a_span() {
    let (mut command, temporary) = demo(&["--json"]);
    // An application's database, which is none of the demo's business.
    let output = command.env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/app").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    let records = report["records"].as_array().unwrap();
    let events: BTreeSet<&str> = records.iter().map(|record| record["event"].as_str().unwrap()).collect();
    // The demo's table is the bundled one, whose runs cannot be cancelled.
    let possible = Event::ALL.iter().filter(|event| **event != Event::Cancelled);
    assert_eq!(events, possible.map(|event| event.name()).collect());
    let why: BTreeSet<&str> = records.iter().filter_map(|record| record["error.type"].as_str()).collect();
    assert_eq!(why, ErrorType::ALL.iter().map(|error_type| error_type.as_str()).collect());
    let handed_off = |record: &&Value| record["event"] == Event::HandedOff.name();
    let parents: BTreeSet<_> =
        records.iter().filter(handed_off).map(|it| it["workflowName"].as_str()).collect();
    assert_eq!(parents, BTreeSet::from([Some("ship"), Some("triage")]), "steps, and a handler's own doing");

    let spans = report["spans"].as_array().unwrap();
    let runs = spans.iter().filter(|span| span["kind"] == "run").count() as u64;
    let counts = &report["counts"];
    assert_eq!(runs, counts["rows"].as_u64().unwrap() + counts["deleted"].as_u64().unwrap(), "{counts}");
    let of_kind = |kind: &str| spans.iter().filter(|span| span["kind"] == kind).collect::<Vec<_>>();
    let find = |span: &Value| spans.iter().find(|known| known["span_id"] == *span);
    assert_eq!(of_kind("queue").len() as u64, runs, "each waits at first");
    assert_eq!(of_kind("delivery").len() as u64, counts["deliveries"].as_u64().unwrap());
    assert!(!of_kind("handler").is_empty());
    for span in of_kind("handler") {
        let above = find(&span["parent_span_id"]).unwrap_or_else(|| panic!("{span} is below nothing"));
        assert_eq!(above["trace_id"], span["trace_id"]);
        assert!(above["kind"] == "handler" || above["kind"] == "run", "{span} is below {above}");
    }

    let ship = &report["ship"];
    let children: Vec<&str> = of_kind("run")
        .into_iter()
        .filter(|span| span["trace_id"] == ship["traceId"] && span["parent_span_id"] != Value::Null)
        .map(|span| span["name"].as_str().unwrap())
        .collect();
    assert_eq!(children, ["triage", "plan", "implement", "review", "resolve", "review", "resolve"]);
    let root = of_kind("run").into_iter().find(|span| span["name"] == "ship").unwrap();
    let ids = ["trace_id", "span_id"].map(|id| root[id].as_str().unwrap());
    assert_eq!(ship["traceparent"], format!("00-{}-{}-03", ids[0], ids[1]), "as the run's id has it");
    assert_eq!(root["links"], Value::from(vec![ship["link"].clone()]));
    let delivery = ship["link"].as_str().unwrap().split('-').nth(2).unwrap();
    assert_eq!(find(&delivery.into()).unwrap()["kind"], "delivery");

    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "not even of the panic");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("https://[redacted]@github.com"), "the reason is there, without its credential");
    assert!(!text.contains("ghs_"));
    assert!(is_empty(&temporary), "the database is removed");
}

#[test]
fn where_no_colour_is_wanted_is_none_and_lines_fit() {
    let (mut command, _temporary) = demo(&[]);
    let output = command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 110 && line == line.trim_end(), "{line:?}");
    }
    assert!(text.contains("└ resolve"), "{text}");
}

#[test]
fn a_wrong_url_is_one_line() {
    let run = |url: &str| refusal(&demo(&["--database-url", url]).0.output().unwrap());
    assert_eq!(
        run("mysql://app:hunter2@db/orders"),
        (
            2,
            "error: unknown database URL scheme \"mysql\" (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or \
             sqlite:PATH)"
                .to_owned()
        )
    );
    let (code, said) = run("postgres://app:hunter2@127.0.0.1:1/orders");
    assert_eq!(code, 1);
    assert!(said.starts_with("error: cannot open postgres://127.0.0.1:1/orders: cannot reach"), "{said}");
    let (code, said) = run("sqlite:/nowhere/demo.db");
    assert_eq!(code, 1);
    assert!(said.starts_with("error: cannot open sqlite:/nowhere/demo.db: "), "{said}");
}

#[tokio::test]
async fn a_database_that_serves_an_application_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite:{}", directory.path().join("app.db").display());
    let mut app = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
    sqlx::raw_sql("CREATE TABLE workflow_runs (id TEXT)").execute(&mut app).await.unwrap();
    let (code, said) = refusal(&demo(&["--database-url", &url]).0.output().unwrap());
    assert_eq!(code, 1);
    assert!(said.starts_with("error: this database serves an application"), "{said}");
    let things: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut app).await.unwrap();
    assert_eq!(things, 1, "nothing was made beside the table");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_received_is_sent_on_and_a_refusal_is_an_error() {
    let receiver = Receiver::http().await;
    receiver.rule(|request| match request.signal {
        Signal::Logs => Reply::http(403, &[], "not here"),
        _ => Reply::Accept,
    });
    let (mut command, _temporary) = demo(&["--json"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.lines().count() == 1 && said.starts_with("error: logs to ") && said.contains("403"),
        "{said}"
    );

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let spans: usize = receiver
        .requests()
        .into_iter()
        .filter(|request| request.signal == Signal::Traces)
        .map(|request| ExportTraceServiceRequest::decode(request.body).unwrap())
        .map(|request| request.resource_spans[0].scope_spans[0].spans.len())
        .sum();
    assert_eq!(spans, report["spans"].as_array().unwrap().len());
    assert_eq!(report["forwarded"][0]["items"], spans);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let (mut command, temporary) = demo(&[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut heading = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut heading).unwrap();
    assert!(heading.starts_with("runspan demo"), "{heading}");
    assert!(!is_empty(&temporary));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: interrupted\n");
    assert!(is_empty(&temporary), "the database is removed");
}
