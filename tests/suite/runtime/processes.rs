//! The example as an application of several processes, which die.

mod bad_input;
mod bot;
mod told;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use runspan::runtime::{self, Delivery, Dispatched, Runtime, Workflow, bundled};
use serde_json::Value;
use sqlx::postgres::{PgPool, PgPoolOptions};

use self::bot::{Worker, payload};
use self::told::Row;
use crate::database::{Database, eventually};
use crate::runtime::queue::server::Server;

on_postgres!(every_run_ends_once_whatever_dies_meanwhile,);

/// Runs that are dispatched; the composite ones have children besides.
const RUNS: i64 = 200;
const PROCESSES: usize = 4;
/// The fewest that are killed.
const KILLS: usize = 15;
const SEED: u64 = 20_261_122;

/// Short, so that what died is soon known.
const WORK: [&str; 6] = ["--lease", "2s", "--concurrency", "4", "--pace", "200ms"];

async fn every_run_ends_once_whatever_dies_meanwhile(database: &Database) {
    let began = Instant::now();
    database.attach().await;
    let mut play = Play::begin(database).await;
    play.dispatch().await;
    play.kill(4).await;
    play.lose_the_queue().await;
    play.kill(4).await;
    play.stop_one_for_longer_than_its_lease().await;
    while play.count("status = 'queued' AND parent_run_id IS NULL").await > 0 || play.kills < KILLS {
        play.kill(1).await;
    }
    eventually("every run has ended", || async { play.count("status IN ('queued', 'running')").await == 0 })
        .await;
    let lines = play.end().await;

    let rows = rows(&play.pool).await;
    let mut wrong = told::compare(database, &rows).await;
    wrong.extend(rows.iter().filter_map(not_as_its_payload_says));
    let dispatched = rows.iter().filter(|row| row.parent.is_none()).map(|row| row.number);
    assert_eq!(dispatched.collect::<BTreeSet<_>>(), (1..=RUNS).collect());
    wrong.extend(begun_twice(&lines));
    let too_many = "SELECT count(*) FROM (SELECT FROM workflow_runs WHERE parent_run_id IS NOT NULL
                        GROUP BY parent_run_id, parent_step_index HAVING count(*) > 1) twice";
    let unlike_its_last_step =
        "SELECT count(*) FROM workflow_runs run WHERE workflow_name = 'ship' AND status <> (
            SELECT child.status FROM workflow_runs child WHERE child.parent_run_id = run.id
            ORDER BY child.parent_step_index DESC LIMIT 1)";
    let skipped = "SELECT count(*) FROM runspan.journal_skipped WHERE is_called";
    for sql in [too_many, unlike_its_last_step, skipped] {
        let count = count(&play.pool, sql).await;
        wrong.extend((count > 0).then(|| format!("{count}: {sql}")));
    }

    let reasons =
        |of: &str| rows.iter().filter(|row| row.reason.as_ref().is_some_and(|it| it.starts_with(of))).count();
    let said =
        |what: &str| lines.iter().filter(|line| line["message"].as_str().unwrap().contains(what)).count();
    println!(
        "seed {SEED}: {RUNS} runs and {} children on {PROCESSES} processes, {} killed; {} jobs lost, {} published \
         again; {} owners lost, {} handlers too late, {} not published; {:.1?}",
        rows.iter().filter(|row| row.parent.is_some()).count(),
        play.kills,
        play.jobs_lost,
        said("published again"),
        reasons("owner lost:"),
        said("run already ended; ignoring later outcome"),
        reasons("enqueue failed:"),
        began.elapsed()
    );
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
}

/// What run `number` is asked to do: its label, its title and its body.
fn asked(number: i64) -> (&'static str, &'static str, String) {
    let title = if number % 5 == 0 { "" } else { "fix it" };
    match number % 3 {
        0 => {
            let days = match number % 4 {
                0 if number % 8 == 0 => "days: 0\n",
                0 => "days: soon\n",
                _ => "",
            };
            let tasks = usize::try_from(1 + number % 7).unwrap();
            ("bot:ship", "fix it", format!("{days}{}", "- [ ] a task\n".repeat(tasks)))
        }
        1 => ("bot:triage", title, String::new()),
        _ => ("bot:review", title, String::new()),
    }
}

/// How the run of `number` ends, if nothing dies.
fn end(number: i64) -> (&'static str, Option<&'static str>) {
    match number % 3 {
        0 if number % 8 == 0 => ("failed", Some("plan failed: uncaught: attempt to divide by zero")),
        0 if number % 4 == 0 => ("failed", Some("plan failed: uncaught: invalid digit found in string")),
        0 if number % 7 == 6 => {
            ("incomplete", Some("resolve is incomplete after 3 rounds: 1 of 7 tasks are open"))
        }
        1 if number % 5 == 0 => ("failed", Some("there is no title to judge by")),
        _ => ("succeeded", None),
    }
}

/// What ended otherwise, though nothing of it died.
fn not_as_its_payload_says(row: &Row) -> Option<String> {
    let reason = row.reason.as_deref();
    let died = reason.is_some_and(|it| it.contains("owner lost: ") || it.contains("enqueue failed: "));
    let is_as_asked = row.parent.is_some() || (&*row.status, reason) == end(row.number);
    (!died && !is_as_asked).then(|| format!("{} #{}: {} {reason:?}", row.workflow, row.number, row.status))
}

