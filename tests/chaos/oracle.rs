//! Compares what arrived with what the writers say, the tables and the metrics. Every line is something that is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use crate::database::Database;
use crate::ledger::Ledger;
use crate::output::{Attributes, Record, Span, items, without_copies};
use crate::plan::{Kind, Plan};
use crate::play::TIME_OUT;
use crate::points::Series;
use crate::received::{self, Point, last_values};
use crate::receiver::Received;

/// A fault casts its shadow so long: what was under way on either side of it.
const SHADOW: Duration = Duration::from_millis(500);

/// What arrived.
pub(crate) enum Arrived {
    /// At the receiver of the play, in this order.
    Requests(Vec<(Instant, Received)>),
    /// At the Collector: its files.
    Files { traces: Vec<String>, logs: Vec<String>, metrics: Vec<String> },
}

/// What came of a seed.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) runs: usize,
    pub(crate) spans: usize,
    pub(crate) records: usize,
    pub(crate) copies: usize,
    pub(crate) apart: usize,
    pub(crate) wrong: Vec<String>,
}

pub(crate) struct Oracle<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) database: &'a Database,
    /// From when until when something was wrong.
    pub(crate) faults: &'a [(Instant, Instant)],
    /// How often a relay had no answer in time: a busy machine is a fault, too.
    pub(crate) time_outs: usize,
}

impl Oracle<'_> {
    pub(crate) fn judge(&self, arrived: Arrived) -> Verdict {
        let mut verdict = Verdict::default();
        let (mut spans, mut records, exports) = match arrived {
            Arrived::Requests(requests) => sort_out(requests, self.faults, self.time_outs, &mut verdict),
            Arrived::Files { traces, logs, metrics } => {
                let (traces, copies) = without_copies(traces);
                let (logs, more_copies) = without_copies(logs);
                verdict.copies = copies + more_copies;
                let exports = metrics.iter().map(|line| received::points_of_line(line)).collect();
                (items(&traces), items(&logs), exports)
            }
        };
        (verdict.spans, verdict.records) = (spans.len(), records.len());
        if self.plan.has(Kind::Poison) {
            // What is in doubt is passed over for a while.
            // Of one moment the end's own record comes first but for `enqueue_failed`, and the rollup last.
            let place = |event: &str| match event {
                COMPLETED => 2,
                "workflow.run.failed" => 1,
                _ => 0,
            };
            records.sort_by_key(|record| (record.at, place(&record.event_name)));
        }
        let apart = if self.plan.has_gaps() { Apart::take(self.database) } else { Apart::default() };
        verdict.apart = apart.lines.len();
        let (spans_apart, records_apart) = apart.split(&mut spans, &mut records);
        let mut expected = Totals::of(self.database);
        expected.add(&spans_apart, &records_apart);
        apart.judge(&spans_apart, &records_apart, &mut verdict.wrong);

        let ledger = Ledger::read(self.database);
        verdict.runs = ledger.runs();
        verdict.wrong.extend(ledger.compare(spans, records));
        self.tables(&mut verdict.wrong);
        self.metrics(exports, &expected, &mut verdict.wrong);
        verdict
    }

    /// Nothing waits, nothing is left over, and open is what is in flight.
    fn tables(&self, wrong: &mut Vec<String>) {
        for nothing in ["runspan.journal", "runspan.outbox", "runspan.set_aside"] {
            let left = self.database.number(&format!("SELECT count(*) FROM {nothing}"));
            if left != 0 {
                wrong.push(format!("{left} rows are left in {nothing}"));
            }
        }
        let otherwise = self.database.number(
            "SELECT count(*) FROM runspan.open_runs o
             FULL JOIN (SELECT * FROM workflow_runs WHERE status IN ('queued', 'running')) w ON w.id = o.run_id
             WHERE w.status IS DISTINCT FROM o.status
               AND NOT EXISTS (SELECT FROM ledger l WHERE l.run_id = w.id AND l.event = 'conflict')",
        );
        if otherwise != 0 {
            wrong.push(format!("{otherwise} open runs are not those in flight"));
        }
        if !self.plan.has_gaps() {
            let skipped = skipped(self.database);
            if skipped != 0 {
                wrong.push(format!("the triggers skipped {skipped} entries"));
            }
        }
    }

    /// The last values equal SQL.
    fn metrics(&self, exports: Vec<Vec<Point>>, expected: &Totals, wrong: &mut Vec<String>) {
        // A holder that was stopped may send what it had in hand when it goes on.
        let is_in_order = !self.plan.has(Kind::Pause) && !self.plan.has(Kind::Stall);
        let samples = samples(exports, is_in_order, wrong);
        compare("workflow.run.duration", &["workflowName", "outcome"], &samples, &expected.ends, wrong);
        compare("workflow.run.events", &["workflowName", "event"], &samples, &expected.events, wrong);
        compare(
            "workflow.run.active",
            &["workflowName", "status"],
            &samples,
            &in_flight(self.database),
            wrong,
        );
        let skipped = [(vec![], skipped(self.database).unsigned_abs())].into();
        compare("runspan.journal.skipped", &[], &samples, &skipped, wrong);
    }
}

