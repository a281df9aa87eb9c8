//! What an operator reads when the receiver is not as it should be. Nothing is lost meanwhile, and nothing is doubled.

use std::collections::BTreeSet;
use std::process::Command;

use runspan::otlp::Signal;
use runspan::otlp::config::Protocol;

use super::collector::{Collector, TOKEN};
use super::database::Database;
use super::output::{Record, Span, items};
use super::process::Process;
use super::{plain, relay, wait_for};
use crate::receiver::{Authority, Receiver};

/// Runs in the table of each test; none of their telemetry may be lost.
const RUNS: u32 = 3;

const WRONG_TOKEN: &str = "sesame-street";

/// A relay over gRPC.
fn grpc_relay(database: &Database, endpoint: &str) -> Command {
    let mut command = relay(database, endpoint);
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    command
}

/// What a relay complains of; it ends well all the same, and keeps both requests.
fn complaints(database: &Database, command: &mut Command) -> String {
    let mut relay = Process::start(command);
    // One a signal.
    wait_for("complaints about traces, logs and metrics", || {
        assert!(relay.is_running(), "{}", relay.stderr());
        let said = relay.stderr();
        let about = |words: &str| said.lines().any(|line| line.contains("ERROR") && line.contains(words));
        Signal::ALL.iter().all(|signal| about(&format!("{signal} to "))).then_some(())
    });
    let ended = relay.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(WRONG_TOKEN), "{}", ended.stderr);
    assert_eq!(
        database.sql("SELECT channel, sum(items) FROM runspan.outbox GROUP BY 1 ORDER BY 1"),
        "logs|12\ntraces|6"
    );
    of_traces(&plain(&ended.stderr, database))
}

/// The errors about traces: those about logs say the same, and the order of the two is chance.
fn of_traces(stderr: &str) -> String {
    // What hyper reports on the other protocol's port is chance, too: for a try or two perhaps only that the
    // connection broke (a warning), and on a gRPC port one of two errors, after one of which it may be TLS as well.
    let stderr = stderr.replace("; or it requires TLS: write https://", "");
    let mut lines: Vec<_> = stderr.lines().filter(|line| line.starts_with("ERROR traces")).collect();
    lines.dedup();
    lines.join("\n")
}

/// Everything arrives, once.
fn arrives(collector: &mut Collector, command: &mut Command, runs: u32) {
    let ended = Process::start(command.arg("--until-idle")).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    collector.go_away();
    let spans: Vec<Span> = items(&collector.lines("traces"));
    let records: Vec<Record> = items(&collector.lines("logs"));
    assert_eq!((spans.len(), records.len()), (2 * runs as usize, 4 * runs as usize));
}

fn with_runs() -> Database {
    let database = Database::attached();
    database.write_runs(RUNS);
    database
}

#[test]
fn the_other_protocol_on_that_port_is_said_and_nothing_is_lost() {
    let (database, mut collector) = (with_runs(), Collector::start());
    let said = complaints(&database, &mut relay(&database, &collector.grpc()));
    insta::assert_snapshot!(said, @"ERROR traces to http://RECEIVER/v1/traces (http/protobuf): this looks like a gRPC port: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc, or use the receiver's HTTP port in OTEL_EXPORTER_OTLP_ENDPOINT (usually 4318) retry_in_ms=…");
    let said = complaints(&database, &mut grpc_relay(&database, &collector.http()));
    insta::assert_snapshot!(said, @"ERROR traces to http://RECEIVER (grpc): this looks like an HTTP port: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, or use the receiver's gRPC port in OTEL_EXPORTER_OTLP_ENDPOINT (usually 4317) retry_in_ms=…");
    let mut right = grpc_relay(&database, &collector.grpc());
    arrives(&mut collector, &mut right, RUNS);
}