/// Runs that more than one handler worked on: each makes one call.
fn begun_twice(lines: &[Value]) -> Vec<String> {
    let mut calls: HashMap<&str, usize> = HashMap::new();
    for line in lines.iter().filter(|line| line["message"] == "asking a model") {
        *calls.entry(line["runId"].as_str().unwrap()).or_default() += 1;
    }
    calls
        .iter()
        .filter(|(_, calls)| **calls > 1)
        .map(|(run, calls)| format!("{calls} handlers of {run}"))
        .collect()
}

struct Play<'a> {
    database: &'a Database,
    pool: PgPool,
    server: Server,
    random: StdRng,
    workers: Vec<Worker>,
    dead: Vec<Worker>,
    kills: usize,
    jobs_lost: i64,
}

impl<'a> Play<'a> {
    async fn begin(database: &'a Database) -> Self {
        let pool = pool(database).await;
        let server = Server::start(&["--appendonly", "no"]).await;
        let workers: Vec<_> = (0..PROCESSES).map(|_| start(database, &server)).collect();
        for worker in &workers {
            worker.name().await;
        }
        let random = StdRng::seed_from_u64(SEED);
        Self { database, pool, server, random, workers, dead: Vec::new(), kills: 0, jobs_lost: 0 }
    }

    /// All at once, from this process: it knows the bot's workflows, and needs no handlers.
    async fn dispatch(&self) {
        let database = runtime::Database::connect(&self.database.url.parse().unwrap(), 8).await.unwrap();
        let queue = self.server.queue(Duration::from_secs(2)).await;
        let nothing = |name| Workflow::new(name, |_| async { unreachable!("it only dispatches") });
        let runtime = Runtime::new("hook", database, queue, bundled::registry(nothing).unwrap());
        let dispatched = (1..=RUNS).map(async |number| {
            let (label, title, body) = asked(number);
            let payload = payload(number, title, &body);
            let delivery = Delivery::from_github(&format!("d-{number}"), payload.as_bytes()).unwrap();
            runtime.dispatcher().label(label, &delivery).await
        });
        for dispatched in try_join_all(dispatched).await.unwrap() {
            assert!(matches!(dispatched, Dispatched::Queued { .. }), "{dispatched:?}");
        }
    }

    async fn count(&self, what: &str) -> i64 {
        count(&self.pool, &format!("SELECT count(*) FROM workflow_runs WHERE {what}")).await
    }

    /// Kills so many processes, one after the other, each once more runs have begun, and starts others.
    async fn kill(&mut self, processes: usize) {
        for _ in 0..processes {
            let enough = self.count("status <> 'queued'").await + self.random.random_range(8..=20);
            eventually("more runs have begun", || async {
                self.count("status <> 'queued'").await >= enough
                    || self.count("status = 'queued' AND parent_run_id IS NULL").await == 0
            })
            .await;
            let victim = self.random.random_range(0..PROCESSES);
            let next = start(self.database, &self.server);
            let mut killed = mem::replace(&mut self.workers[victim], next);
            killed.kill();
            self.dead.push(killed);
            self.kills += 1;
        }
    }

    /// The queue's server dies, and comes back with nothing.
    async fn lose_the_queue(&mut self) {
        // One that begins without a queue ends at once.
        for worker in &self.workers {
            worker.name().await;
        }
        self.server.kill();
        self.jobs_lost = self.count("status = 'queued'").await;
        assert!(self.jobs_lost > 0, "there was nothing left to lose");
        self.workers[0].says("failed to take jobs from the queue").await;
        assert!(self.server.restart().await);
    }

    /// A process that does nothing for longer than its lease, and then goes on as if nothing were.
    async fn stop_one_for_longer_than_its_lease(&mut self) {
        let worker = &self.workers[self.random.random_range(0..PROCESSES)];
        let name = worker.name().await;
        let has = format!("owner_id = '{name}' AND status = 'running'");
        let lost = format!("state->>'failedReason' = 'owner lost: {name} did not renew its lease'");
        // What it has sent when it is stopped may yet be carried out: then it had nothing left to lose.
        while self.count(&lost).await == 0 {
            eventually("it works", || async { self.count(&has).await > 0 }).await;
            worker.signal("STOP");
            eventually("its runs are taken from it", || async { self.count(&has).await == 0 }).await;
            worker.signal("CONT");
        }
        worker.says("run already ended; ignoring later outcome").await;
    }

    /// Has every process end; what all of them have said.
    async fn end(&mut self) -> Vec<Value> {
        for worker in &mut self.workers {
            // The one that was started last may not listen for signals yet.
            worker.name().await;
            worker.signal("TERM");
            let status = worker.ended().await;
            assert!(status.success(), "{status}: {}", worker.stderr());
        }
        self.dead.iter().chain(&self.workers).flat_map(Worker::lines).collect()
    }
}

fn start(database: &Database, server: &Server) -> Worker {
    Worker::start(database, &server.url(), &WORK, "")
}

async fn pool(database: &Database) -> PgPool {
    PgPoolOptions::new().max_connections(2).connect(&database.url).await.unwrap()
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
}

async fn rows(pool: &PgPool) -> Vec<Row> {
    let rows = sqlx::query_as(
        "SELECT id, parent_run_id, workflow_name, target_number, status,
             coalesce(state->>'failedReason', state->>'incompleteReason')
         FROM workflow_runs",
    );
    let rows: Vec<(_, _, _, _, _, _)> = rows.fetch_all(pool).await.unwrap();
    rows.into_iter()
        .map(|(id, parent, workflow, number, status, reason)| Row {
            id,
            parent,
            workflow,
            number,
            status,
            reason,
        })
        .collect()
}
