//! What adding to the series costs the drain.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom as _;
use runspan::projection::Settings;
use runspan::relay::{plan, runs_of};
use runspan::run::{RunId, Target, TargetKind, Timestamp};
use runspan::runs::{self, NewRun, Owner};
use runspan::runtime::Database;
use runspan::series::{Buckets, Key, MetricKind, Totals};
use runspan::store::Channel;
use runspan::trace_context::SpanContext;

use super::{Bench, Failure, ROUNDS, START};
use crate::shown::{Spread, kib, millis, table};

/// Three entries each.
const RUNS: i64 = 10_000;
/// So many are in flight at a time.
const IN_FLIGHT: i64 = 500;
/// Entries a cycle: the projector's own default.
const BATCH: usize = 2_000;

/// The parts of a cycle.
const STEPS: [&str; 5] = ["read", "open runs", "project", "encode", "commit"];
const PROJECT: usize = 2;
const COMMIT: usize = 4;

/// What a drain took, in milliseconds.
struct Laps {
    began: Instant,
    millis: [f64; STEPS.len()],
    /// How long the projection may have taken to count, which no arm can leave out.
    counting: f64,
    /// The size of the totals.
    stored_kib: f64,
    logged_kib: f64,
}

impl Laps {
    fn lap(&mut self, step: usize) {
        self.millis[step] += millis(self.began.elapsed());
        self.began = Instant::now();
    }
}

impl Bench {
    /// Has the triggers write a journal, and puts it aside with durations of 100 ms to 7 hours.
    pub(crate) async fn fill(&self) -> Result<(), Failure> {
        let owner = Owner { kind: "executor".to_owned(), id: "bench".to_owned() };
        let mut tx = self.database.begin().await?;
        for first in (0..RUNS).step_by(usize::try_from(IN_FLIGHT)?) {
            let mut ids = Vec::new();
            for number in first..first + IN_FLIGHT {
                let target = Target {
                    kind: TargetKind::Issue,
                    owner: "acme".to_owned(),
                    repo: "widgets".to_owned(),
                    number: number + 1,
                };
                let run = NewRun::new(format!("workflow-{}", number % 20), target);
                ids.push((number / 20, runs::insert_queued(tx.runs(), &run).await?));
            }
            for (_, run) in &ids {
                runs::claim(tx.runs(), *run, &owner).await?;
            }
            for (number, run) in ids {
                match number % 10 {
                    0 => runs::mark_failed(tx.runs(), run, "403 at https://api.github.com/").await?,
                    1 => runs::mark_failed(tx.runs(), run, "timeout: no end after 5m").await?,
                    2 => runs::mark_incomplete(tx.runs(), run, "1 of 2 remarks is open").await?,
                    _ => runs::mark_succeeded(tx.runs(), run).await?,
                }
            }
        }
        tx.commit().await?;
        self.execute(
            "CREATE TABLE bench_journal AS TABLE runspan.journal;
             UPDATE bench_journal SET at = at + interval '100 ms' * (1 << CAST(target_number % 18 AS integer))
                 * CASE to_status WHEN 'queued' THEN 0 WHEN 'running' THEN 1 ELSE 2 END",
            "CREATE TABLE bench_journal AS SELECT * FROM runspan_journal;
             UPDATE bench_journal SET at = at + 100000 * (1 << (target_number % 18))
                 * CASE to_status WHEN 'queued' THEN 0 WHEN 'running' THEN 1 ELSE 2 END",
        )
        .await
    }

    /// What adding to the series costs the drain.
    pub(crate) async fn drains(&self) -> Result<(), Failure> {
        let mut arms: [Vec<Laps>; 2] = Default::default();
        for round in 0..=ROUNDS {
            // Either comes first in turn.
            for arm in [round % 2, 1 - round % 2] {
                let laps = self.drain(arm == 1).await?;
                // The first round warms up.
                if round > 0 {
                    arms[arm].push(laps);
                }
            }
        }
        let all = |laps: &Laps| laps.millis.iter().sum::<f64>();
        let [without, with] = &arms;
        let mut table = table(&[&format!("{}: drain, ms", self.name), "without series", "with", "ratio"]);
        let mut row = |name: &str, of: &dyn Fn(&Laps) -> f64| {
            let [without, with] = [without, with].map(|laps| Spread::by(laps, of));
            let ratio = format!("{:.2}", with.median / without.median);
            table.add_row([name.to_owned(), without.to_string(), with.to_string(), ratio]);
            without.median
        };
        let project = STEPS.into_iter().enumerate().map(|(step, name)| row(name, &|laps| laps.millis[step]));
        let project = project.collect::<Vec<_>>()[PROJECT];
        let whole = row("all", &all);
        if let Database::Postgres(_) = self.database {
            row("write-ahead log, KiB", &|laps| laps.logged_kib);
        }
        let pairs: Vec<(&Laps, &Laps)> = without.iter().zip(with).collect();
        let counting = Spread::by(with, |laps| laps.counting);
        let stored = Spread::by(with, |laps| laps.stored_kib);
        println!("{table}");
        println!("of the pairs: {:.3}", Spread::by(&pairs, |(without, with)| all(with) / all(without)));
        println!(
            "projecting is {:.0} % of the cycle; counting, a part of it that is in both arms, {counting} ms",
            project / whole * 100.0
        );
        println!("what is stored of the totals: {:.0} KiB a journal", stored.median);
        // The other steps do the same in both arms: what they differ in is the machine's doing.
        let cost = Spread::by(&pairs, |(without, with)| {
            (with.millis[COMMIT] - without.millis[COMMIT] + with.counting) / (whole - with.counting) * 100.0
        });
        println!("counting and storing cost the rest: {cost:.1} %\n");
        Ok(())
    }

