//! The gateway of collector/gateway.yaml, alone and with what may be laid over it: a real Collector between the client
//! that runspan sends with and receivers that answer as they are told. Only its environment differs from production.

mod delivery;
mod files;
mod sampling;
mod span_metrics;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use runspan::otlp::Signal;
use runspan::otlp::answer::Answer;
use runspan::otlp::client::Client;
use runspan::otlp::config::{Protocol, SignalConfig};
use tempfile::TempDir;

use crate::end_to_end::collector::free_ports;
use crate::end_to_end::process::Process;
use crate::end_to_end::{service, wait_for};
use crate::receiver::Receiver;

/// A file of collector/.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("collector").join(name)
}

/// The Collector with gateway.yaml and `overlays`, files of collector/ or `yaml:…`, and with nothing of this process's
/// environment.
fn otelcol(overlays: &[&str]) -> Command {
    let mut command = Command::new(service("RUNSPAN_TEST_OTELCOL"));
    command.env_clear();
    for config in ["gateway.yaml"].iter().chain(overlays) {
        command.arg(match config.strip_prefix("yaml:") {
            Some(_) => format!("--config={config}"),
            None => format!("--config={}", file(config).display()),
        });
    }
    command
}

/// What stands behind a gateway.
pub(crate) struct Backends {
    tempo: Receiver,
    prometheus: Receiver,
    loki: Receiver,
}

impl Backends {
    pub(crate) async fn start() -> Self {
        Self {
            tempo: Receiver::http().await,
            prometheus: Receiver::http().await,
            loki: Receiver::http().await,
        }
    }

    fn each(&mut self) -> [&mut Receiver; 3] {
        [&mut self.tempo, &mut self.prometheus, &mut self.loki]
    }

    fn of(&self, signal: Signal) -> &Receiver {
        match signal {
            Signal::Traces => &self.tempo,
            Signal::Metrics => &self.prometheus,
            Signal::Logs => &self.loki,
        }
    }

    /// Every span that has arrived.
    fn spans(&self) -> Vec<Span> {
        let requests = self.tempo.requests();
        let resources = requests.iter().flat_map(|request| request.traces().resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

/// A gateway that runs.
pub(crate) struct Gateway {
    process: Option<Process>,
    overlays: &'static [&'static str],
    variables: Vec<(String, String)>,
    grpc: u16,
    http: u16,
    health: u16,
    telemetry: u16,
    queue: TempDir,
}

impl Gateway {
    pub(crate) fn start(
        backends: &Backends,
        overlays: &'static [&'static str],
        variables: &[(&str, &str)],
    ) -> Self {
        let [grpc, http, health, telemetry] = free_ports();
        let endpoints = [
            ("TEMPO_ENDPOINT", backends.tempo.endpoint()),
            ("PROMETHEUS_ENDPOINT", backends.prometheus.endpoint() + "/api/v1/otlp"),
            ("LOKI_ENDPOINT", backends.loki.endpoint() + "/otlp"),
        ];
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let mut gateway = Self {
            process: None,
            overlays,
            variables: endpoints
                .into_iter()
                .chain(variables)
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            grpc,
            http,
            health,
            telemetry,
            queue: tempfile::tempdir().unwrap(),
        };
        gateway.come_back();
        gateway
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(&mut self) {
        let ended = self.process.take().expect("it runs").terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    /// Starts again, on the same ports and with the same queue.
    pub(crate) fn come_back(&mut self) {
        let mut process = Process::start(&mut self.command());
        wait_for("gateway", || {
            assert!(process.is_running(), "{}", process.stderr());
            get(self.health, "/").map(drop)
        });
        self.process = Some(process);
    }

    fn command(&self) -> Command {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command = otelcol(self.overlays);
        command
            .env("OTLP_GRPC_LISTEN", local(self.grpc))
            .env("OTLP_HTTP_LISTEN", local(self.http))
            .env("HEALTH_LISTEN", local(self.health))
            .env("TELEMETRY_HOST", "127.0.0.1")
            .env("TELEMETRY_PORT", self.telemetry.to_string())
            .env("QUEUE_DIRECTORY", self.queue.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Its OTLP/HTTP endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    fn client(&self, signal: Signal, protocol: Protocol) -> Client {
        let port = if protocol == Protocol::Grpc { self.grpc } else { self.http };
        let variable = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://127.0.0.1:{port}")),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_string()),
            _ => None,
        };
        Client::new(&SignalConfig::from_env(signal, &variable).unwrap().unwrap()).unwrap()
    }

    /// Sends what has to be acknowledged.
    async fn take(&self, signal: Signal, request: &impl Message) {
        let answer =
            self.client(signal, Protocol::HttpProtobuf).send(Bytes::from(request.encode_to_vec())).await;
        assert!(matches!(answer, Answer::Accepted { rejected: 0, .. }), "{answer:?}");
    }

    /// What it tells of itself.
    fn telemetry(&self) -> String {
        wait_for("telemetry", || get(self.telemetry, "/metrics"))
    }
}

/// The body of an answer of 200.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// A request of one resource.
fn traces(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope = ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() };
    let spans =
        ResourceSpans { resource: Some(resource()), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn resource() -> Resource {
    Resource { attributes: vec![text("service.name", "shop")], ..Resource::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "runspan".to_owned(), ..InstrumentationScope::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}
