//! SQLite: the process that embeds the relay dies at every boundary that it comes to, once early and once later, and at
//! moments of no meaning; each time another one takes up its file.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use runspan::otlp::config::Protocol;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::runtime::Handle;

use crate::child::Child;
use crate::embedded;
use crate::fate::Boundary;
use crate::oracle::{self, Counts, Verdict};
use crate::receiver::{Received, Receiver, Reply};

/// How many are killed at moments of no meaning.
const KILLS: u64 = 12;

/// SIGABRT, by which a process ends itself at a boundary.
const ABORTED: i32 = 6;

type Arrivals = Arc<Mutex<Vec<(Instant, Received)>>>;

pub(crate) struct Kills<'a> {
    home: PathBuf,
    runtime: &'a Handle,
    protocol: Protocol,
    random: StdRng,
    receiver: Receiver,
    arrived: Arrivals,
    faults: Vec<(Instant, Instant)>,
    wrong: Vec<String>,
    started: u32,
}

/// Plays all of it. How many boundaries there are, and how many processes died at one.
pub(crate) fn run(home: PathBuf, runtime: &Handle, protocol: Protocol, seed: u64) -> (Verdict, usize, usize) {
    std::fs::create_dir_all(&home).unwrap();
    let receiver = runtime.block_on(Receiver::start(protocol, None));
    let arrived = Arrivals::default();
    let desk = Arc::clone(&arrived);
    receiver.rule(move |request| {
        desk.lock().unwrap().push((Instant::now(), request.clone()));
        Reply::Accept
    });
    let random = StdRng::seed_from_u64(seed);
    let mut kills = Kills {
        home,
        runtime,
        protocol,
        random,
        receiver,
        arrived,
        faults: Vec::new(),
        wrong: Vec::new(),
        started: 0,
    };
    let (boundaries, died) = kills.play();
    (kills.judge(), boundaries, died)
}

impl Kills<'_> {
    fn play(&mut self) -> (usize, usize) {
        let reached = self.lives(1, None).unwrap_or_default();
        let mut died = 0;
        for (name, times) in &reached {
            let later = if *times > 1 { self.random.random_range(2..=*times) } else { 1 };
            for time in [1, later] {
                let end = Boundary { name: name.clone(), time };
                died += usize::from(self.lives(1, Some(&end)).is_none());
            }
        }
        for _ in 0..KILLS {
            self.is_killed();
        }
        // What is left is sent by the last.
        if self.lives(0, None).is_none() {
            self.wrong.push("the last process died".to_owned());
        }
        (reached.len(), died)
    }

    fn file(&self) -> PathBuf {
        self.home.join("app.db")
    }

    fn start(&mut self, rounds: u32, end: Option<&Boundary>) -> (Child, PathBuf) {
        self.started += 1;
        let log = self.home.join(format!("process-{}.log", self.started));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--embedded").arg(self.file()).arg(self.receiver.endpoint());
        command.arg(self.protocol.to_string()).arg(rounds.to_string());
        command.args(end.map(ToString::to_string));
        (Child::start(&mut command, &log), log)
    }

    /// A life to its end. The boundaries that it came to, unless it died at one.
    fn lives(&mut self, rounds: u32, end: Option<&Boundary>) -> Option<BTreeMap<String, u32>> {
        let (mut child, log) = self.start(rounds, end);
        let status = child.wait();
        if status.signal() == Some(ABORTED) && end.is_some() {
            self.has_died();
            return None;
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if !status.success() {
            self.wrong.push(format!("process {} ended with {status}: {said}", self.started));
        }
        let boundaries = said.lines().filter_map(|line| line.parse::<Boundary>().ok());
        Some(boundaries.map(|boundary| (boundary.name, boundary.time)).collect())
    }

    fn is_killed(&mut self) {
        let (mut child, _) = self.start(1, None);
        let moment = self.random.random_range(1..400);
        std::thread::sleep(Duration::from_millis(moment));
        child.kill();
        self.has_died();
    }

    fn has_died(&mut self) {
        let now = Instant::now();
        self.faults.push((now, now));
        // It is known to be dead: nobody needs to wait for its lease. There may be none yet.
        let mut connection = self.connect();
        let free = sqlx::query("UPDATE runspan_lease SET expires_at = 0");
        let _ = self.runtime.block_on(free.execute(&mut connection));
    }

    fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.file()).create_if_missing(true);
        self.runtime
            .block_on(SqliteConnection::connect_with(&options.busy_timeout(Duration::from_secs(20))))
            .unwrap()
    }

    fn judge(mut self) -> Verdict {
        let mut verdict = Verdict { wrong: std::mem::take(&mut self.wrong), ..Verdict::default() };
        let arrived = std::mem::take(&mut *self.arrived.lock().unwrap());
        let (spans, records, exports) = oracle::sort_out(arrived, &self.faults, 0, &mut verdict);
        (verdict.spans, verdict.records) = (spans.len(), records.len());
        // One of each signal is in flight when a process dies.
        if verdict.copies > 2 * self.faults.len() {
            verdict.wrong.push(format!("{} copies of {} deaths", verdict.copies, self.faults.len()));
        }
        let mut connection = self.connect();
        let ledger = self.runtime.block_on(embedded::ledger(&mut connection));
        verdict.runs = ledger.runs();
        verdict.wrong.extend(ledger.compare(spans, records));
        let samples = oracle::samples(exports, true, &mut verdict.wrong);
        let ends = self.counts(&mut connection, ENDS);
        let mut events = self.counts(&mut connection, EVENTS);
        oracle::add_completed(&mut events, &ends);
        let active = self.counts(&mut connection, ACTIVE);
        let wrong = &mut verdict.wrong;
        oracle::compare("workflow.run.duration", &["workflowName", "outcome"], &samples, &ends, wrong);
        oracle::compare("workflow.run.events", &["workflowName", "event"], &samples, &events, wrong);
        oracle::compare("workflow.run.active", &["workflowName", "status"], &samples, &active, wrong);
        for table in ["runspan_journal", "runspan_outbox", "runspan_set_aside"] {
            let count = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let count = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection);
            let left = self.runtime.block_on(count).unwrap();
            if left != 0 {
                verdict.wrong.push(format!("{left} rows are left in {table}"));
            }
        }
        verdict
    }

    fn counts(&self, connection: &mut SqliteConnection, sql: &'static str) -> Counts {
        let rows = sqlx::query_as::<_, (String, String, i64)>(sql).fetch_all(connection);
        let rows = self.runtime.block_on(rows).unwrap();
        rows.into_iter().map(|(workflow, what, count)| (vec![workflow, what], count.unsigned_abs())).collect()
    }
}

const ENDS: &str = "SELECT json_extract(l.run, '$.workflow_name'), e.event, count(*)
    FROM (SELECT run_id, event, min(id) FROM ledger
          WHERE event IN ('succeeded', 'failed', 'incomplete', 'deleted') GROUP BY run_id) e
    JOIN ledger l ON l.run_id = e.run_id AND l.run IS NOT NULL GROUP BY 1, 2";

const EVENTS: &str = "SELECT json_extract(r.run, '$.workflow_name'), 'workflow.run.' || l.event, count(*)
    FROM ledger l JOIN ledger r ON r.run_id = l.run_id AND r.run IS NOT NULL GROUP BY 1, 2";

const ACTIVE: &str = "SELECT workflow_name, status, count(*) FROM workflow_runs
    WHERE status IN ('queued', 'running') GROUP BY 1, 2";
