//! Relays behind a pooler that lends a connection for a transaction at a time.

use super::collector::Collector;
use super::database::Database;
use super::pooler::Pooler;
use super::process::{Process, runspan};
use super::wait_for;

#[test]
fn relays_work_where_each_transaction_has_another_connection() {
    let (database, collector) = (Database::attached(), Collector::start());
    let pooler = Pooler::start(database.url());
    let relay = || {
        let url = format!("{}&statement-cache-capacity=0", pooler.url());
        let mut command = runspan(&["relay", "--lease", "6s", "--database-url", &url]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http()).env("OTEL_SERVICE_NAME", "shop");
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
        Process::start(&mut command)
    };
    // One works, the other looks at the lease: on the same four connections.
    let relays = [relay(), relay()];
    for round in 1..=20 {
        database.write_runs(10);
        wait_for("delivery", || {
            (database.number("SELECT count(*) FROM runspan.open_runs") == 0).then_some(())
        });
        wait_for("all spans", || {
            let spans: usize =
                collector.lines("traces").iter().map(|line| line.matches("\"spanId\"").count()).sum();
            (spans >= round * 20).then_some(())
        });
    }
    for relay in relays {
        let ended = relay.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!ended.stderr.contains("WARN") && !ended.stderr.contains("ERROR"), "{}", ended.stderr);
    }
}

/// A relay that was not told of the pooler, on connections that the application shares.
#[test]
fn no_setting_of_a_relay_stays_on_a_connection() {
    let (database, collector) = (Database::attached(), Collector::start());
    let pooler = Pooler::start(database.url());
    for options in ["", "&statement-cache-capacity=0"] {
        let url = format!("{}{options}", pooler.url());
        let mut command = runspan(&["relay", "--until-idle", "--database-url", &url]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http()).env("OTEL_SERVICE_NAME", "shop");
        // Whatever comes of it: without the option statements are mixed up.
        Process::start(&mut command).wait();
        for _ in 0..8 {
            let mut application = std::process::Command::new("psql");
            application.args(["-XAtq", "-d", pooler.url(), "-c", "SELECT count(*) FROM workflow_runs"]);
            let counted = Process::start(&mut application).wait();
            assert_eq!(counted.stdout.trim(), "0", "it finds its table: {}", counted.stderr);
        }
    }
}
