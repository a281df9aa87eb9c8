//! A database for one test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::process::{Process, runspan};
use super::{service, test_file};

/// A database of its own, dropped at the end.
pub struct Database {
    name: String,
    url: String,
    /// Where it was made; none if it was there already, and stays.
    server: Option<String>,
}

impl Database {
    /// With nothing in it.
    pub fn empty() -> Self {
        let server = service("RUNSPAN_TEST_POSTGRES_URL");
        let name = format!("e2e_{}", uuid::Uuid::now_v7().simple());
        let (host, _) = server.rsplit_once('/').expect("the URL names a database");
        let url = format!("{host}/{name}");
        output(psql(&server).args(["-c", &format!("CREATE DATABASE {name}")]));
        Self { name, url, server: Some(server) }
    }

    /// One that is there.
    #[allow(dead_code, reason = "for tests/chaos")]
    pub fn at(url: &str) -> Self {
        let (_, name) = url.rsplit_once('/').expect("the URL names a database");
        Self { name: name.to_owned(), url: url.to_owned(), server: None }
    }

    /// With the application's table.
    pub fn with_runs() -> Self {
        let database = Self::empty();
        database.file("sql/workflow_runs.sql");
        database
    }

    /// With the application's table, and runspan attached to it.
    pub fn attached() -> Self {
        let database = Self::with_runs();
        let attached = Process::start(&mut runspan(&["attach", "--database-url", &database.url])).wait();
        assert_eq!(attached.code, Some(0), "{}", attached.stderr);
        database
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        let (_, host) = self.url.split_once('@').expect("the URL names a role");
        host.split_once('/').expect("the URL names a database").0
    }

    /// What psql prints for `sql`, without headers.
    pub fn sql(&self, sql: &str) -> String {
        output(psql(&self.url).args(["-c", sql])).trim_end().to_owned()
    }

    pub fn number(&self, sql: &str) -> i64 {
        let text = self.sql(sql);
        text.parse().unwrap_or_else(|_| panic!("{sql} gave {text:?}"))
    }

    /// The rows of a query.
    pub fn rows<T: serde::de::DeserializeOwned>(&self, query: &str) -> Vec<T> {
        let rows = self.sql(&format!("SELECT row_to_json(q) FROM ({query}) q"));
        rows.lines().map(|row| serde_json::from_str(row).unwrap_or_else(|e| panic!("{e}: {row}"))).collect()
    }

    /// Runs a script under tests/.
    pub fn file(&self, name: &str) {
        output(psql(&self.url).arg("-f").arg(test_file(name)));
    }

    /// `count` runs that go well.
    pub fn write_runs(&self, count: u32) {
        self.write_runs_with(count, "'triage'", "NULL");
    }

    /// The same, with these expressions over a run's number `n` as workflow and delivery.
    pub fn write_runs_with(&self, count: u32, workflow_name: &str, delivery_id: &str) {
        self.sql(&format!(
            "INSERT INTO workflow_runs
                 (workflow_name, delivery_id, target_type, target_owner, target_repo, target_number)
                 SELECT {workflow_name}, {delivery_id}, 'issue', 'acme', 'widgets', n
                 FROM generate_series(1, {count}) n;
             UPDATE workflow_runs SET status = 'running' WHERE status = 'queued';
             UPDATE workflow_runs SET status = 'succeeded' WHERE status = 'running'"
        ));
    }

    /// pgbench with `scripts`, each with its weight.
    pub fn pgbench<'a>(&self, scripts: impl IntoIterator<Item = (&'a Path, u32)>) -> Command {
        let mut command = Command::new("pgbench");
        command.args(["--no-vacuum", "--random-seed=20261122"]);
        for (script, weight) in scripts {
            command.arg(format!("--file={}@{weight}", script.display()));
        }
        command.arg(&self.url);
        command
    }

    /// An interactive session.
    pub fn session(&self) -> Session {
        let mut child = psql(&self.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("psql starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Session { child, stdin, stdout: BufReader::new(stdout) }
    }

    /// Ends a lease at once. Only for a holder that is known to be dead: it saves the wait for the term's end.
    pub fn free_the_lease(&self) {
        self.sql("UPDATE runspan.lease SET expires_at = 'epoch'");
    }

    pub fn holder(&self) -> String {
        self.sql("SELECT holder FROM runspan.lease WHERE expires_at > clock_timestamp()")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(server) = &self.server else { return };
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // With the server gone there is nothing to drop.
        let _ = psql(server).args(["-c", &drop]).status();
    }
}

/// A psql that is told what to do step by step.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// Runs statements, and returns once they are done.
    pub fn sql(&mut self, sql: &str) {
        writeln!(self.stdin, "{sql};\n\\echo done").unwrap();
        self.stdin.flush().unwrap();
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "psql has ended at: {sql}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn psql(url: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url]);
    // What a test does itself works while the server is read-only for all others.
    command.env("PGOPTIONS", "-c client_min_messages=warning -c default_transaction_read_only=off");
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: run `make test`"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
