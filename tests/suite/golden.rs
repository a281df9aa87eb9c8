//! Golden files: the telemetry of one fixed journal, down to the bytes.
//!
//! Queries and dashboards rest on what leaves this program. So a restructuring may change how spans, records and
//! metrics are made, but no line of the files in `golden/`. Only metric descriptions, which are prose, are left out.
//! The state of open runs is in them too: another version of this program has stored it in this form.

mod journal;
mod render;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use runspan::journal::{Entry, Row};
use runspan::otlp::body;
use runspan::otlp::config::Resource;
use runspan::otlp::encode::{self, Encoder, MAX_REQUEST};
use runspan::projection::{Projected, Settings, Tracked, project};
use runspan::run::{RunId, Status, Timestamp};
use runspan::series::{InFlight, Ledger, Totals};

use self::journal::START;

macro_rules! assert_golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!(
            { snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true },
            { insta::assert_snapshot!($name, $text) }
        )
    };
}

/// A relay without a database.
struct Replay {
    encoder: Encoder,
    /// As stored: JSON.
    open_runs: BTreeMap<RunId, String>,
    ledger: Ledger,
    batches: i64,
}

impl Replay {
    fn new() -> Self {
        let resource = Resource::from_env(&|name| match name {
            "OTEL_SERVICE_NAME" => Some("bot".to_owned()),
            "OTEL_RESOURCE_ATTRIBUTES" => Some("deployment.environment.name=test".to_owned()),
            _ => None,
        });
        Self {
            encoder: Encoder::new(&resource.unwrap(), "database-1"),
            open_runs: BTreeMap::new(),
            ledger: Ledger::open(None, "database-1").0,
            batches: 0,
        }
    }

    fn project(&mut self, rows: Vec<Row>) -> Projected {
        let entries = rows.into_iter().map(|row| Entry::try_from(row).unwrap());
        let stored = self.open_runs.iter();
        let open: HashMap<RunId, Tracked> =
            stored.map(|(run, state)| (*run, serde_json::from_str(state).unwrap())).collect();
        let projected = project(open, entries, &Settings::default());
        for run in &projected.closed {
            assert!(self.open_runs.remove(run).is_some(), "{run} was not open");
        }
        for (run, open) in &projected.opened {
            self.open_runs.insert(*run, serde_json::to_string(open).unwrap());
        }
        projected
    }

    fn add(&mut self, totals: Totals) {
        self.batches += 1;
        self.ledger.receive([(self.batches, totals)]);
    }

    /// An export after this batch.
    fn export(&mut self) -> String {
        let now = Timestamp::from_micros(START + self.batches * 60_000_000);
        self.ledger.begin(now, Duration::from_mins(1), self.batches.unsigned_abs());
        let row = |workflow: &str, status| InFlight {
            workflow: workflow.to_owned(),
            status,
            runs: self.batches,
            oldest_age: 1.5,
        };
        let rows = vec![row("triage", Status::Queued), row("plan", Status::Running)];
        let series = self.encoder.series(&self.ledger.series(), true, MAX_REQUEST);
        let in_flight = self.encoder.in_flight(&self.ledger.in_flight(rows), now, MAX_REQUEST);
        self.ledger.acknowledged();
        series.into_iter().chain(in_flight).map(|request| render::metrics(request.wire)).collect()
    }
}

#[test]
fn spans_records_and_open_runs_match_golden_files() {
    let mut replay = Replay::new();
    let (mut spans, mut records, mut lines, mut open_runs) =
        (String::new(), String::new(), String::new(), String::new());
    for (batch, rows) in (1..).zip(journal::batches()) {
        let projected = replay.project(rows);
        for text in [&mut spans, &mut records, &mut lines, &mut open_runs] {
            writeln!(text, "# Batch {batch}").unwrap();
        }
        for request in replay.encoder.spans(&projected.spans) {
            writeln!(spans, "items={} runs={}", request.items, request.runs).unwrap();
            spans += &render::excerpt(&render::spans(&body::unpack(&request.body).unwrap()), 280);
        }
        for request in replay.encoder.records(&projected.records) {
            writeln!(records, "items={} runs={}", request.items, request.runs).unwrap();
            records += &render::excerpt(&render::records(&body::unpack(&request.body).unwrap()), 50);
        }
        if let Some(request) = encode::lines(&projected.records) {
            writeln!(lines, "items={} runs={}", request.items, request.runs).unwrap();
            let text = String::from_utf8(request.body.into()).unwrap();
            lines += &render::excerpt(&text, 50);
        }
        let opened: Vec<RunId> = projected.opened.iter().map(|(run, _)| *run).collect();
        writeln!(open_runs, "opened={opened:?} closed={:?}", projected.closed).unwrap();
        for (run, state) in &replay.open_runs {
            writeln!(open_runs, "{run} {state}").unwrap();
        }
    }
    assert_golden!("spans", spans);
    assert_golden!("records", records);
    assert_golden!("lines", lines);
    assert_golden!("open_runs", open_runs);
}

#[test]
fn metrics_match_golden_files() {
    let mut replay = Replay::new();
    let mut metrics = String::new();
    for (batch, rows) in (1..).zip(journal::batches()) {
        let projected = replay.project(rows);
        writeln!(metrics, "# Batch {batch}\nstored: {}", serde_json::to_string(&projected.totals).unwrap())
            .unwrap();
        replay.add(projected.totals);
        // The third is so late that it repeats what the second said.
        if [1, 3, 9].contains(&batch) {
            metrics += &replay.export();
        }
    }
    assert_golden!("metrics", metrics);
}

#[test]
fn workflows_beyond_the_limit_share_their_series() {
    let mut replay = Replay::new();
    let projected = replay.project(journal::many_workflows());
    replay.add(projected.totals);
    let metrics = replay.export();
    let others: String =
        metrics.lines().filter(|line| line.contains("#other#")).map(|line| format!("{line}\n")).collect();
    assert_golden!("overflow", format!("{others}all: {}", render::checksum(metrics.as_bytes())));
}