    /// A journal through the projector's step.
    async fn drain(&self, is_counted: bool) -> Result<Laps, Failure> {
        self.clear().await?;
        self.execute(
            "INSERT INTO runspan.journal SELECT * FROM bench_journal ORDER BY seq",
            "INSERT INTO runspan_journal SELECT * FROM bench_journal ORDER BY seq",
        )
        .await?;
        self.execute("CHECKPOINT", "PRAGMA wal_checkpoint(TRUNCATE)").await?;
        let mut position = self.store.position(&self.instance).await?;
        let logged = self.logged().await?;
        let mut laps = Laps {
            began: Instant::now(),
            millis: Default::default(),
            counting: 0.0,
            stored_kib: 0.0,
            logged_kib: 0.0,
        };
        loop {
            let batch = self.store.read(position.clone(), BATCH).await?;
            if batch.entries.is_empty() {
                laps.logged_kib = self.logged().await? - logged;
                return Ok(laps);
            }
            position.clone_from(&batch.position);
            laps.lap(0);
            let runs: Vec<_> = runs_of(&batch).into_iter().collect();
            let open = self.store.open_runs(&runs).await?;
            laps.lap(1);
            let mut plan = plan(batch, open, &Settings::default());
            if !plan.commit.set_aside.is_empty() {
                return Err("the journal has entries that cannot be parsed".into());
            }
            laps.lap(PROJECT);
            plan.encode(&self.encoder, &[Channel::Traces, Channel::Logs]);
            laps.lap(3);
            let mut commit = plan.commit;
            let totals = commit.totals.clone();
            if !is_counted {
                commit.totals = Totals::default();
            }
            laps.began = Instant::now();
            self.store.commit(&self.lease, &self.instance, &commit).await?;
            laps.lap(COMMIT);
            laps.stored_kib += kib(serde_json::to_vec(&totals)?.len());
            laps.counting += millis(count_again(&totals));
            laps.began = Instant::now();
        }
    }
}

/// Counts what the projection has counted, as it does: that part of its work cannot be left out of a drain.
fn count_again(totals: &Totals) -> Duration {
    let mut calls: Vec<(&Key, Option<i64>)> = Vec::new();
    for (key, number) in totals.counters() {
        calls.extend((0..number).map(|_| (key, None)));
    }
    for (key, distribution) in totals.histograms() {
        let values: Vec<i64> = distribution.exemplars().map(|exemplar| exemplar.micros).collect();
        let values = values.into_iter().cycle();
        calls.extend((0..distribution.count()).zip(values).map(|(_, value)| (key, Some(value))));
    }
    calls.shuffle(&mut rand::rng());
    let run = RunId::generate();
    let mut again = Totals::new(Buckets::default());
    let began = Instant::now();
    for (Key { kind, workflow, outcome, event, error_type }, micros) in calls {
        let name = workflow.as_deref().unwrap_or_default();
        let key = match (kind, outcome, event) {
            (MetricKind::Duration, Some(outcome), _) => Key::duration(name, *outcome, *error_type),
            (MetricKind::ExecutionDuration, Some(outcome), _) => Key::execution_duration(name, *outcome),
            (MetricKind::Events, _, Some(event)) => Key::events(Some(name), *event, *error_type),
            _ => Key::queue_duration(name),
        };
        match micros {
            Some(micros) => {
                let at = Timestamp::from_micros(START + micros);
                again.observe(key, micros, at, SpanContext::of_run(run, run));
            }
            None => again.count(key),
        }
    }
    let took = began.elapsed();
    assert!(again.counters().eq(totals.counters()), "the same is counted");
    took
}