/// Takes copies out. Each has to have a fault between it and the first of its kind.
pub(crate) fn sort_out(
    requests: Vec<(Instant, Received)>,
    faults: &[(Instant, Instant)],
    mut time_outs: usize,
    verdict: &mut Verdict,
) -> (Vec<Span>, Vec<Record>, Vec<Vec<Point>>) {
    use runspan::otlp::Signal;
    let (mut spans, mut records, mut exports) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen: HashMap<Bytes, Instant> = HashMap::new();
    for (at, request) in requests {
        if request.signal == Signal::Metrics {
            exports.push(received::points(&request));
            continue;
        }
        if let Some(first) = seen.insert(request.body.clone(), at) {
            verdict.copies += 1;
            let is_explained = faults
                .iter()
                .any(|(from, until)| *from <= at && *until + SHADOW >= first.checked_sub(SHADOW).unwrap());
            if !is_explained && time_outs > 0 && at - first >= TIME_OUT {
                time_outs -= 1;
            } else if !is_explained {
                verdict.wrong.push(format!(
                    "a request of {:?} was sent again after {:?}, and no fault came between",
                    request.signal,
                    at - first
                ));
            }
            continue;
        }
        match request.signal {
            Signal::Traces => spans.extend(received::spans(&request)),
            Signal::Logs => records.extend(received::records(&request)),
            Signal::Metrics => {}
        }
    }
    (spans, records, exports)
}

/// All samples. No counter ever went back, and no moment has two values.
pub(crate) fn samples(exports: Vec<Vec<Point>>, is_in_order: bool, wrong: &mut Vec<String>) -> Samples {
    let mut samples = Samples::new();
    // What the relays say of themselves is gone with them.
    let lasting = |(series, ..): &Point| {
        series.starts_with("workflow.") || series.starts_with("runspan.journal.skipped")
    };
    for (series, at, value) in exports.into_iter().flatten().filter(lasting) {
        let known = samples.entry(series.clone()).or_default();
        let newest = known.last_key_value().map_or(0, |(at, _)| *at);
        match known.get(&at) {
            Some(same) if (same - value).abs() > 1e-9 => {
                wrong.push(format!("{series} is {same} and {value} at {at}"));
            }
            None if at < newest && is_in_order => {
                wrong.push(format!("{series} goes back in time: {newest}, {at}"));
            }
            _ => {}
        }
        known.insert(at, value);
    }
    for (series, values) in &samples {
        let grows = !series.starts_with("workflow.run.active") && !series.starts_with("workflow.run.oldest");
        let values: Vec<f64> = values.values().copied().collect();
        if grows && values.windows(2).any(|pair| pair[1] < pair[0]) {
            wrong.push(format!("{series} goes back: {values:?}"));
        }
    }
    samples
}

