//! What a relay costs: queries while nothing happens, memory while a backlog is drained.

use std::fs;
use std::time::{Duration, Instant};

use super::database::Database;
use super::process::Process;
use super::{relay, wait_for, wait_within};
use crate::receiver::{Receiver, Reply};

/// Runs of the backlog: three entries each.
const BACKLOG: u32 = 100_000;

/// Each has series of its own, of which every batch tells.
const WORKFLOWS: u32 = 1_000;

/// What the relay may take for it, in KiB: the whole of it is some hundreds of MiB as OTLP.
const MOST_MEMORY: u64 = 128 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_asks_the_database_a_few_times_a_second() {
    let (database, receiver) = (Database::attached(), Receiver::http().await);
    let relay = Process::start(&mut relay(&database, &receiver.endpoint()));
    database.write_runs(1);
    receiver.wait_for(2).await;
    // From another database, so that looking does not count.
    let transactions = || {
        let (name, server) = (database.name(), super::service("RUNSPAN_TEST_POSTGRES_URL"));
        let sql = format!("SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'");
        let asked =
            Process::start(std::process::Command::new("psql").args(["-XAtq", "-d", &server, "-c", &sql]));
        asked.wait().stdout.trim().parse::<i64>().unwrap()
    };
    // The server may count what was done before with a delay of ten seconds, so the first windows are not it.
    let asked = wait_for("5 s with no more than 30 transactions", || {
        let (before, began) = (transactions(), Instant::now());
        wait_for("5 s", || (began.elapsed() > Duration::from_secs(5)).then_some(()));
        let asked = transactions() - before;
        println!("{asked} transactions in 5 s");
        (asked <= 30).then_some(asked)
    });
    assert!(asked >= 5, "{asked} transactions in 5 s: the relay is not at work, or not counted");
    assert_eq!(relay.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_drained_in_bounded_memory() {
    let (database, receiver) = (Database::attached(), Receiver::http().await);
    // Acknowledged, not kept: this process's memory is not the one in question.
    receiver.rule(|_| Reply::http(200, &[("content-type", "application/x-protobuf")], ""));
    database.write_runs_with(BACKLOG, &format!("'workflow-' || n % {WORKFLOWS}"), "NULL");
    let mut relay =
        Process::start(relay(&database, &receiver.endpoint()).args(["--max-runs-per-second", "0"]));
    wait_within(Duration::from_mins(5), "drained backlog", || {
        assert!(relay.is_running(), "{}", relay.stderr());
        let left = "SELECT (SELECT count(*) FROM runspan.journal) + (SELECT count(*) FROM runspan.outbox)
                        + (SELECT count(*) FROM runspan.deltas)";
        (database.number(left) == 0).then_some(())
    });
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(most < MOST_MEMORY, "{most} kB");
    assert_eq!(database.number("SELECT count(*) FROM runspan.open_runs"), 0);
    assert_eq!(relay.terminate().code, Some(0));
}
