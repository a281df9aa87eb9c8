//! `PgBouncer`, which lends a connection to whoever has a transaction.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use tempfile::TempDir;

use super::collector::free_ports;
use super::process::Process;
use super::{service, wait_for};

pub struct Pooler {
    url: String,
    port: u16,
    _process: Process,
    _home: TempDir,
}

impl Pooler {
    /// In front of a database. It has fewer connections than a relay has, so that they are shared.
    pub fn start(database: &str) -> Self {
        let database = url::Url::parse(database).unwrap();
        let (port, name) = (database.port().unwrap(), database.path().trim_start_matches('/'));
        let [listens] = free_ports();
        let home = tempfile::tempdir().unwrap();
        let configuration = home.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n{name} = host=127.0.0.1 port={port} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listens}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 100\nserver_login_retry = 1\n\
             server_round_robin = 1\nignore_startup_parameters = extra_float_digits\n"
        );
        fs::write(&configuration, text).unwrap();
        let mut command = Command::new(service("RUNSPAN_TEST_PGBOUNCER"));
        if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
            command.args(["-u", "postgres"]);
        }
        let mut process = Process::start(command.arg(configuration));
        wait_for("PgBouncer", || {
            assert!(process.is_running(), "{}", process.stderr());
            TcpStream::connect(("127.0.0.1", listens)).ok()
        });
        let url = format!("postgres://postgres@127.0.0.1:{listens}/{name}?sslmode=disable");
        Self { url, port: listens, _process: process, _home: home }
    }

    /// The database's URL through it.
    #[allow(dead_code, reason = "tests/chaos has something in between")]
    pub fn url(&self) -> &str {
        &self.url
    }

    #[allow(dead_code, reason = "for tests/chaos")]
    pub const fn port(&self) -> u16 {
        self.port
    }
}
