//! Everything goes wrong, by the seed, and nothing is lost: see docs/chaos.md.
//!
//! `make chaos SEEDS=500`, `make chaos SEED=17`.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows test functions, but not the helpers of an integration test"
)]

#[path = "../suite/end_to_end/collector.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod collector;
#[path = "../suite/end_to_end/common.rs"]
#[allow(dead_code, reason = "as above")]
mod common;
#[path = "../suite/end_to_end/database.rs"]
#[allow(dead_code, reason = "as above")]
mod database;
#[path = "../suite/end_to_end/ledger.rs"]
#[allow(dead_code, reason = "as above")]
mod ledger;
#[path = "../suite/end_to_end/output.rs"]
#[allow(dead_code, reason = "as above")]
mod output;
#[path = "../suite/points.rs"]
#[allow(dead_code, reason = "as above")]
mod points;
#[path = "../suite/end_to_end/pooler.rs"]
mod pooler;
#[path = "../suite/end_to_end/process.rs"]
#[allow(dead_code, reason = "as above")]
mod process;
#[path = "../suite/receiver.rs"]
#[allow(dead_code, unused_imports, reason = "as above")]
mod receiver;

mod child;
mod cluster;
mod link;
mod oracle;
mod plan;
mod play;
mod proxy;
mod received;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::cluster::Template;
use self::common::{MIX, service, test_file, wait_for};
use self::oracle::Verdict;
use self::plan::Plan;
use self::proxy::Coverage;

/// How many seeds a run without a word about it plays.
const SEEDS: u64 = 30;

/// How many are played side by side: they mostly wait.
const JOBS: usize = 3;

/// What the command line asks for.
struct Asked {
    seeds: Vec<u64>,
    jobs: usize,
    /// A name that `cargo test` was given and that is not this test's.
    is_filtered: bool,
    shows_coverage: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, url, seed, rest @ ..] = arguments.as_slice()
        && first == "--writer"
    {
        writer::run(url, seed.parse().unwrap(), !rest.is_empty());
    }
    let asked = Asked::read(&arguments);
    if asked.is_filtered {
        result(0, 0);
        return;
    }
    let failed = chaos(&asked);
    let passed = asked.seeds.len() - failed;
    result(passed, failed);
    std::process::exit(i32::from(failed > 0));
}

/// As the standard harness says it.
fn result(passed: usize, failed: usize) {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
    );
}

impl Asked {
    /// Own options, and those that `cargo test` hands to every test, which mean nothing here.
    fn read(arguments: &[String]) -> Self {
        let mut asked =
            Self { seeds: (0..SEEDS).collect(), jobs: JOBS, is_filtered: false, shows_coverage: false };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut number = || -> u64 {
                let value = value.clone().or_else(|| arguments.next().cloned());
                let value = value.unwrap_or_default();
                value.parse().unwrap_or_else(|_| panic!("{name} wants a number, not {value:?}"))
            };
            match name {
                "--seeds" => asked.seeds = (0..number()).collect(),
                "--seed" => asked.seeds = vec![number()],
                "--from" => {
                    let from = number();
                    asked.seeds.iter_mut().for_each(|seed| *seed += from);
                }
                "--jobs" => asked.jobs = usize::try_from(number()).unwrap(),
                "--coverage" => asked.shows_coverage = true,
                "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" | "-Z"
                    if value.is_none() =>
                {
                    arguments.next();
                }
                "--list" => asked.is_filtered = true,
                _ if name.starts_with('-') => {}
                _ => asked.is_filtered |= !"chaos".contains(name),
            }
        }
        asked
    }
}

/// Plays the seeds; how many went wrong.
fn chaos(asked: &Asked) -> usize {
    let began = Instant::now();
    let home = tempfile::Builder::new().prefix("chaos.").tempdir_in("/tmp").unwrap();
    // Of the user postgres, who has to reach what is in it.
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let template = Template::make(home.path());
    let next = Mutex::new(asked.seeds.iter());
    let coverage = Mutex::new(Coverage::default());
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..asked.jobs.min(asked.seeds.len()) {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next().copied() else { break };
                    let plan = Plan::new(seed);
                    let began = Instant::now();
                    let seed_home = home.path().join(format!("seed-{seed}"));
                    let played = catch_unwind(AssertUnwindSafe(|| {
                        play::run(&plan, &template, seed_home.clone(), runtime.handle())
                    }));
                    let verdict = played.map_or_else(
                        |panic| {
                            let said = panic.downcast_ref::<String>().map(String::as_str);
                            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
                            let wrong = vec![said.unwrap_or("panicked").to_owned()];
                            Verdict { wrong, ..Verdict::default() }
                        },
                        |(verdict, seen)| {
                            coverage.lock().unwrap().add(&seen);
                            verdict
                        },
                    );
                    if !say(&plan, &verdict, began, &seed_home) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = usize::try_from(failed.into_inner()).unwrap();
    let coverage = coverage.into_inner().unwrap();
    let cut = coverage.0.values().filter(|[_, lost, answer_lost]| lost + answer_lost > 0).count();
    println!(
        "{} seeds in {:.0?}: {failed} went wrong; connections were cut at {cut} of {} statements",
        asked.seeds.len(),
        began.elapsed(),
        coverage.0.len()
    );
    if asked.shows_coverage {
        for (statement, [seen, lost, answer_lost]) in &coverage.0 {
            println!("{seen:7} executed, {lost:3} lost, {answer_lost:3} answers lost: {statement}");
        }
    }
    if failed > 0 {
        println!("the logs are in {}", home.keep().display());
    }
    failed
}

/// A line for a seed; if it went wrong, what did, and how to play it again. Whether all was well.
fn say(plan: &Plan, verdict: &Verdict, began: Instant, home: &Path) -> bool {
    let Verdict { runs, spans, records, copies, apart, wrong } = verdict;
    let is_well = wrong.is_empty();
    let mut line = format!(
        "seed {:3}  {}  {runs} runs, {spans} spans, {records} records, {copies} copies, {apart} in a gap; {plan}; {:.1?}",
        plan.seed,
        if is_well { "ok    " } else { "FAILED" },
        began.elapsed(),
    );
    if is_well {
        let _ = std::fs::remove_dir_all(home);
    } else {
        for what in wrong.iter().take(10) {
            line += &format!("\n    {what}");
        }
        line += &format!(
            "\n    {} things are wrong; again: make chaos SEED={}; logs: {}",
            wrong.len(),
            plan.seed,
            home.display()
        );
    }
    println!("{line}");
    is_well
}
