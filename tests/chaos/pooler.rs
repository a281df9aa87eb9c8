//! `PgBouncer`, which lends a connection to whoever has a transaction.

use std::fs;
use std::net::TcpStream;
use std::path::Path;

use crate::child::Child;
use crate::cluster::{as_postgres, own};
use crate::collector::free_ports;
use crate::{service, wait_for};

pub(crate) struct Pooler {
    port: u16,
    _process: Child,
}

impl Pooler {
    /// In front of the server on `server`. Fewer connections than clients, so that they are shared.
    pub(crate) fn start(server: u16, home: &Path) -> Self {
        let [port] = free_ports();
        let directory = home.join("pgbouncer");
        fs::create_dir(&directory).unwrap();
        own(&directory);
        let configuration = directory.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 100\nserver_login_retry = 1\n\
             ignore_startup_parameters = extra_float_digits\nserver_round_robin = 1\n"
        );
        fs::write(&configuration, text.replace("* = host", "app = user=postgres dbname=app host")).unwrap();
        let mut command = as_postgres(service("RUNSPAN_TEST_PGBOUNCER"));
        let process = Child::start(command.arg(configuration), &home.join("pgbouncer.log"));
        wait_for("PgBouncer", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, _process: process }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }
}
