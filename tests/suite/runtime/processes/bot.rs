//! Processes of the example.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::database::{Database, eventually};

/// The example's program, with nothing of this process's environment.
pub(super) fn bot(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.env_clear().args(arguments);
    command
}

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(|deps| deps.parent()).expect("tests are in target/PROFILE/deps");
    let program = target.join("examples/bot");
    assert!(program.exists(), "{} is missing: run `cargo build --example bot`", program.display());
    program
}

/// `bot dispatch`, with a payload on its standard input.
pub(super) fn dispatch(database: &Database, queue: &str, label: &str, payload: &str) -> Output {
    let mut command = bot(&["dispatch", "--label", label]);
    command.env("DATABASE_URL", &database.url).env("REDIS_URL", queue);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(payload.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What GitHub says of an issue.
pub(super) fn payload(number: i64, title: &str, body: &str) -> String {
    let repository = serde_json::json!({"name": "widgets", "owner": {"login": "acme"}});
    let issue = serde_json::json!({"number": number, "title": title, "body": body});
    serde_json::json!({"repository": repository, "issue": issue}).to_string()
}

/// A `bot work` that ends with its test.
pub(super) struct Worker {
    child: Child,
    output: TempDir,
}

impl Worker {
    pub(super) fn start(database: &Database, queue: &str, arguments: &[&str], receiver: &str) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        let mut command = bot(&["work"]);
        command.args(arguments).env("DATABASE_URL", &database.url).env("REDIS_URL", queue);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver).env("OTEL_SERVICE_NAME", "bot");
        let child = command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr")).spawn();
        Self { child: child.unwrap(), output }
    }

    /// Its name, once it has begun.
    pub(super) async fn name(&self) -> String {
        self.says("starting").await["process"].as_str().expect("its name").to_owned()
    }

    /// The first line with this message, once it is there.
    pub(super) async fn says(&self, message: &str) -> Value {
        eventually(message, || async { self.line(message).is_some() }).await;
        self.line(message).expect("lines stay")
    }

    fn line(&self, message: &str) -> Option<Value> {
        self.lines().into_iter().find(|line| line["message"].as_str().unwrap().contains(message))
    }

    /// What it has said. Of a process that was killed the last line may be half a line.
    pub(super) fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output.path().join("stdout")).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    pub(super) fn stderr(&self) -> String {
        fs::read_to_string(self.output.path().join("stderr")).unwrap()
    }

    /// Sends a signal: `TERM`, `STOP`, `CONT`.
    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status();
        assert!(status.unwrap().success());
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("ended", || {
            status = self.child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.expect("it has ended")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.lines();
            let last = lines[lines.len().saturating_sub(5)..].iter().map(|line| format!("{line}\n"));
            eprintln!("--- a worker said:\n{}{}", last.collect::<String>(), self.stderr());
        }
    }
}
