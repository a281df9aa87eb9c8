//! A PostgreSQL server of a seed's own, which is killed and recovers.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::collector::free_ports;
use crate::database::Database;
use crate::process::{Process, runspan};
use crate::{test_file, wait_for};

const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
max_connections = 80
shared_buffers = 16MB
# What a killed process has written is in the kernel's hands: only a machine's crash needs more.
fsync = off
full_page_writes = off
";

/// A data directory with the application's table, the writers' ledger, and runspan attached; each seed has a copy.
pub(crate) struct Template {
    data: PathBuf,
}

impl Template {
    pub(crate) fn make(home: &Path) -> Self {
        let data = home.join("template");
        fs::create_dir(&data).unwrap();
        own(&data);
        let mut initdb = as_postgres("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]);
        run(initdb.args(["--no-sync", "--wal-segsize=1"]));
        let configuration = data.join("postgresql.conf");
        let text = fs::read_to_string(&configuration).unwrap();
        fs::write(&configuration, text + CONFIGURATION).unwrap();
        let mut cluster =
            Cluster { data: data.clone(), log: home.join("template.log"), port: port(), server: None };
        cluster.start();
        Database::at(&cluster.url("postgres")).sql("CREATE DATABASE app");
        let database = Database::at(&cluster.url("app"));
        database.file("sql/workflow_runs.sql");
        database.file("sql/ledger.sql");
        let attached = Process::start(&mut runspan(&["attach", "--database-url", database.url()])).wait();
        assert_eq!(attached.code, Some(0), "{}", attached.stderr);
        cluster.stop();
        Self { data }
    }

    /// A server on a copy of it, under `home`.
    pub(crate) fn copy(&self, home: &Path) -> Cluster {
        let data = home.join("data");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&self.data).arg(&data));
        let mut cluster = Cluster { data, log: home.join("postgres.log"), port: port(), server: None };
        cluster.start();
        cluster
    }
}

pub(crate) struct Cluster {
    data: PathBuf,
    log: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Starts the server, which recovers from what happened to it, and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = as_postgres("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string(), "-k", ""]);
        let server =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.server = Some(server);
        let port = self.port.to_string();
        wait_for("answer of PostgreSQL", || {
            let asked = ["-q", "-h", "127.0.0.1", "-U", "postgres", "-p", &port];
            let ready = Command::new("pg_isready").args(asked).status();
            ready.unwrap().success().then_some(())
        });
    }

    /// SIGKILL for all its processes; the postmaster first, so that it starts no others.
    pub(crate) fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let children = children(server.id());
        server.kill().unwrap();
        server.wait().unwrap();
        for child in &children {
            let _ = Command::new("sh").args(["-c", &format!("kill -s KILL {child} 2>/dev/null")]).status();
        }
        wait_for("end of the backends", || children.iter().all(|child| has_ended(*child)).then_some(()));
    }

    /// A fast shutdown.
    fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        let stopped = Command::new("sh").args(["-c", &format!("kill -s INT {}", server.id())]).status();
        assert!(stopped.unwrap().success());
        assert!(server.wait().unwrap().success(), "see {}", self.log.display());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

fn port() -> u16 {
    let [port] = free_ports();
    port
}

fn children(parent: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Gone, or dead and waiting for someone to notice.
fn has_ended(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// PostgreSQL refuses to be root.
pub(crate) fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = postgres() {
        command.uid(user).gid(group).current_dir("/");
    }
    command
}

/// Gives a directory to PostgreSQL's user.
pub(crate) fn own(directory: &Path) {
    if let Some((user, group)) = postgres() {
        std::os::unix::fs::chown(directory, Some(user), Some(group)).unwrap();
    }
}

/// The ids of the user and group postgres, where this is root.
fn postgres() -> Option<(u32, u32)> {
    static IDS: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *IDS.get_or_init(|| (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"]))))
}

fn id(arguments: &[&str]) -> u32 {
    let output = Command::new("id").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("there is a user postgres")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: run `make chaos`"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A script under tests/ with the application's SQL.
pub(crate) fn load(database: &Database, script: &str) {
    assert!(test_file(script).exists(), "{script}");
    database.file(script);
}