/// Each value of each series, by its time in milliseconds.
pub(crate) type Samples = BTreeMap<Series, BTreeMap<u64, f64>>;

/// Counts by labels.
pub(crate) type Counts = BTreeMap<Vec<String>, u64>;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
pub(crate) fn compare(
    metric: &str,
    labels: &[&str],
    samples: &Samples,
    expected: &Counts,
    wrong: &mut Vec<String>,
) {
    let mut found = Counts::new();
    for (series, value) in last_values(samples, metric) {
        let label = |name: &&str| {
            let pair = series.iter().find(|(key, _)| key == name);
            pair.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        *found.entry(labels.iter().map(label).collect()).or_default() += value.round() as u64;
    }
    let keys: HashSet<_> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        let [found, expected] = [&found, expected].map(|counts| counts.get(key).copied().unwrap_or_default());
        if found != expected {
            wrong.push(format!("{metric} of {} is {found}, and SQL says {expected}", key.join(" ")));
        }
    }
}

/// What the metrics have to come to.
struct Totals {
    ends: Counts,
    events: Counts,
}

#[derive(Deserialize)]
struct Row {
    workflow: String,
    what: String,
    count: u64,
}

fn counts(database: &Database, sql: &str) -> Counts {
    let rows: Vec<Row> = database.rows(sql);
    rows.into_iter().map(|row| (vec![row.workflow, row.what], row.count)).collect()
}

impl Totals {
    fn of(database: &Database) -> Self {
        // The first end stands.
        let ends = counts(
            database,
            "SELECT run ->> 'workflow_name' AS workflow, e.event AS what, count(*) AS count
             FROM (SELECT DISTINCT ON (run_id) run_id, event FROM ledger
                   WHERE event IN ('succeeded', 'failed', 'incomplete', 'deleted') ORDER BY run_id, id) e
             JOIN ledger l ON l.run_id = e.run_id AND l.run IS NOT NULL GROUP BY 1, 2",
        );
        let mut events = counts(
            database,
            "SELECT r.run ->> 'workflow_name' AS workflow, 'workflow.run.' || l.event AS what, count(*) AS count
             FROM ledger l JOIN ledger r ON r.run_id = l.run_id AND r.run IS NOT NULL GROUP BY 1, 2",
        );
        add_completed(&mut events, &ends);
        Self { ends, events }
    }

    fn add(&mut self, spans: &[Span], records: &[Record]) {
        let text = |attributes: &Attributes, key: &str| {
            attributes.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
        };
        for span in spans.iter().filter(|span| span.kind == RUN) {
            let labels = vec![span.name.clone(), text(&span.attributes, "outcome")];
            *self.ends.entry(labels).or_default() += 1;
        }
        for record in records {
            let labels = vec![text(&record.attributes, "workflowName"), record.event_name.clone()];
            *self.events.entry(labels).or_default() += 1;
        }
    }
}

/// Each end has its rollup.
pub(crate) fn add_completed(events: &mut Counts, ends: &Counts) {
    for (labels, count) in ends {
        *events.entry(vec![labels[0].clone(), COMPLETED.to_owned()]).or_default() += count;
    }
}

fn in_flight(database: &Database) -> Counts {
    counts(
        database,
        "SELECT workflow_name AS workflow, status AS what, count(*) AS count FROM workflow_runs
         WHERE status IN ('queued', 'running') GROUP BY 1, 2",
    )
}

fn skipped(database: &Database) -> i64 {
    database.number("SELECT coalesce(pg_sequence_last_value('runspan.journal_skipped'), 0)")
}

/// The record that follows an end's own.
const COMPLETED: &str = "workflow.run.completed";

/// OTLP's SERVER: the kind of a run's span.
const RUN: u8 = 2;

/// The runs that the journal did not see all of, with their trees: less is known of them.
#[derive(Default)]
struct Apart {
    lines: HashMap<Uuid, Vec<Line>>,
    refusals: HashSet<String>,
}

#[derive(Deserialize)]
struct Line {
    run_id: Uuid,
    event: String,
    delivery_id: Option<String>,
    missed: bool,
    is_first: bool,
    is_ahead: bool,
    began: i64,
}

