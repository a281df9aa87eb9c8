//! TLS to the database: a server of the test's own, which takes nothing else.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use runspan::runs;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tempfile::TempDir;

use crate::receiver::Authority;

/// A PostgreSQL with a certificate for `localhost`. It is stopped when it is dropped.
struct Server {
    home: TempDir,
    port: u16,
}

/// initdb and the server refuse to be root.
fn as_postgres(program: &str, arguments: &[&str]) -> Output {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if root {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]);
        command
    } else {
        Command::new(program)
    };
    // What a server inherits of a test it would hold open.
    command.args(arguments).current_dir("/").output().unwrap()
}

impl Server {
    fn start(authority: &Authority) -> Self {
        // A socket's path is short, and the user postgres must be able to reach it.
        let home = tempfile::Builder::new().prefix("runspan-tls.").tempdir_in("/tmp").unwrap();
        let path = |name: &str| home.path().join(name);
        let (certificate, key) = authority.server_files("localhost");
        for (from, to) in
            [(certificate, "server.pem"), (key, "server.key"), (authority.ca_file(), "clients.pem")]
        {
            fs::copy(from, path(to)).unwrap();
        }
        run("chmod", &["600", shown(&path("server.key"))]);
        if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
            run("chown", &["-R", "postgres:", shown(home.path())]);
        }
        let data = path("data");
        let made = as_postgres(
            "initdb",
            &["-D", shown(&data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        );
        assert!(made.status.success(), "{made:?}");
        let rules = "hostssl mutual all 127.0.0.1/32 trust clientcert=verify-ca\nhostssl all all 127.0.0.1/32 trust\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nssl = on\n\
             ssl_cert_file = '{0}/server.pem'\nssl_key_file = '{0}/server.key'\nssl_ca_file = '{0}/clients.pem'\n",
            home.path().display()
        );
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        for _ in 0..5 {
            // Free a moment ago; whoever takes it meanwhile makes this one try another.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let started = as_postgres(
                "pg_ctl",
                &[
                    "-D",
                    shown(&data),
                    "-o",
                    &format!("-p {port}"),
                    "-l",
                    shown(&path("log")),
                    "-w",
                    "-s",
                    "start",
                ],
            );
            if started.status.success() {
                return Self { home, port };
            }
        }
        panic!("PostgreSQL did not start: {}", fs::read_to_string(path("log")).unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.home.path().join("data");
        as_postgres("pg_ctl", &["-D", shown(&data), "-m", "immediate", "-s", "stop"]);
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
}

/// What `runspan outbox` says, or why it cannot.
async fn outbox(url: &str) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runspan"));
    command.arg("outbox").env("DATABASE_URL", url).env("RUST_LOG", "off");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(said) }
}

