//! A receiver that calls one span wrong: it stands alone in the end, dead with the answer, and `runspan outbox` shows
//! and mends it.

use serde_json::Value;
use tonic::Code;

use super::database::Database;
use super::process::{Ended, Process, runspan};
use super::{outcome, plain, relay};
use crate::receiver::{Receiver, Reply};

fn outbox(database: &Database, arguments: &[&str]) -> Ended {
    let command = [&["outbox", "--database-url", database.url()], arguments].concat();
    Process::start(&mut runspan(&command)).wait()
}

fn is_poison(body: &[u8]) -> bool {
    body.windows(6).any(|window| window == b"poison")
}

fn relay_until_idle(database: &Database, receiver: &Receiver) -> Ended {
    let mut command = relay(database, &receiver.endpoint());
    command.args(["--until-idle", "--logs", "stdout"]).env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    command.env("OTEL_METRICS_EXPORTER", "none");
    Process::start(&mut command).wait()
}

/// Runs that went well, and in their midst one whose two spans the receiver calls wrong.
fn with_poison() -> Database {
    let database = Database::attached();
    database.write_runs_with(50, "CASE n WHEN 20 THEN 'poison' ELSE 'triage' END", "NULL");
    database
}

async fn squeamish() -> Receiver {
    let receiver = Receiver::grpc().await;
    receiver.rule(|request| {
        if is_poison(&request.body) {
            Reply::grpc(Code::InvalidArgument, "a word that nobody should say")
        } else {
            Reply::Accept
        }
    });
    receiver
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_stands_alone_with_the_answer_and_can_be_sent_again_or_dropped() {
    let (database, receiver) = (with_poison(), squeamish().await);
    let ended = relay_until_idle(&database, &receiver);
    assert_eq!(ended.code, Some(3));
    let line = plain(ended.stderr.lines().last().unwrap_or_default(), &database);
    insta::assert_snapshot!(line, @"error: everything else is sent, but 2 requests are dead: see `runspan outbox`");
    assert_eq!(ended.stdout.lines().count(), 200, "records of the other channel");
    let sent = |receiver: &Receiver| -> usize { receiver.requests().iter().map(spans).sum() };
    assert_eq!(sent(&receiver), 98, "all but the poison, once");

    let listed = outbox(&database, &[]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    insta::assert_snapshot!(listing(&listed.stdout, &database), @r#"
    journal: 0 entries; outbox: 0 waiting (0 B), 2 dead; set aside: 0 entries; skipped: 0 entries
     id  channel  stored at                    items  bytes  state
     …  traces   …  1      …    dead: traces to http://RECEIVER (grpc): INVALID_ARGUMENT: "a word that nobody should say"
     …  traces   …  1      …    dead: traces to http://RECEIVER (grpc): INVALID_ARGUMENT: "a word that nobody should say"
    "#);
    let json: Value = serde_json::from_str(&outbox(&database, &["--json"]).stdout).unwrap();
    assert_eq!(json["status"]["deadRequests"], 2);
    assert_eq!(json["requests"].as_array().unwrap().len(), 2);
    assert_eq!(json["requests"][0]["channel"], "traces");
    assert_eq!(json["requests"][0]["items"], 1);
    let answer = json["requests"][0]["dead"].as_str().unwrap();
    assert!(answer.contains("a word that nobody should say"), "{answer}");
    let first = json["requests"][0]["id"].to_string();

    // Once the receiver is mended, one of them is sent again; the other is dropped.
    insta::assert_snapshot!(outbox(&database, &["retry", &first]).stdout, @"1 dead request waits again");
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay_until_idle(&database, &receiver).code, Some(3), "one is dead still");
    assert_eq!(sent(&receiver), 99);
    // Options stand before and behind the action; an id that is none is said.
    insta::assert_snapshot!(outcome(&outbox(&database, &["retry", &first]), &database).replace(&first, "ID"), @r"
    exit code 1
    error: ID is not the id of a dead request: see `runspan outbox`
    ");
    let second = json["requests"][1]["id"].to_string();
    let url = ["--database-url", database.url()];
    let command = [&["outbox", "drop", &first, &second, "--json"], &url[..]].concat();
    let dropped = Process::start(&mut runspan(&command)).wait();
    insta::assert_snapshot!(dropped.stdout, @r#"{"dropped":1}"#);
    insta::assert_snapshot!(outcome(&dropped, &database), @r"
    exit code 1
    error: only 1 of 2 ids are dead requests: see `runspan outbox`
    ");
    insta::assert_snapshot!(outbox(&database, &["drop", "--all"]).stdout, @"0 dead requests are gone");
    let ended = relay_until_idle(&database, &receiver);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(sent(&receiver), 99);
    insta::assert_snapshot!(outbox(&database, &[]).stdout, @"journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries");
    insta::assert_snapshot!(outcome(&outbox(&database, &["drop"]), &database), @r"
    exit code 2
    error: the following required arguments were not provided:
      <IDS|--all>

    Usage: runspan outbox drop <IDS|--all>

    For more information, try '--help'.
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_refuses_everything_kills_nothing() {
    let (database, receiver) = (with_poison(), Receiver::grpc().await);
    receiver.rule(|_| Reply::grpc(Code::InvalidArgument, "not today"));
    let ended = relay_until_idle(&database, &receiver);
    assert_eq!(ended.code, Some(3));
    let line = plain(ended.stderr.lines().last().unwrap_or_default(), &database);
    insta::assert_snapshot!(line, @r#"error: the receiver does not take what is left; all is kept: traces to http://RECEIVER (grpc): INVALID_ARGUMENT: "not today""#);
    assert_eq!(database.sql("SELECT sum(items), count(dead) FROM runspan.outbox"), "100|0");
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay_until_idle(&database, &receiver).code, Some(0));
    assert_eq!(receiver.requests().iter().map(spans).sum::<usize>(), 100);
}

/// How many spans a request holds.
fn spans(request: &crate::receiver::Received) -> usize {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message as _;
    let request = ExportTraceServiceRequest::decode(request.body.clone()).unwrap();
    request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|scope| scope.spans.len()).sum()
}

/// A listing without times, ids and sizes.
fn listing(text: &str, database: &Database) -> String {
    let text = plain(text, database);
    let changing = regex::Regex::new(r"\d{4}-\d\d-\d\dT\S+Z|\b\d{2,}\b").unwrap();
    let lines = text.lines().map(|line| changing.replace_all(line, "…").into_owned());
    lines.collect::<Vec<_>>().join("\n")
}
