//! Live spans: below their run, over both protocols, and what becomes of them when things go wrong.

use runspan_test_support::otlp::hex;
use std::panic;
use std::path::PathBuf;
use std::process::Command;

use opentelemetry_proto::tonic::trace::v1::Span;
use runspan::otlp::config::Protocol;
use runspan::run::RunId;
use runspan::telemetry::{self, Telemetry, TelemetryError};
use runspan::{run_span, traceparent};
use serde_json::Value;
use tonic::Code;
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::receiver::{Authority, Receiver, Reply};

const RUN: &str = "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d";
const ROOT: &str = "f47ac10b-58cc-4372-a567-0e02b2c3d479";

fn ids() -> (RunId, RunId) {
    (RUN.parse().unwrap(), ROOT.parse().unwrap())
}

/// An environment of these variables only.
fn env(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let variables: Vec<_> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    move |wanted| variables.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
}

fn telemetry(protocol: Protocol, endpoint: &str) -> Telemetry {
    let env = env(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.as_str()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_SERVICE_NAME", "executor"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ]);
    Telemetry::from_env(&env).unwrap()
}

/// A handler at work, and the traceparent of a call that it makes.
fn handle() -> String {
    let (run, root) = ids();
    let span = run_span(run, root);
    span.record("otel.name", "triage");
    span.record("workflowName", "triage");
    span.record("target", "acme/widgets#42");
    let _entered = span.enter();
    tracing::info!(labels = 2, "classified");
    tracing::info_span!("fetch").in_scope(|| telemetry::outgoing_traceparent(run, root))
}

/// What a receiver got, in the order of names.
fn spans(receiver: &Receiver) -> Vec<Span> {
    let requests = receiver.requests().into_iter().flat_map(|request| request.traces().resource_spans);
    let mut spans: Vec<_> =
        requests.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect();
    spans.sort_by(|a, b| a.name.cmp(&b.name));
    spans
}

#[tokio::test]
async fn what_a_handler_does_nests_under_its_run() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let receiver = Receiver::start(protocol, None).await;
        let telemetry = telemetry(protocol, &receiver.endpoint());
        let subscriber = crate::scoped::registry().with(telemetry.layer());
        let call = with_default(subscriber, handle);
        telemetry.flush().await.unwrap();

        let [fetch, triage] =
            <[Span; 2]>::try_from(spans(&receiver)).expect("two spans, and no third of the export");
        let (run, root) = ids();
        let of_run = format!("00-{}-{}-03", hex(&triage.trace_id), hex(&triage.parent_span_id));
        assert_eq!(of_run, traceparent(run, root));
        assert_eq!(
            (fetch.trace_id.clone(), &fetch.parent_span_id),
            (triage.trace_id.clone(), &triage.span_id)
        );
        assert_eq!(call, format!("00-{}-{}-03", hex(&fetch.trace_id), hex(&fetch.span_id)));
        assert_eq!(triage.flags & 0x300, 0x300, "its parent is another process's");
        insta::allow_duplicates! {
            insta::assert_snapshot!(attributes(&triage.attributes), @"
            runId=0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d
            target=acme/widgets#42
            trace_id=f47ac10b58cc4372a5670e02b2c3d479
            workflowName=triage
            ");
        }
        assert_eq!(triage.events.iter().map(|event| &event.name).collect::<Vec<_>>(), ["classified"]);

        let request = &receiver.requests()[0];
        assert_eq!(request.headers["x-tenant"], "acme");
        assert!(request.gzipped);
        let resource = request.traces().resource_spans[0].resource.clone().unwrap();
        insta::allow_duplicates! {
            insta::assert_snapshot!(attributes(&resource.attributes), @"
            deployment.environment.name=test
            service.name=executor
            ");
        }
        telemetry.shutdown().await.unwrap();
    }
}

fn attributes(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let mut lines: Vec<_> = attributes
        .iter()
        .map(|attribute| match attribute.value.clone().and_then(|value| value.value) {
            Some(Value::StringValue(text)) => format!("{}={text}", attribute.key),
            other => format!("{}={other:?}", attribute.key),
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn without_a_layer_it_is_an_ordinary_span() {
    let (run, root) = ids();
    assert_eq!(handle(), traceparent(run, root), "without a subscriber");
    let subscriber = crate::scoped::registry();
    assert_eq!(with_default(subscriber, handle), traceparent(run, root));
}

#[tokio::test]
async fn a_receiver_that_restarts_loses_nothing() {
    let receiver = Receiver::grpc().await;
    receiver.script([Reply::grpc(Code::Unavailable, "stopping"), Reply::grpc(Code::Unavailable, "starting")]);
    loses_nothing(&receiver, telemetry(Protocol::Grpc, &receiver.endpoint())).await;

    let receiver = Receiver::http().await;
    receiver.script([Reply::http(503, &[], "starting"), Reply::ResetUnread]);
    loses_nothing(&receiver, telemetry(Protocol::HttpProtobuf, &receiver.endpoint())).await;
}

async fn loses_nothing(receiver: &Receiver, telemetry: Telemetry) {
    with_default(crate::scoped::registry().with(telemetry.layer()), handle);
    telemetry.shutdown().await.unwrap();
    assert_eq!((receiver.attempts(), spans(receiver).len()), (3, 2));
}

#[tokio::test]
async fn a_receiver_that_is_away_costs_its_spans_and_nothing_else() {
    for (protocol, cause) in [
        (Protocol::Grpc, "gRPC code: Unavailable: transport error: tcp connect error"),
        (Protocol::HttpProtobuf, "HTTP export failed: network error"),
    ] {
        let mut receiver = Receiver::start(protocol, None).await;
        receiver.go_away().await;
        let telemetry = telemetry(protocol, &receiver.endpoint());
        with_default(crate::scoped::registry().with(telemetry.layer()), handle);
        let line = telemetry.flush().await.unwrap_err().to_string();
        assert!(line.starts_with("failed to export handler spans: "), "{line}");
        assert!(
            line.contains(&format!("traces to {}", receiver.endpoint())) && line.contains(cause),
            "{line}"
        );

        receiver.come_back().await;
        with_default(crate::scoped::registry().with(telemetry.layer()), handle);
        telemetry.shutdown().await.unwrap();
        assert_eq!(spans(&receiver).len(), 2);
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_does_not_hold_up_the_end() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let receiver = Receiver::start(protocol, None).await;
        receiver.rule(|_| Reply::Hang);
        let endpoint = receiver.endpoint();
        let variables = env(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.as_str()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "200"),
        ]);
        let telemetry = Telemetry::from_env(&variables).unwrap();
        with_default(crate::scoped::registry().with(telemetry.layer()), handle);
        let line = telemetry.shutdown().await.unwrap_err().to_string();
        assert!(line.contains(&format!("({protocol}): no response within 200ms")), "{line}");
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_an_error() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let variables = env(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.as_str()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ]);
        let line = Telemetry::from_env(&variables).unwrap_err().to_string();
        assert!(line.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE names /nowhere/ca.pem"), "{line}");
    }
}

#[test]
fn nothing_is_exported_unless_someone_asks_for_it() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
        &[endpoint, ("OTEL_TRACES_EXPORTER", "none")],
        &[endpoint, ("OTEL_SDK_DISABLED", "TRUE")],
    ] {
        let telemetry = Telemetry::from_env(&env(variables)).unwrap();
        assert!(telemetry.layer::<tracing_subscriber::Registry>().is_none(), "{variables:?}");
    }
    let own = Telemetry::from_env(&env(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.1)])).unwrap();
    assert!(own.layer::<tracing_subscriber::Registry>().is_some());
}

