//! What the journal costs whoever writes the runs: bare, with a trigger that does nothing (the least that any trigger
//! costs), with runspan's, and with an outbox that the application writes by hand.
//!
//! No relay runs. Each round takes every variant in turn, from tables that were emptied; what counts are the ratios
//! of one run.

mod pgbench;
mod postgres;
mod server;
mod sqlite;

use super::Failure;
use crate::report::{Bound, Report};

/// After one that warms up.
const ROUNDS: usize = 7;
const TRANSITIONS: f64 = 3.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Detached,
    Empty,
    Attached,
    Outbox,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Detached, Self::Empty, Self::Attached, Self::Outbox];

    /// In the order of a round: each of them is first in turn, so that none gains by its place.
    fn in_turn(round: usize) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().cycle().skip(round % Self::ALL.len()).take(Self::ALL.len())
    }
}

pub(crate) async fn run() -> Result<(), Failure> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    println!("load before: {load} (of anything else, and throughput and latency mean little: look at CPU)\n");
    match std::env::var("RUNSPAN_TEST_POSTGRES_URL") {
        Ok(url) => postgres::run(&url.parse()?).await?,
        Err(_) => eprintln!("PostgreSQL is not measured: run make bench ARGS=writer"),
    }
    sqlite::run().await
}

fn report(title: &str) -> Report {
    Report::new(title, &["detached", "empty trigger", "attached", "outbox by hand"])
}

/// What a variant came to in each round, by what the bare writer came to in the same round.
fn ratios(report: &Report, variant: Variant, name: &str) -> Vec<f64> {
    let bare = report.rounds(Variant::Detached as usize, name);
    report.rounds(variant as usize, name).iter().zip(bare).map(|(of, bare)| of / bare).collect()
}

/// What a variant adds to what the bare writer came to, in each round.
fn added(report: &Report, variant: Variant, name: &str) -> Vec<f64> {
    let bare = report.rounds(Variant::Detached as usize, name);
    report.rounds(variant as usize, name).iter().zip(bare).map(|(of, bare)| of - bare).collect()
}

/// The goals for the figure `name`, in µs a run.
fn cpu_goals(report: &mut Report, name: &str) {
    let attached = added(report, Variant::Attached, name);
    let outbox = added(report, Variant::Outbox, name);
    let share = attached.iter().zip(outbox).map(|(attached, outbox)| attached / outbox).collect();
    report.goal("added CPU, of the outbox's", Bound::AtMost(0.35), share);
    let each = attached.iter().map(|attached| attached / TRANSITIONS).collect();
    report.goal("added CPU, µs a transition", Bound::AtMost(60.0), each);
}
