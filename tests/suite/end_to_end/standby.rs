//! Two relays on one database: one works, the other takes over.

use std::time::{Duration, Instant};

use super::collector::Collector;
use super::database::Database;
use super::process::Process;
use super::{relay, wait_for};

/// The shortest lease that the command line takes.
const LEASE: Duration = Duration::from_secs(6);

/// The process that holds the lease, if it is held.
pub(super) fn holder(database: &Database) -> Option<u32> {
    let holder = database.holder();
    let (process, _) = holder.split_once('-')?;
    Some(process.parse().unwrap())
}

/// Waits until `relay` has the lease.
pub(super) fn takes_over(database: &Database, relay: &Process) {
    wait_for("takeover", || holder(database).filter(|holder| *holder == relay.id()));
}

/// A relay that works, and one that stands by.
fn pair(database: &Database, collector: &Collector) -> (Process, Process) {
    let start = || Process::start(relay(database, &collector.http()).args(["--lease", "6s"]));
    let first = start();
    takes_over(database, &first);
    let mut second = start();
    second.wait_to_say("another relay holds the lease; standing by");
    (first, second)
}

fn delivers(database: &Database, collector: &Collector) {
    let before = collector.lines("traces").len();
    database.write_runs(10);
    wait_for("delivery", || (collector.lines("traces").len() > before).then_some(()));
}

#[test]
fn a_standby_takes_over_when_the_lease_of_a_killed_relay_ends() {
    let (database, collector) = (Database::attached(), Collector::start());
    let (first, second) = pair(&database, &collector);
    delivers(&database, &collector);
    first.kill();
    let killed = Instant::now();
    takes_over(&database, &second);
    println!("took over {:?} after the kill", killed.elapsed());
    // Its term, a look every half second, and a busy machine.
    assert!(killed.elapsed() < LEASE + Duration::from_secs(4), "{:?}", killed.elapsed());
    delivers(&database, &collector);
    assert_eq!(second.terminate().code, Some(0));
}

#[test]
fn a_standby_takes_over_at_once_when_a_relay_is_told_to_stop() {
    let (database, collector) = (Database::attached(), Collector::start());
    let (first, second) = pair(&database, &collector);
    delivers(&database, &collector);
    let told = Instant::now();
    let ended = first.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    takes_over(&database, &second);
    println!("took over {:?} after SIGTERM", told.elapsed());
    assert!(told.elapsed() < LEASE / 2, "{:?}: as if the lease had to expire", told.elapsed());
    delivers(&database, &collector);
    // One that stands by ends at once, too.
    let third = Process::start(relay(&database, &collector.http()).args(["--lease", "6s"]));
    assert_eq!(second.terminate().code, Some(0));
    takes_over(&database, &third);
    assert_eq!(third.terminate().code, Some(0));
}
