//! What one export takes, and that too many workflow names take no more.

use std::io::Write as _;
use std::ops::Range;
use std::process::Command;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use runspan::otlp::encode::{Encoder, MAX_REQUEST};
use runspan::run::{Outcome, Timestamp};
use runspan::semconv::Event;
use runspan::series::{Buckets, Key, Ledger, MAX_WORKFLOWS, Totals};

use super::made::{all_of, observe, workflow};
use super::{Failure, INTERVAL, ROUNDS, START, encoder};
use crate::PEAK;
use crate::shown::{Spread, kib, millis, table};

/// More names than have series of their own.
const TOO_MANY: usize = 5_000;
/// How many of them one of the pending totals tells of.
const AT_ONCE: usize = 20;

const MINUTE: i64 = 60_000_000;

/// What is measured of an export.
const MEASURES: [&str; 7] =
    ["all, ms", "receive", "begin, series", "encode", "gzip, ms", "KiB", "KiB gzipped"];

/// Exports of one ledger, one after the other; of another from the first of too many names on.
const KINDS: [&str; 8] = [
    "200 names: the first",
    "a run in each bucket of each",
    "the same after an hour's gap",
    "a run in 8 buckets of each",
    "a minute of 2,000 runs",
    "nothing new",
    "5,000 names: the first",
    "nothing new",
];
const AFTER_A_GAP: usize = 2;
const TOO_MANY_KIND: usize = 6;

struct Exported {
    measures: [f64; MEASURES.len()],
    points: usize,
    requests: usize,
}

/// One export that arrives, at `now`.
fn export(ledger: &mut Ledger, encoder: &Encoder, fresh: Vec<Totals>, now: i64) -> Result<Exported, Failure> {
    let fresh: Vec<(i64, Totals)> = (ledger.last() + 1..).zip(fresh).collect();
    let began = Instant::now();
    ledger.receive(fresh);
    let received = millis(began.elapsed());
    ledger.begin(Timestamp::from_micros(now), INTERVAL, 0);
    let series = ledger.series();
    let made = millis(began.elapsed());
    let requests = encoder.series(&series, true, MAX_REQUEST);
    let all = millis(began.elapsed());
    let began = Instant::now();
    let mut gzipped = 0;
    for request in &requests {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&request.wire)?;
        gzipped += encoder.finish()?.len();
    }
    let gzip = millis(began.elapsed());
    ledger.acknowledged();
    let _ = ledger.change();
    let bytes = kib(requests.iter().map(|request| request.wire.len()).sum());
    Ok(Exported {
        measures: [all, received, made - received, all - made, gzip, bytes, kib(gzipped)],
        points: requests.iter().map(|request| request.items).sum(),
        requests: requests.len(),
    })
}

/// Every series of these workflows, with a run in each of `buckets`.
fn largest(workflows: usize, buckets: Range<usize>, now: i64) -> Vec<Totals> {
    let mut all = Vec::new();
    for first in (0..workflows).step_by(AT_ONCE) {
        let mut totals = Totals::default();
        for number in first..first + AT_ONCE {
            all_of(&mut totals, number, buckets.clone(), now);
        }
        all.push(totals);
    }
    all
}

/// A minute in which `runs` runs ended, of all workflows and in all buckets.
fn minute(runs: usize, now: i64) -> Vec<Totals> {
    let mut totals = Totals::default();
    for number in 0..runs {
        run(&mut totals, number % MAX_WORKFLOWS, number / MAX_WORKFLOWS, now);
    }
    vec![totals]
}

/// A run that succeeded.
fn run(totals: &mut Totals, number: usize, bucket: usize, now: i64) {
    let (name, outcome) = (workflow(number), Outcome::Succeeded);
    let bucket = bucket % Buckets::default().len();
    observe(totals, Key::queue_duration(&name), bucket / 2, now);
    observe(totals, Key::execution_duration(&name, outcome), bucket, now);
    observe(totals, Key::duration(&name, outcome, None), bucket, now);
    for event in [Event::Queued, Event::Running, Event::Succeeded, Event::Completed] {
        totals.count(Key::events(Some(&name), event, None));
    }
}

pub(crate) fn exports() -> Result<(), Failure> {
    let encoder = encoder("bench")?;
    let every = 0..Buckets::default().len();
    let mut measures: [[Vec<f64>; MEASURES.len()]; KINDS.len()] = Default::default();
    let mut counts = [(0, 0); KINDS.len()];
    for round in 0..=ROUNDS {
        let (mut ledger, _) = Ledger::open(None, "bench");
        let mut now = START;
        for kind in 0..KINDS.len() {
            now += if kind == AFTER_A_GAP { 60 * MINUTE } else { MINUTE };
            let fresh = match kind {
                0..=AFTER_A_GAP => largest(MAX_WORKFLOWS, every.clone(), now),
                3 => largest(MAX_WORKFLOWS, 6..14, now),
                4 => minute(2_000, now),
                TOO_MANY_KIND => largest(TOO_MANY, every.clone(), now),
                _ => Vec::new(),
            };
            if kind == TOO_MANY_KIND {
                ledger = Ledger::open(None, "bench").0;
            }
            let exported = export(&mut ledger, &encoder, fresh, now)?;
            if round > 0 {
                for (measure, value) in exported.measures.into_iter().enumerate() {
                    measures[kind][measure].push(value);
                }
                counts[kind] = (exported.points, exported.requests);
            }
        }
    }
    let mut table = table(&[&["one export", "points", "requests"][..], &MEASURES].concat());
    for (kind, name) in KINDS.into_iter().enumerate() {
        let (points, requests) = counts[kind];
        let spreads = measures[kind].iter().map(|values| Spread::of(values)).enumerate();
        // Bytes hardly vary.
        let shown = spreads.map(|(measure, spread)| match MEASURES[measure] {
            "KiB" | "KiB gzipped" => format!("{:.0}", spread.median),
            _ => spread.to_string(),
        });
        table.add_row([name.to_owned(), points.to_string(), requests.to_string()].into_iter().chain(shown));
    }
    println!("{table}\n");
    Ok(())
}

/// The most memory that the same runs take, of few workflows and of too many.
pub(crate) fn peaks() -> Result<(), Failure> {
    let mut table = table(&["an hour of 2,000 runs a minute", "most memory, MiB"]);
    for names in [MAX_WORKFLOWS, TOO_MANY] {
        let child = Command::new(std::env::current_exe()?).args([PEAK, &names.to_string()]).output()?;
        let kib: f64 = String::from_utf8(child.stdout)?.trim().parse()?;
        table.add_row([format!("{names} names"), format!("{:.1}", kib / 1024.0)]);
    }
    println!("{table}\n");
    Ok(())
}

/// The child: exports, and how many KiB of memory they took at most.
pub(crate) fn peak(names: usize) -> Result<(), Failure> {
    let encoder = encoder("bench")?;
    let (mut ledger, _) = Ledger::open(None, "bench");
    let mut numbers = 0..;
    for minute in 1..=60 {
        let now = START + minute * MINUTE;
        let batch = |_| {
            let mut totals = Totals::default();
            for number in numbers.by_ref().take(500) {
                run(&mut totals, number % names, number / names, now);
            }
            totals
        };
        let fresh = (0..4).map(batch).collect();
        export(&mut ledger, &encoder, fresh, now)?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    println!("{}", line.trim().trim_end_matches(" kB"));
    Ok(())
}