impl Apart {
    fn take(database: &Database) -> Self {
        database.sql("SELECT set_apart()");
        let mut apart = Self::default();
        for line in database.rows::<Line>(
            "SELECT run_id, event, delivery_id, missed, run IS NOT NULL AS is_first,
                 coalesce((run -> 'is_ahead')::boolean, false) AS is_ahead,
                 (extract(epoch FROM began) * 1000000)::bigint AS began FROM apart ORDER BY id",
        ) {
            if let Some(delivery) = &line.delivery_id {
                apart.refusals.insert(delivery.clone());
            } else {
                apart.lines.entry(line.run_id).or_default().push(line);
            }
        }
        apart
    }

    fn split(&self, spans: &mut Vec<Span>, records: &mut Vec<Record>) -> (Vec<Span>, Vec<Record>) {
        let is_apart = |attributes: &Attributes| {
            let text =
                |key: &str| attributes.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            text("runId").parse().is_ok_and(|run: Uuid| self.lines.contains_key(&run))
                || text("event") == "workflow.run.dispatch_refused"
                    && self.refusals.contains(text("deliveryId"))
        };
        (
            spans.extract_if(.., |span| is_apart(&span.attributes)).collect(),
            records.extract_if(.., |record| is_apart(&record.attributes)).collect(),
        )
    }

    /// A run that lay in the gap from its beginning to its end has no span, or one if it was found in between; every
    /// other that ended has one.
    fn judge(&self, spans: &[Span], records: &[Record], wrong: &mut Vec<String>) {
        let mut of_run: HashMap<Uuid, Vec<&Span>> = HashMap::new();
        for span in spans.iter().filter(|span| span.kind == RUN) {
            of_run.entry(span.attributes["runId"].as_str().unwrap().parse().unwrap()).or_default().push(span);
        }
        for (run, lines) in &self.lines {
            let spans = of_run.get(run).map_or(&[][..], Vec::as_slice);
            let ends: Vec<&Line> = lines.iter().filter(|line| is_end(&line.event)).collect();
            // What comes after its end tells nothing of it.
            let life = lines.iter().take_while(|line| line.event != "conflict");
            let seen = life.filter(|line| !line.missed && line.event != "handed_off").count();
            if spans.len() > 1 {
                wrong.push(format!("run {run} has {} spans", spans.len()));
            }
            if ends.is_empty() && !spans.is_empty() {
                wrong.push(format!("run {run} has a span, though it is in flight"));
            }
            if !ends.is_empty() && seen > 0 && spans.is_empty() {
                wrong.push(format!("run {run} was seen by the journal, and has no span"));
            }
            for span in spans {
                let first = lines.iter().find(|line| line.is_first);
                let began = first.map(|line| line.began);
                // One that is ahead says nothing of a run whose beginning was missed.
                if !first.is_some_and(|line| line.is_ahead) && began != Some(span.start) {
                    wrong.push(format!("run {run} began at {began:?}, not at {}", span.start));
                }
                let outcome = span.attributes["outcome"].as_str().unwrap_or_default();
                let is_known = ends.iter().any(|end| end.event == outcome);
                // Where its end was missed, and what came after it too, the row says only how it went on.
                let is_end_missed = ends.iter().all(|end| end.missed);
                let told = |line: &Line| line.event == "conflict" && (!line.missed || is_end_missed);
                if !is_known && !lines.iter().any(told) {
                    wrong.push(format!("run {run} ended as {outcome}"));
                }
            }
        }
        let ends = records.iter().filter(|record| record.event_name == COMPLETED).count();
        let run_spans = spans.iter().filter(|span| span.kind == RUN).count();
        if ends != run_spans {
            wrong.push(format!("{ends} ends and {run_spans} spans of runs that the journal saw in part"));
        }
    }
}

fn is_end(event: &str) -> bool {
    matches!(event, "succeeded" | "failed" | "incomplete" | "deleted")
}
