//! The load proof: whatever dies meanwhile, every run has its span, once.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::collector::Collector;
use super::database::Database;
use super::ledger::Ledger;
use super::output::{items, without_copies};
use super::process::Process;
use super::{LOOK, MIX, drain, relay, test_file, wait_for};

/// Scripts a client, for four clients: about 11,000 runs.
const SCRIPTS: u32 = 2_250;
/// Scripts a second: slow enough for everything that is to happen meanwhile, and for other tests on the machine.
const RATE: u32 = 225;

/// How long the Collector is away.
const OUTAGE: Duration = Duration::from_secs(20);

/// The writers, and the relay that dies again and again.
struct Play {
    database: Database,
    collector: Collector,
    writers: Process,
    relay: Process,
    kills: usize,
}

#[test]
fn every_run_has_its_span_once_whatever_dies_meanwhile() {
    let mut play = Play::begin();
    play.kill_after(500);
    play.kill_after(500);
    play.kill_after(500);
    play.outage(4);
    // Now there is a backlog to send.
    play.kill_after(50);
    play.kill_after(500);
    play.kill_after(500);
    play.end();
}

impl Play {
    fn begin() -> Self {
        let database = Database::with_runs();
        database.file("sql/ledger.sql");
        // Attached while the application is at work.
        let script = |name: &str| test_file(&format!("sql/load/{name}.sql"));
        let scripts: Vec<(PathBuf, u32)> = MIX.iter().map(|(name, weight)| (script(name), *weight)).collect();
        let attached = super::runspan(&["attach", "--database-url", database.url()]);
        let attached = Process::start(&mut { attached }).wait();
        assert_eq!(attached.code, Some(0), "{}", attached.stderr);
        let collector = Collector::start();
        let mut pgbench =
            database.pgbench(scripts.iter().map(|(script, weight)| (script.as_path(), *weight)));
        pgbench.args([
            "--client=4",
            "--jobs=2",
            &format!("--transactions={SCRIPTS}"),
            &format!("--rate={RATE}"),
        ]);
        let writers = Process::start(&mut pgbench);
        let relay = Process::start(&mut relay(&database, &collector.http()));
        Self { database, collector, writers, relay, kills: 0 }
    }

    /// Kills the relay once so many runs more are written, and starts another.
    fn kill_after(&mut self, runs: i64) {
        let enough = self.runs() + runs;
        wait_for("progress of the writers", || {
            (self.runs() >= enough || !self.writers.is_running()).then_some(())
        });
        let next = Process::start(&mut relay(&self.database, &self.collector.http()));
        std::mem::replace(&mut self.relay, next).kill();
        self.kills += 1;
        // What its backend still has in hand may yet be committed: the fence has to hold.
        self.database.free_the_lease();
    }

    fn runs(&self) -> i64 {
        self.database.number("SELECT count(*) FROM workflow_runs")
    }

    /// The Collector is away for a while, in which the relay dies, too.
    fn outage(&mut self, kills: u32) {
        self.collector.go_away();
        for _ in 0..kills {
            let began = Instant::now();
            let mut longest = 0;
            while began.elapsed() < OUTAGE / kills {
                longest = longest.max(self.database.number("SELECT count(*) FROM runspan.journal"));
                std::thread::sleep(LOOK);
            }
            // About 700 entries a second are written: seconds of them would lie there if the journal had to wait.
            assert!(longest < 4_000, "the journal grew to {longest} entries while the Collector was away");
            self.kill_after(0);
        }
        let short = "a journal of less than a second while the Collector is away";
        wait_for(short, || {
            (self.database.number("SELECT count(*) FROM runspan.journal") < 700).then_some(())
        });
        let waiting = self.database.number("SELECT sum(items) FROM runspan.outbox");
        assert!(waiting > 1_000, "only {waiting} spans and records wait, so nothing was away");
        self.collector.come_back();
    }

    fn end(self) {
        let Self { database, mut collector, writers, relay, kills } = self;
        let writers = writers.wait();
        assert_eq!(writers.code, Some(0), "{}", writers.stderr);
        assert!(writers.stdout.contains("number of failed transactions: 0 "), "{}", writers.stdout);
        assert_eq!(relay.terminate().code, Some(0));
        drain(&database, &collector.http());
        // Its files are whole once it has ended.
        collector.go_away();

        assert_eq!(kills, 10);
        let ledger = Ledger::read(&database);
        let [traces, logs] = ["traces", "logs"].map(|signal| {
            let (requests, copies) = without_copies(collector.lines(signal));
            println!("{signal}: {} requests, {copies} resent", requests.len());
            // One is in flight at a time when the relay or the Collector ends.
            assert!(copies <= kills + 1, "{copies} requests of {signal} were resent");
            requests
        });
        let (spans, records) = (items(&traces), items(&logs));
        println!("{} runs, {} spans, {} records", ledger.runs(), spans.len(), records.len());
        let wrong = ledger.compare(spans, records);
        assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
        assert!(ledger.runs() >= 10_000, "{} runs", ledger.runs());
        assert!(
            [traces, logs].concat().iter().all(|request| !request.contains("correct-horse")),
            "a credential"
        );
        compare_with_the_table(&database, &ledger);
    }
}

/// The ledger is the writers' word; the table is the truth.
fn compare_with_the_table(database: &Database, ledger: &Ledger) {
    let number = |sql: &str| usize::try_from(database.number(sql)).unwrap();
    let ended = number(
            "SELECT (SELECT count(*) FROM workflow_runs WHERE status NOT IN ('queued', 'running') AND workflow_name <> 'restored')
                  + (SELECT count(*) FROM ledger WHERE event = 'deleted')",
        );
    assert_eq!(ledger.ended(), ended);
    let otherwise = number(
        "SELECT count(*) FROM workflow_runs w JOIN ledger l ON l.run_id = w.id
             WHERE l.event IN ('succeeded', 'failed', 'incomplete') AND l.event <> w.status
               AND NOT EXISTS (SELECT FROM ledger c WHERE c.run_id = w.id AND c.event = 'conflict')",
    );
    assert_eq!(otherwise, 0);
    let in_flight = number("SELECT count(*) FROM workflow_runs WHERE status IN ('queued', 'running')");
    assert_eq!(number("SELECT count(*) FROM runspan.open_runs"), in_flight);
    for nothing in ["runspan.journal", "runspan.outbox", "runspan.set_aside"] {
        assert_eq!(number(&format!("SELECT count(*) FROM {nothing}")), 0, "{nothing}");
    }
    assert_eq!(number("SELECT count(*) FROM runspan.journal_skipped WHERE is_called"), 0);
}