#[test]
fn a_variable_that_cannot_be_meant_is_named() {
    let line = |variables: &[(&str, &str)]| Telemetry::from_env(&env(variables)).unwrap_err().to_string();
    let ratio = line(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")]);
    assert!(ratio.starts_with("OTEL_TRACES_SAMPLER is traceidratio, which decides by bits"), "{ratio}");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318");
    assert!(line(&[endpoint]).starts_with("OTEL_EXPORTER_OTLP_ENDPOINT has no http://"));
    let filter = telemetry::init(&env(&[("RUST_LOG", "info,runspan=loud")])).unwrap_err().to_string();
    assert!(filter.starts_with("RUST_LOG is invalid"), "{filter}");
}

#[tokio::test]
async fn a_receiver_is_believed_by_the_configured_authority() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let authority = Authority::new();
        let receiver = Receiver::start(protocol, Some(authority.server_for_clients())).await;
        let (certificate, key) = authority.client_files();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let variables = env(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.as_str()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint()),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &path(authority.ca_file())),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &path(certificate)),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &path(key)),
        ]);
        let telemetry = Telemetry::from_env(&variables).unwrap();
        with_default(crate::scoped::registry().with(telemetry.layer()), handle);
        telemetry.shutdown().await.unwrap();
        assert_eq!(spans(&receiver).len(), 2);
    }
}

/// Set in a process that a test has started to be what it is about: a subscriber or an environment of a whole process
/// would be that of every test.
const PLAYED: &str = "RUNSPAN_TEST_PLAYS_THE_PROCESS";

fn is_played() -> bool {
    std::env::var_os(PLAYED).is_some()
}

