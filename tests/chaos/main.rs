//! Everything goes wrong, by the seed, and nothing is lost: see docs/chaos.md.
//!
//! `make chaos SEEDS=500`, `make chaos SEED=17`.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows test functions, but not the helpers of an integration test"
)]

mod child;
mod cluster;
mod embedded;
mod fate;
mod kills;
mod link;
mod oracle;
mod plan;
mod planted;
mod play;
mod proxy;
mod received;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use runspan::otlp::config::Protocol;
use runspan_test_support::end_to_end::{
    MIX, collector, database, ledger, output, pooler, process, service, test_file, wait_for,
};
use runspan_test_support::{hooked, points, receiver};
use tokio::runtime::Handle;

use self::cluster::Template;
use self::oracle::Verdict;
use self::plan::Plan;
use self::proxy::Coverage;

/// How many seeds a run without a word about it plays.
const SEEDS: u64 = 30;

/// How many are played side by side: they mostly wait.
const JOBS: usize = 3;

/// Something to play.
#[derive(Clone, Copy)]
enum Scene {
    /// A seed, on PostgreSQL.
    Seed(u64),
    /// The deaths of a process that embeds a relay on SQLite.
    Kills(Protocol, u64),
}

/// What the command line asks for.
struct Asked {
    scenes: Vec<Scene>,
    jobs: usize,
    shows_coverage: bool,
    keeps_logs: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, url, seed, rest @ ..] = arguments.as_slice()
        && first == "--writer"
    {
        writer::run(url, seed.parse().unwrap(), !rest.is_empty());
    }
    if let [first, file, endpoint, protocol, rounds, end @ ..] = arguments.as_slice()
        && first == "--embedded"
    {
        let end = end.first().map(|end| end.parse().unwrap());
        return embedded::run(file, endpoint, protocol, rounds.parse().unwrap(), end);
    }
    let asked = Asked::read(&arguments);
    let failed = if asked.scenes.is_empty() { 0 } else { chaos(&asked) };
    result(asked.scenes.len() - failed, failed);
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
        let (mut from, mut seeds, mut one, mut kills) = (0, SEEDS, None, true);
        let mut asked = Self { scenes: Vec::new(), jobs: JOBS, shows_coverage: false, keeps_logs: false };
        let mut is_filtered = false;
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut number = || -> u64 {
                let value = value.clone().or_else(|| arguments.next().cloned()).unwrap_or_default();
                value.parse().unwrap_or_else(|_| panic!("{name} wants a number, not {value:?}"))
            };
            match name {
                "--seeds" => seeds = number(),
                "--seed" => one = Some(number()),
                "--from" => from = number(),
                "--jobs" => asked.jobs = usize::try_from(number()).unwrap(),
                "--no-sqlite" => kills = false,
                "--coverage" => asked.shows_coverage = true,
                "--keep" => asked.keeps_logs = true,
                "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" | "-Z"
                    if value.is_none() =>
                {
                    arguments.next();
                }
                "--list" => is_filtered = true,
                _ if name.starts_with('-') => {}
                // A name that is meant for another test.
                _ => is_filtered |= !"chaos".contains(name),
            }
        }
        match one {
            _ if is_filtered => {}
            Some(seed) => asked.scenes.push(Scene::Seed(seed)),
            None => {
                let protocols = [Protocol::Grpc, Protocol::HttpProtobuf];
                // The longest first.
                asked
                    .scenes
                    .extend(protocols.map(|protocol| Scene::Kills(protocol, from)).iter().filter(|_| kills));
                asked.scenes.extend((from..from + seeds).map(Scene::Seed));
            }
        }
        asked
    }
}

/// Plays the scenes; how many went wrong.
fn chaos(asked: &Asked) -> usize {
    let began = Instant::now();
    let home = tempfile::Builder::new().prefix("chaos.").tempdir_in("/tmp").unwrap();
    // The user postgres has to reach what is in it.
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stage = Stage {
        template: Template::make(home.path()),
        runtime: runtime.handle().clone(),
        home: home.path().to_owned(),
        coverage: Mutex::default(),
        keeps_logs: asked.keeps_logs,
    };
    let next = Mutex::new(asked.scenes.iter());
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..asked.jobs.min(asked.scenes.len()) {
            scope.spawn(|| {
                loop {
                    let Some(scene) = next.lock().unwrap().next() else { break };
                    if !stage.play(*scene) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    let coverage = stage.coverage.into_inner().unwrap();
    let cut = coverage.0.values().filter(|[_, lost, answer_lost]| lost + answer_lost > 0).count();
    println!(
        "{} of {} went wrong, in {:.0?}; connections were cut at {cut} of {} statements",
        failed,
        asked.scenes.len(),
        began.elapsed(),
        coverage.0.len()
    );
    if asked.shows_coverage {
        for (statement, [seen, lost, answer_lost]) in &coverage.0 {
            println!("{seen:7} executed, {lost:3} lost, {answer_lost:3} answers lost: {statement}");
        }
    }
    if failed > 0 || asked.keeps_logs {
        println!("the logs are in {}", home.keep().display());
    }
    failed
}

/// What all scenes share.
struct Stage {
    template: Template,
    runtime: Handle,
    home: PathBuf,
    coverage: Mutex<Coverage>,
    keeps_logs: bool,
}

impl Stage {
    /// Plays a scene and says how it was: whether all was well.
    fn play(&self, scene: Scene) -> bool {
        let began = Instant::now();
        let (home, title, again) = match scene {
            Scene::Seed(seed) => (
                self.home.join(format!("seed-{seed}")),
                format!("seed {seed:3}"),
                format!("make chaos SEED={seed}"),
            ),
            Scene::Kills(protocol, seed) => (
                self.home.join(format!("sqlite-{}-{seed}", protocol.to_string().replace('/', "-"))),
                "SQLite  ".to_owned(),
                "make chaos SEEDS=0".to_owned(),
            ),
        };
        let played = catch_unwind(AssertUnwindSafe(|| match scene {
            Scene::Seed(seed) => {
                let plan = Plan::new(seed);
                let (verdict, coverage) = play::run(&plan, &self.template, home.clone(), &self.runtime);
                self.coverage.lock().unwrap().add(&coverage);
                (verdict, plan.to_string())
            }
            Scene::Kills(protocol, seed) => {
                let (verdict, boundaries, died) = kills::run(home.clone(), &self.runtime, protocol, seed);
                (verdict, format!("{died} deaths at {boundaries} boundaries over {protocol}"))
            }
        }));
        let (verdict, what) = played.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            (Verdict { wrong: vec![said.to_owned()], ..Verdict::default() }, String::new())
        });
        let Verdict { runs, spans, records, copies, apart, wrong } = &verdict;
        let word = if wrong.is_empty() { "ok    " } else { "FAILED" };
        let mut line = format!(
            "{title}  {word}  {runs} runs, {spans} spans, {records} records, {copies} copies, {apart} in a gap; {what}; {:.1?}",
            began.elapsed(),
        );
        if wrong.is_empty() {
            if !self.keeps_logs {
                let _ = std::fs::remove_dir_all(&home);
            }
        } else {
            for what in wrong.iter().take(10) {
                line += &format!("\n    {what}");
            }
            line +=
                &format!("\n    {} things are wrong; again: {again}; logs: {}", wrong.len(), home.display());
        }
        println!("{line}");
        wrong.is_empty()
    }
}
