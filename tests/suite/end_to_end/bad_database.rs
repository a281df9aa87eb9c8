//! What an operator reads when the database is not as it should be: one clear line, and an exit code.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::collector::free_ports;
use super::database::Database;
use super::process::{Ended, Process, runspan};
use super::{outcome, relay, wait_for};

/// Runs a command to its end.
fn run(arguments: &[&str]) -> Ended {
    Process::start(&mut runspan(arguments)).wait()
}

#[test]
fn a_url_that_names_no_database_is_a_usage_error_and_is_not_repeated() {
    let database = Database::empty();
    let outcome = |url| outcome(&run(&["relay", "--database-url", url]), &database);
    insta::assert_snapshot!(outcome("mysql://app:open-sesame@db/orders"), @r#"
    exit code 2
    error: unknown database URL scheme "mysql" (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)
    "#);
    insta::assert_snapshot!(outcome("open-sesame"), @r"
    exit code 2
    error: the database URL has no scheme (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)
    ");
}

#[test]
fn a_database_that_is_away_is_waited_for() {
    let database = Database::attached();
    let [port] = free_ports();
    let nowhere = format!("postgres://postgres@127.0.0.1:{port}/{}", database.name());
    let mut relay = Process::start(&mut runspan(&["relay", "--database-url", &nowhere]));
    wait_for("an attempt", || {
        assert!(relay.is_running());
        relay.stderr().contains("WARN").then_some(())
    });
    let ended = relay.terminate();
    let here = |text: &str| text.replace(&format!("127.0.0.1:{port}"), "HOST");
    insta::assert_snapshot!(here(&outcome(&ended, &database)), @r"
    exit code 0
    INFO relaying database=postgres://RECEIVER/DATABASE
    WARN cannot reach the database: connection refused; is it running, are host and port right? retry_in_ms=…
    INFO stopping: finishing the current batch
    ");

    let ended = run(&["relay", "--database-url", &nowhere, "--until-idle"]);
    insta::assert_snapshot!(here(&outcome(&ended, &database)), @r"
    exit code 4
    error: postgres://RECEIVER/DATABASE: cannot reach the database: connection refused; is it running, are host and port right?
    ");
}

#[test]
fn a_database_that_goes_away_is_waited_for() {
    let database = Database::attached();
    let mut relay = Process::start(&mut relay(&database, "http://127.0.0.1:9"));
    relay.wait_to_say("took the lease");
    // As when the server restarts: every connection ends, and for a while there is no new one.
    let server = super::service("RUNSPAN_TEST_POSTGRES_URL");
    let outage = |allow: bool| {
        let name = database.name();
        let sql = format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS {allow};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        let mut psql = std::process::Command::new("psql");
        let ended = Process::start(psql.args(["-Xq", "-d", &server, "-c", &sql])).wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    outage(false);
    relay.wait_to_say("not currently accepting connections");
    outage(true);
    let leases = || relay.stderr().matches("took the lease").count();
    wait_for("the lease anew", || (leases() >= 2).then_some(()));
    relay.wait_to_say("database is usable again");
    let ended = relay.terminate();
    assert_eq!(ended.code, Some(0));
    // However many attempts there were.
    let causes = ended.stderr.lines().filter(|line| line.contains("not currently accepting connections"));
    assert_eq!(causes.count(), 1, "{}", ended.stderr);
    let last =
        ended.stderr.lines().find(|line| line.contains("database is usable again")).expect("it is said");
    assert!(last.contains("INFO") && last.contains("outage_ms=") && last.contains("attempts="), "{last}");
}

#[test]
fn wrong_credentials_end_the_relay_and_no_password_is_shown() {
    let database = Database::attached();
    for (password, name) in [("sesame%20street", database.name()), ("open%20sesame", database.name())] {
        let url = format!("postgres://guarded:{password}@{}/{name}", database.address());
        let ended = run(&["relay", "--database-url", &url]);
        assert!(!ended.stderr.contains("sesame"), "{}", ended.stderr);
        if password == "sesame%20street" {
            insta::assert_snapshot!(outcome(&ended, &database), @r#"
            exit code 1
            INFO relaying database=postgres://HOST/DATABASE
            error: postgres://HOST/DATABASE: the database says: password authentication failed for user "guarded"
            "#);
        } else {
            insta::assert_snapshot!(outcome(&ended, &database), @r"
            exit code 1
            INFO relaying database=postgres://HOST/DATABASE
            error: postgres://HOST/DATABASE: the database says: permission denied for schema runspan; role guarded lacks GRANT USAGE ON SCHEMA runspan TO guarded; GRANT SELECT ON runspan.meta, runspan.stuck TO guarded; GRANT SELECT, UPDATE ON runspan.lease TO guarded; GRANT SELECT, DELETE ON runspan.journal TO guarded; GRANT SELECT, INSERT, DELETE ON runspan.set_aside, runspan.commits, runspan.deltas TO guarded; GRANT SELECT, INSERT, UPDATE ON runspan.series TO guarded; GRANT SELECT, INSERT, UPDATE, DELETE ON runspan.open_runs, runspan.outbox TO guarded; GRANT SELECT ON SEQUENCE runspan.journal_skipped TO guarded; GRANT USAGE ON SEQUENCE runspan.outbox_id_seq TO guarded; GRANT EXECUTE ON FUNCTION runspan.missed_runs(), runspan.adopt(uuid[]), runspan.catch_up(), runspan.make_room() TO guarded; GRANT EXECUTE ON FUNCTION runspan.bring_forward TO guarded; GRANT EXECUTE ON FUNCTION runspan.in_flight(), runspan.stuck_runs() TO guarded; `runspan attach --table 'public.workflow_runs' --relay-role 'guarded'` grants all of it
            ");
        }
    }
    // The same from the environment.
    let url = format!("postgres://guarded:sesame%20street@{}/{}", database.address(), database.name());
    let ended = Process::start(runspan(&["relay", "--until-idle"]).env("DATABASE_URL", &url)).wait();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(!ended.stderr.contains("sesame"), "{}", ended.stderr);
}

#[test]
fn a_password_that_is_not_percent_encoded_is_refused_and_no_part_of_it_is_shown() {
    let database = Database::empty();
    for url in [
        "postgres://owner:S3@cr/et@127.0.0.1:1/app",
        "postgres://owner:12/S3cret@127.0.0.1:1/app",
        "postgres://owner:12?S3cret@127.0.0.1:1/app",
        "postgres://owner:12?host=S3cret@127.0.0.1:1/app",
        "postgres://owner:12#S3cret@127.0.0.1:1/app",
        "postgres://owner:S3@cret@127.0.0.1:1/app",
        "postgres://owner:S3%cret@127.0.0.1:1/app",
        "postgres://owner:S3\ncret@127.0.0.1:1/app",
    ] {
        for command in ["attach", "detach", "relay", "outbox", "stuck", "demo"] {
            let mut command = runspan(&[command, "--database-url", url]);
            // Whatever a library logs of it.
            let ended = Process::start(command.env("RUST_LOG", "trace")).wait();
            assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{url}");
            insta::allow_duplicates! {
                insta::assert_snapshot!(outcome(&ended, &database), @r"
                exit code 2
                error: the database URL holds a reserved character that is not percent-encoded: write @ as %40, / as %2F, ? as %3F, # as %23, % as %25, or leave the password out and set PGPASSWORD or PGPASSFILE (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)
                ");
            }
        }
        let ended =
            Process::start(runspan(&["relay"]).env("DATABASE_URL", url).env("RUST_LOG", "trace")).wait();
        assert!(ended.stderr.starts_with("error: the database URL holds a reserved"), "{}", ended.stderr);
    }
    // No option before the URL, and a URL that the shell has split.
    for arguments in [
        &["relay", "postgres://owner:S3cret@127.0.0.1:1/app"][..],
        &["postgres://owner:S3@cr/et@127.0.0.1:1/app"],
        &["relay", "--database-url", "postgres://owner:S3", "cr", "et@127.0.0.1:1/app"],
    ] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(outcome(&run(arguments), &database), @r"
            exit code 2
            error: there is a wrong argument, which is not repeated as it may hold a password: write --database-url 'URL', with the quotes, or set DATABASE_URL (see --help)
            ");
        }
    }
}

#[test]
fn a_user_that_is_percent_encoded_is_taken_as_it_is_meant() {
    let database = Database::empty();
    let url = format!("postgres://a%3Ab%2Fc%23@{}/{}", database.address(), database.name());
    insta::assert_snapshot!(outcome(&run(&["outbox", "--database-url", &url]), &database), @r#"
    exit code 1
    error: postgres://HOST/DATABASE: the database says: role "a:b/c#" does not exist
    "#);
}

#[test]
fn what_a_library_logs_shows_no_password() {
    let database = Database::empty();
    let home = tempfile::tempdir().unwrap();
    let file = password_file(home.path(), "passwords", "S3cret\n");
    for (parameters, code) in [("", 1), ("?sslpassword=S3cret&passfile=S3cret", 2)] {
        let url = format!("{}{parameters}", database.url());
        let mut command = runspan(&["outbox", "--database-url", &url]);
        let ended = Process::start(command.env("PGPASSFILE", &file).env("RUST_LOG", "trace")).wait();
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(!ended.stderr.contains("S3cret"), "{}", ended.stderr);
    }
}

/// A file of passwords as PostgreSQL's clients take it: for its owner alone.
fn password_file(directory: &Path, name: &str, lines: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_password_comes_from_the_environment_too() {
    let database = Database::attached();
    database.sql(
        "GRANT USAGE ON SCHEMA runspan TO guarded;
         GRANT SELECT ON ALL TABLES IN SCHEMA runspan TO guarded;
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA runspan TO guarded",
    );
    let url = format!("postgres://guarded@{}/{}", database.address(), database.name());
    let end = |variables: &[(&str, &OsStr)]| {
        let mut command = runspan(&["outbox", "--database-url", &url]);
        Process::start(command.envs(variables.iter().copied())).wait()
    };
    let (host, port) = database.address().split_once(':').unwrap();
    let home = tempfile::tempdir().unwrap();
    let line = format!("{host}:{port}:*:guarded:open sesame\n");
    let named = password_file(home.path(), "passwords", &line);
    password_file(home.path(), ".pgpass", &line);
    let nobody = home.path().join("nobody");

    for variables in [
        &[("PGPASSWORD", OsStr::new("open sesame"))][..],
        &[("PGPASSFILE", named.as_os_str()), ("HOME", nobody.as_os_str())],
        &[("HOME", home.path().as_os_str())],
    ] {
        let ended = end(variables);
        assert_eq!(ended.code, Some(0), "{variables:?}: {}", ended.stderr);
    }
    for variables in [
        &[("HOME", nobody.as_os_str())][..],
        &[("PGPASSWORD", OsStr::new("sesame street")), ("HOME", home.path().as_os_str())],
    ] {
        let ended = end(variables);
        assert_eq!(ended.code, Some(1), "{variables:?}: {}", ended.stderr);
        assert!(
            ended.stderr.ends_with("password authentication failed for user \"guarded\"\n"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn what_is_not_there_is_named() {
    let database = Database::empty();
    let missing = database.url().replace(database.name(), "no_such_database");
    insta::assert_snapshot!(outcome(&run(&["relay", "--database-url", &missing]), &database), @r#"
    exit code 1
    INFO relaying database=postgres://HOST/no_such_database
    error: postgres://HOST/no_such_database: the database says: database "no_such_database" does not exist
    "#);
    let outcome_of = |command: &str| outcome(&run(&[command, "--database-url", database.url()]), &database);
    insta::assert_snapshot!(outcome_of("relay"), @r"
    exit code 1
    INFO relaying database=postgres://HOST/DATABASE
    error: runspan is not attached to this database: run `runspan attach --database-url …` first
    ");
    insta::assert_snapshot!(outcome_of("outbox"), @r"
    exit code 1
    error: runspan is not attached to this database: run `runspan attach --database-url …` first
    ");
    insta::assert_snapshot!(outcome_of("attach"), @r#"
    exit code 1
    error: there is no table workflow_runs in database "DATABASE": create it, or name yours with --table SCHEMA.TABLE
    "#);
    database.file("sql/workflow_runs.sql");
    database.sql("ALTER TABLE workflow_runs DROP delivery_id; ALTER TABLE workflow_runs DROP state");
    insta::assert_snapshot!(outcome_of("attach"), @r"
    exit code 1
    error: public.workflow_runs lacks the columns delivery_id, state: see docs/table.md
    ");
    database.sql("ALTER TABLE workflow_runs ALTER target_number TYPE text, ALTER updated_at TYPE text");
    insta::assert_snapshot!(outcome_of("attach"), @r"
    exit code 1
    error: public.workflow_runs lacks the columns delivery_id, state: see docs/table.md; public.workflow_runs.updated_at has the type text, and has to be timestamp with time zone; public.workflow_runs.target_number has the type text, and has to be integer or bigint or smallint or numeric
    ");
    database.sql("ALTER TABLE workflow_runs ALTER target_number TYPE bigint USING target_number::bigint");
    database.sql("ALTER TABLE workflow_runs ALTER updated_at TYPE timestamptz USING updated_at::timestamptz");
    database.sql("ALTER TABLE workflow_runs ADD delivery_id text; ALTER TABLE workflow_runs ADD state text");
    insta::assert_snapshot!(outcome_of("attach"), @r"
    exit code 1
    error: public.workflow_runs.state has the type text, and has to be jsonb or json
    ");
}

#[test]
fn a_schema_from_the_future_is_left_alone() {
    let database = Database::attached();
    database.sql("UPDATE runspan.meta SET version = 99");
    for command in ["relay", "outbox", "attach"] {
        let ended = run(&[command, "--database-url", database.url()]);
        assert_eq!(ended.code, Some(1), "{command}");
        assert!(ended.stderr.ends_with("install a newer runspan\n"), "{command}: {}", ended.stderr);
    }
    let ended = run(&["relay", "--database-url", database.url(), "--until-idle"]);
    insta::assert_snapshot!(outcome(&ended, &database), @r"
    exit code 1
    error: the runspan schema has version 99, this program knows 3: install a newer runspan
    ");
}