/// The lines of a process that runs one test only, with these variables besides.
async fn lines_of_process(test: &str, variables: &[(&str, &str)]) -> Vec<Value> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("telemetry::{test}"), "--nocapture"])
        .env(PLAYED, "1")
        .env_remove("RUST_BACKTRACE")
        .envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "a panic is a line of the log: {stderr}");
    let lines = stdout.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `opentelemetry-otlp` reads the headers of the process's environment too.
#[tokio::test]
async fn headers_are_sent_once_and_to_their_receiver_only() {
    if is_played() {
        for configured in [true, false] {
            let env =
                |name: &str| std::env::var(name).ok().filter(|_| configured || !name.ends_with("_HEADERS"));
            let telemetry = Telemetry::from_env(&env).unwrap();
            with_default(crate::scoped::registry().with(telemetry.layer()), handle);
            telemetry.shutdown().await.unwrap();
        }
        return;
    }
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let receiver = Receiver::start(protocol, None).await;
        let variables = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.as_str()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20YTpi,x-tenant=acme"),
        ];
        lines_of_process("headers_are_sent_once_and_to_their_receiver_only", &variables).await;
        let [configured, not] = <[_; 2]>::try_from(receiver.requests()).unwrap();
        let values = |name| configured.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("authorization"), ["Basic YTpi"], "{protocol}");
        assert_eq!(values("x-tenant"), ["acme"], "{protocol}");
        assert!(configured.headers["user-agent"].to_str().unwrap().starts_with("runspan/"));
        assert!(!not.headers.contains_key("authorization") && !not.headers.contains_key("x-tenant"));
    }
}

#[tokio::test]
async fn the_log_says_once_that_spans_are_lost_and_once_that_they_no_longer_are() {
    if is_played() {
        let telemetry = telemetry::init(&|name| std::env::var(name).ok()).unwrap();
        for taken in [false, false, true, true] {
            tracing::info_span!("fetch").in_scope(|| {});
            assert_eq!(telemetry.flush().await.is_ok(), taken);
        }
        return;
    }
    let receiver = Receiver::http().await;
    receiver.script([Reply::http(400, &[], "no"), Reply::http(400, &[], "no")]);
    let name = "the_log_says_once_that_spans_are_lost_and_once_that_they_no_longer_are";
    let endpoint = receiver.endpoint();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("RUST_LOG", "info")];
    let lines = lines_of_process(name, &variables).await;
    let [lost, taken] = <[Value; 2]>::try_from(lines).unwrap();
    let lost = lost["message"].as_str().unwrap().replace(&endpoint, "ENDPOINT");
    insta::assert_snapshot!(
        lost,
        @"failed to export handler spans; they are lost: traces to ENDPOINT/v1/traces (http/protobuf): HTTP export failed with status code: 400"
    );
    assert_eq!(taken["message"], "export of handler spans recovered; some were lost");
    assert_eq!((&taken["level"], &taken["lost"]), (&"info".into(), &2.into()));
}

#[tokio::test]
async fn a_process_of_its_own_prints_json_lines_that_name_their_run() {
    if is_played() {
        return play_a_process().await;
    }
    let receiver = Receiver::http().await;
    let lines = lines_of_process(
        "a_process_of_its_own_prints_json_lines_that_name_their_run",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint()), ("RUST_LOG", "warn")],
    )
    .await;
    let [warning, panic] = <[Value; 2]>::try_from(lines).unwrap();
    let [handler] = <[Span; 1]>::try_from(spans(&receiver)).unwrap();
    assert_eq!(warning["level"], "warn");
    assert_eq!(warning["message"], "slow");
    assert_eq!(warning["runId"], RUN);
    assert_eq!(warning["trace_id"], hex(&handler.trace_id));
    assert_eq!(warning["span_id"], hex(&handler.span_id));
    assert_eq!(panic["level"], "error");
    assert_eq!(panic["message"], "panicked: out of paper, password=***");
    assert_eq!(panic["runId"], RUN);
    assert!(panic["place"].as_str().unwrap().starts_with("tests/suite/telemetry.rs:"), "{panic}");
}

async fn play_a_process() {
    let env = |name: &str| std::env::var(name).ok();
    let telemetry = telemetry::init(&env).unwrap();
    assert!(matches!(telemetry::init(&env), Err(TelemetryError::SubscriberSet)));
    let before = panic::take_hook();
    telemetry::log_panics();
    let (run, root) = ids();
    run_span(run, root).in_scope(|| {
        tracing::info!("RUST_LOG keeps this out of the lines");
        tracing::warn!("slow");
        panic::catch_unwind(|| panic!("out of paper, password={}", "hunter2")).unwrap_err();
    });
    panic::set_hook(before);
    telemetry.shutdown().await.unwrap();
}
