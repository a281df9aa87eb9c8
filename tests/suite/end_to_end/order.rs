//! The order of the journal: what commits late, what is open for long, and two relays that both believe in their lease.

use super::collector::Collector;
use super::database::Database;
use super::ledger::Ledger;
use super::output::{Record, Span, items, without_copies};
use super::process::Process;
use super::standby::{holder, takes_over};
use super::{drain, relay, test_file, wait_for};

/// How often the lease changes hands under a relay that sleeps.
const ROUNDS: u32 = 6;

/// A database with the ledger and the runs of tests/sql/order.
fn database() -> Database {
    let database = Database::attached();
    database.file("sql/ledger.sql");
    database.file("sql/order/races.sql");
    database
}

/// Eight clients that race for the same rows while others refuse.
fn writers(database: &Database) -> Process {
    let [race, refused] = ["race", "refused"].map(|name| test_file(&format!("sql/order/{name}.sql")));
    let mut pgbench = database.pgbench([(race.as_path(), 3), (refused.as_path(), 2)]);
    Process::start(pgbench.args(["--client=8", "--jobs=2", "--transactions=700"]))
}

/// Drains, and compares everything with the ledger; how many requests were resent.
fn compare(database: &Database, collector: &mut Collector) -> usize {
    drain(database, &collector.http());
    collector.go_away();
    let (traces, resent_spans) = without_copies(collector.lines("traces"));
    let (logs, resent_records) = without_copies(collector.lines("logs"));
    let (spans, records): (Vec<Span>, Vec<Record>) = (items(&traces), items(&logs));
    let ledger = Ledger::read(database);
    println!("{} runs, {} records; {resent_spans} + {resent_records} resent", ledger.runs(), records.len());
    let wrong = ledger.compare(spans, records);
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
    resent_spans.max(resent_records)
}

#[test]
fn nothing_that_commits_late_is_passed_over_and_no_transition_overtakes_another() {
    let database = database();
    let mut collector = Collector::start();
    let relay = Process::start(&mut relay(&database, &collector.http()));

    // Open from before the first line to after the last: one with a low position, one without an id.
    let mut early = database.session();
    early.sql("BEGIN; UPDATE workflow_runs SET status = 'running' WHERE target_number = 1");
    early.sql("SELECT noted(id, 'running') FROM workflow_runs WHERE target_number = 1");
    let mut idle = database.session();
    idle.sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM workflow_runs");

    let writers = writers(&database);
    let caught_up = "SELECT count(*) = 0 AND (SELECT count(*) FROM ledger) > 3000 FROM runspan.journal";
    // Row 1 is locked, so some of the writers wait until it is free.
    wait_for("progress beside the open transactions", || {
        (database.number("SELECT count(*) FROM ledger") > 1_000).then_some(())
    });
    idle.sql(
        "SELECT runspan.dispatch_refused('race', 'issue', 'acme', 'widgets', 2, 'workflow-dispatch-inflight',
             'idle', id) FROM workflow_runs WHERE target_number = 2",
    );
    idle.sql(
        "INSERT INTO ledger (run_id, event, delivery_id)
         SELECT id, 'dispatch_refused', 'idle' FROM workflow_runs WHERE target_number = 2",
    );
    early.sql("COMMIT");
    let written = writers.wait();
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    wait_for("an empty journal", || (database.sql(caught_up) == "t").then_some(()));
    // Far below the last position, and the relay has seen everything else.
    idle.sql("COMMIT");
    database.file("sql/order/end.sql");

    assert_eq!(relay.terminate().code, Some(0));
    assert_eq!(compare(&database, &mut collector), 0, "requests were resent, though nobody died");
}

#[test]
fn a_relay_that_slept_past_its_lease_changes_nothing_and_stands_by() {
    let database = database();
    let mut collector = Collector::start();
    let start = || Process::start(relay(&database, &collector.http()).args(["--lease", "6s"]));
    let mut holding = start();
    takes_over(&database, &holding);
    let mut waiting = start();
    waiting.wait_to_say("standing by");

    let writers = writers(&database);
    for round in 1..=ROUNDS {
        let enough = i64::from(round) * 600;
        wait_for("progress", || (database.number("SELECT count(*) FROM ledger") > enough).then_some(()));
        let steps_back = |relay: &Process| relay.stderr().matches("standing by").count();
        let before = steps_back(&holding);
        holding.signal("STOP");
        // The first time its lease runs out by itself; then it is cut short, which is the same to who sleeps.
        if round > 1 {
            database.free_the_lease();
        }
        takes_over(&database, &waiting);
        holding.signal("CONT");
        wait_for("woken relay to stand by", || (steps_back(&holding) > before).then_some(()));
        assert_eq!(holder(&database), Some(waiting.id()));
        std::mem::swap(&mut holding, &mut waiting);
    }
    let written = writers.wait();
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    database.file("sql/order/end.sql");

    for relay in [waiting, holding] {
        let ended = relay.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let resent = compare(&database, &mut collector);
    assert!(
        resent <= ROUNDS as usize,
        "{resent} requests were resent: more than the one in flight each time"
    );
}