#[test]
fn a_wrong_token_is_said_without_the_token() {
    let database = with_runs();
    let mut collector = Collector::with(&["collector.yaml", "collector-bearer.yaml"]);
    let header = |token: &str| format!("authorization=Bearer%20{token}");
    let variable = "OTEL_EXPORTER_OTLP_HEADERS";
    let said = complaints(&database, relay(&database, &collector.http()).env(variable, header(WRONG_TOKEN)));
    insta::assert_snapshot!(said, @r#"ERROR traces to http://RECEIVER/v1/traces (http/protobuf): HTTP 401 Unauthorized, the credentials are missing or wrong, check OTEL_EXPORTER_OTLP_TRACES_HEADERS: "provided authorization does not match expected scheme or token" retry_in_ms=…"#);
    let said =
        complaints(&database, grpc_relay(&database, &collector.grpc()).env(variable, header(WRONG_TOKEN)));
    insta::assert_snapshot!(said, @r#"ERROR traces to http://RECEIVER (grpc): UNAUTHENTICATED, the credentials are missing or wrong, check OTEL_EXPORTER_OTLP_TRACES_HEADERS: "provided authorization does not match expected scheme or token" retry_in_ms=…"#);
    let said = complaints(&database, &mut relay(&database, &collector.http()));
    insta::assert_snapshot!(said, @r#"ERROR traces to http://RECEIVER/v1/traces (http/protobuf): HTTP 401 Unauthorized, the credentials are missing or wrong, check OTEL_EXPORTER_OTLP_TRACES_HEADERS: "missing or empty authorization header: Authorization" retry_in_ms=…"#);
    let mut right = relay(&database, &collector.http());
    arrives(&mut collector, right.env(variable, header(TOKEN)), RUNS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_said() {
    let database = with_runs();
    let authority = Authority::new();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let receiver = Receiver::start(protocol, Some(authority.server())).await;
        let relay = || {
            let mut command = relay(&database, &receiver.endpoint());
            command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_string());
            command
        };
        let said = complaints(&database, &mut relay());
        if protocol == Protocol::Grpc {
            insta::assert_snapshot!(said, @r#"ERROR traces to https://RECEIVER (grpc): the receiver's certificate is not trusted, set OTEL_EXPORTER_OTLP_CERTIFICATE to a PEM file with the certificate of the authority that signed it: "invalid peer certificate: UnknownIssuer" retry_in_ms=…"#);
        } else {
            insta::assert_snapshot!(said, @r#"ERROR traces to https://RECEIVER/v1/traces (http/protobuf): the receiver's certificate is not trusted, set OTEL_EXPORTER_OTLP_CERTIFICATE to a PEM file with the certificate of the authority that signed it: "invalid peer certificate: UnknownIssuer" retry_in_ms=…"#);
            let mut trusting = relay();
            trusting.env("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.ca_file()).arg("--until-idle");
            let ended = Process::start(&mut trusting).wait();
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let signals: BTreeSet<Signal> =
                receiver.requests().iter().map(|request| request.signal).collect();
            assert_eq!(signals, Signal::ALL.into());
        }
    }
}

#[test]
fn without_a_logs_pipeline_traces_pass_and_logs_are_kept() {
    let mut collector = Collector::with(&["collector-traces-only.yaml"]);
    for (grpc, runs) in [(false, 1), (true, 2)] {
        let database = with_runs();
        let mut command =
            if grpc { grpc_relay(&database, &collector.grpc()) } else { relay(&database, &collector.http()) };
        let mut relay = Process::start(&mut command);
        relay.wait_to_say("the receiver does not accept logs");
        let sent = || (collector.lines("traces").len() == runs).then_some(());
        wait_for("traces", sent);
        wait_for("acknowledgement of the traces", || {
            (database.sql("SELECT channel, items FROM runspan.outbox") == "logs|12").then_some(())
        });
        let ended = relay.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let said = plain(&ended.stderr, &database);
        let said = said.lines().find(|line| line.contains("ERROR logs")).unwrap_or_default();
        if grpc {
            insta::assert_snapshot!(said, @r#"ERROR logs to http://RECEIVER (grpc): UNIMPLEMENTED, the receiver does not accept logs over gRPC, add a logs pipeline to the receiver or check OTEL_EXPORTER_OTLP_ENDPOINT: "unknown service opentelemetry.proto.collector.logs.v1.LogsService" retry_in_ms=…"#);
        } else {
            insta::assert_snapshot!(said, @r#"ERROR logs to http://RECEIVER/v1/logs (http/protobuf): HTTP 404 Not Found, the receiver does not accept logs, check the path in OTEL_EXPORTER_OTLP_ENDPOINT or add a logs pipeline to the receiver: "404 page not found" retry_in_ms=…"#);
        }
    }
    collector.go_away();
    let spans: Vec<Span> = items(&collector.lines("traces"));
    assert_eq!(spans.len(), 4 * RUNS as usize);
}

#[test]
fn a_request_too_large_for_the_receiver_is_halved_until_it_fits() {
    let runs = 1_000;
    let database = Database::attached();
    let smaller = "yaml:receivers::otlp::protocols::grpc::max_recv_msg_size_mib: 1";
    let mut collector = Collector::with(&["collector.yaml", smaller]);
    // Long ids: what a request holds is then far above that mebibyte.
    database.write_runs_with(runs, "'triage'", "repeat('x', 200)");
    let mut command = grpc_relay(&database, &collector.grpc());
    let mut relay = Process::start(&mut command);
    relay.wait_to_say("trying its halves");
    assert_eq!(relay.terminate().code, Some(0));
    arrives(&mut collector, &mut command, runs);
}
