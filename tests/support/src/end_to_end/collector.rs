//! The Collector of one test.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use tempfile::TempDir;

use super::process::Process;
use super::{service, test_file, wait_for};

/// The token that tests/collector-bearer.yaml wants.
pub const TOKEN: &str = "open-sesame";

pub struct Collector {
    process: Option<Process>,
    configs: Vec<String>,
    grpc: u16,
    http: u16,
    health: u16,
    output: TempDir,
}

impl Collector {
    /// With tests/collector.yaml.
    pub fn start() -> Self {
        Self::with(&["collector.yaml"])
    }

    /// With these configurations, one laid over the other: files under tests/, or `yaml:…`.
    pub fn with(configs: &[&str]) -> Self {
        let config = |config: &&str| match config.strip_prefix("yaml:") {
            Some(_) => (*config).to_owned(),
            None => test_file(config).display().to_string(),
        };
        let [grpc, http, health] = free_ports();
        let mut collector = Self {
            process: None,
            configs: configs.iter().map(config).collect(),
            grpc,
            http,
            health,
            output: tempfile::tempdir().unwrap(),
        };
        collector.come_back();
        collector
    }

    /// Stops: finishes what it has, writes its files, and closes its ports.
    pub fn go_away(&mut self) {
        let ended = self.process.take().expect("it runs").terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    /// Starts again on the same ports, and appends to the same files.
    pub fn come_back(&mut self) {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command = Command::new(service("RUNSPAN_TEST_OTELCOL"));
        command
            .args(self.configs.iter().map(|config| format!("--config={config}")))
            .env("RUNSPAN_TEST_OTLP_GRPC", local(self.grpc))
            .env("RUNSPAN_TEST_OTLP_HTTP", local(self.http))
            .env("RUNSPAN_TEST_HEALTH", local(self.health))
            .env("RUNSPAN_TEST_OUTPUT", self.output.path())
            .env("RUNSPAN_TEST_TOKEN", TOKEN);
        let mut process = Process::start(&mut command);
        wait_for("Collector", || {
            assert!(process.is_running(), "{}", process.stderr());
            answers_ok(self.health).then_some(())
        });
        self.process = Some(process);
    }

    /// Its OTLP/HTTP endpoint.
    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Its OTLP/gRPC endpoint.
    pub fn grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    /// What it has taken of a signal: a line a request. While it runs, the last line may be on its way.
    pub fn lines(&self, signal: &str) -> Vec<String> {
        let text = fs::read_to_string(self.output.path().join(format!("{signal}.jsonl"))).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }
}

/// Ports that nobody listens on, below those that the kernel hands out: a Collector that is away gets its own back.
pub fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until all are known, so that they differ.
    let held = [(); N].map(|()| {
        let candidates = std::iter::repeat_with(|| 10_000 + uuid::Uuid::new_v4().as_fields().1 % 10_000);
        let mut listeners = candidates.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        listeners.next().expect("the candidates are endless")
    });
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn answers_ok(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
    asked.is_ok() && answer.lines().next().is_some_and(|status| status.contains(" 200 "))
}