#[tokio::test]
async fn a_database_that_takes_only_tls() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Server::start(&authority);
    let url = |host: &str, database: &str, options: &str| {
        format!("postgres://postgres@{host}:{}/{database}?{options}", server.port)
    };
    let ca = format!("sslrootcert={}", shown(&authority.ca_file()));
    let full = url("localhost", "postgres", &format!("sslmode=verify-full&{ca}"));
    let mut session = PgConnection::connect(&full).await.unwrap();
    runs::migrate(&mut session).await.unwrap();
    let store = runspan::store::open(&full.parse().unwrap()).unwrap();
    store.attach(&crate::database::plan()).await.unwrap();
    drop(store);
    // What the server asks of a client in this one is a certificate of its authority's.
    let sql = "ALTER DATABASE postgres RENAME TO runs; CREATE DATABASE mutual TEMPLATE runs";
    session.close().await.unwrap();
    let mut admin = PgConnection::connect(&url("localhost", "template1", "sslmode=require")).await.unwrap();
    for sql in sql.split("; ") {
        sqlx::query(sql).execute(&mut admin).await.unwrap();
    }

    let identity = |authority: &Authority| {
        let (certificate, key) = authority.client_files();
        format!("&sslcert={}&sslkey={}", shown(&certificate), shown(&key))
    };
    let plain = std::env::var("RUNSPAN_TEST_POSTGRES_URL").unwrap();
    let mut said = String::new();
    for (what, url) in [
        ("verify-full", url("localhost", "runs", &format!("sslmode=verify-full&{ca}"))),
        ("require, by address", url("127.0.0.1", "runs", "sslmode=require")),
        ("verify-ca, by address", url("127.0.0.1", "runs", &format!("sslmode=verify-ca&{ca}"))),
        ("nothing said", url("localhost", "runs", "")),
        (
            "with a certificate",
            url("localhost", "mutual", &format!("sslmode=verify-full&{ca}{}", identity(&authority))),
        ),
        ("the wrong name", url("127.0.0.1", "runs", &format!("sslmode=verify-full&{ca}"))),
        ("no authority", url("localhost", "runs", "sslmode=verify-full")),
        (
            "another authority",
            url("localhost", "runs", &format!("sslmode=verify-full&sslrootcert={}", shown(&other.ca_file()))),
        ),
        ("no such file", url("localhost", "runs", "sslmode=verify-full&sslrootcert=/nowhere/ca.pem")),
        ("no certificate", url("localhost", "mutual", "sslmode=require")),
        (
            "another's certificate",
            url("localhost", "mutual", &format!("sslmode=require{}", identity(&other))),
        ),
        ("half an identity", url("localhost", "mutual", "sslmode=require&sslcert=/nowhere/client.pem")),
        ("without TLS", url("localhost", "runs", "sslmode=disable")),
        ("a server without TLS", format!("{plain}?sslmode=require")),
    ] {
        let line = outbox(&url).await.unwrap_or_else(|error| error);
        said += &format!("{what}: {}\n", line.trim_end());
    }
    let ports = regex::Regex::new(r":\d{4,5}/").unwrap();
    insta::assert_snapshot!(ports.replace_all(&said, ":PORT/"), @r#"
    verify-full: journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries
    require, by address: journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries
    verify-ca, by address: journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries
    nothing said: journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries
    with a certificate: journal: 0 entries; outbox: 0 waiting (0 B), 0 dead; set aside: 0 entries; skipped: 0 entries
    the wrong name: error: postgres://127.0.0.1:PORT/runs: the database's certificate is for another host name (invalid peer certificate: certificate not valid for name "127.0.0.1"; certificate is only valid for DnsName("localhost")): name the host in the URL as the certificate does, or write sslmode=verify-ca
    no authority: error: postgres://localhost:PORT/runs: the database's certificate is not trusted (invalid peer certificate: UnknownIssuer): name a PEM file with the certificate of the authority that signed it, sslrootcert=FILE in the URL
    another authority: error: postgres://localhost:PORT/runs: the database's certificate is not trusted (invalid peer certificate: UnknownIssuer): name a PEM file with the certificate of the authority that signed it, sslrootcert=FILE in the URL
    no such file: error: postgres://localhost:PORT/runs: a file that the database's URL names does not exist (No such file or directory (os error 2)): check sslrootcert, sslcert, sslkey and the directory of the socket
    no certificate: error: postgres://localhost:PORT/mutual: the database says: connection requires a valid client certificate
    another's certificate: error: postgres://localhost:PORT/mutual: the database does not accept our client certificate (received fatal alert: UnknownCA): check sslcert and sslkey in the URL
    half an identity: error: postgres://localhost:PORT/mutual: TLS to the database cannot be set up (user auth key and certs must be given together): check sslrootcert, sslcert and sslkey in the URL
    without TLS: error: postgres://localhost:PORT/runs: the database says: no pg_hba.conf entry for host "127.0.0.1", user "postgres", database "runs", no encryption
    a server without TLS: error: postgres://127.0.0.1:PORT/postgres: the database does not support TLS, which the URL's sslmode requires: turn it on in the server (ssl = on), or use sslmode=disable on a trusted network
    "#);
}
