//! The journal's detail, and what it is projected to.

use std::collections::{BTreeMap, HashMap, HashSet};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use prost::Message;
use runspan::journal::{Entry, Row};
use runspan::otlp::body;
use runspan::otlp::config::Resource;
use runspan::otlp::encode::{self, Encoder, MAX_REQUEST};
use runspan::projection::{MAX_EVENTS, Projected, Record, Settings, Span, SpanKind, Tracked, project};
use runspan::run::{RunId, Timestamp};
use runspan::semconv::Event;
use runspan::series::{Buckets, Key, MetricKind, Totals};
use runspan::store::NewRequest;
use uuid::Uuid;

use super::{fuzz, text};

/// What no reason may give away. Made of two parts, so that no scanner takes this file for a leak.
const SECRET: &str = concat!("gh", "p_Zk2XwB9vLr4TnJ8sGd3HfP6mCy5RtE1aNu7q");

#[test]
fn any_journal() {
    let inputs = (prop::collection::vec(row(), 0..24), prop::collection::vec(any::<bool>(), 24));
    fuzz("any journal", &inputs, |(rows, cuts)| {
        check(rows, &cuts)?;
        Ok(())
    });
}

#[test]
fn a_journal_that_missed_nothing() {
    let steps =
        prop::collection::vec((0..3_usize, prop::option::of(0..STATUSES.len()), time(), reason()), 0..40);
    let inputs = (steps, prop::collection::vec(any::<bool>(), 40));
    fuzz("a journal that missed nothing", &inputs, |(steps, cuts)| {
        let (rows, ended) = lived(steps);
        let spans = check(rows, &cuts)?;
        let mut told: Vec<RunId> =
            spans.iter().filter(|span| matches!(span.kind, SpanKind::Run(_))).map(|span| span.run).collect();
        told.sort_unstable();
        prop_assert_eq!(told, ended, "one span of each run that ended");
        Ok(())
    });
}

/// Ids that collide, and that make ids of spans out of zeros.
fn id() -> impl Strategy<Value = Uuid> {
    let ids = [
        0,
        1,
        0xc0,
        u128::MAX,
        0x0190_0000_0000_7000_0000_0000_0000_0000,
        0x0190_0000_0000_7000_8000_0000_0000_0001,
        0xc000_0000_0000_0000,
        u128::from(u64::MAX) << 64,
    ];
    prop_oneof![
        8 => prop::sample::select(ids.to_vec()).prop_map(Uuid::from_u128),
        1 => any::<u128>().prop_map(Uuid::from_u128),
    ]
}

fn time() -> impl Strategy<Value = i64> {
    const NOW: i64 = 1_800_000_000_000_000;
    prop_oneof![
        6 => NOW..NOW + 1_000_000_000,
        1 => prop::sample::select(vec![i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX]),
        1 => any::<i64>(),
    ]
}

fn reason() -> impl Strategy<Value = Option<String>> {
    let beginnings = ["", "uncaught: ", "enqueue failed: ", "owner lost: ", "timeout: ", "context-mismatch"];
    let said = (prop::sample::select(beginnings.to_vec()), text(), any::<bool>()).prop_map(
        |(begin, text, leaks)| {
            if leaks { format!("{begin}{text} {SECRET}") } else { format!("{begin}{text}") }
        },
    );
    prop::option::of(said)
}

fn status() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        2 => Just(None),
        8 => prop::sample::select(STATUSES.to_vec()).prop_map(|status| Some(status.to_owned())),
        1 => text().prop_map(Some),
    ]
}

fn maybe_text() -> impl Strategy<Value = Option<String>> {
    prop::option::weighted(0.8, text())
}

fn traceparent() -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop_oneof!["00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", text()])
}

/// A row as no trigger writes it.
fn row() -> impl Strategy<Value = Row> {
    let times = (time(), prop::option::of(time()));
    let ids = (
        prop::option::weighted(0.9, id()),
        prop::option::of(id()),
        prop::option::of(id()),
        prop::option::of(id()),
    );
    let target = (maybe_text(), maybe_text(), maybe_text(), prop::option::of(any::<i64>()));
    let names = (prop::option::weighted(0.95, text()), maybe_text(), maybe_text());
    let rest = (status(), status(), reason(), traceparent(), any::<bool>());
    (times, ids, target, names, rest).prop_map(|(times, ids, target, names, rest)| Row {
        seq: 0,
        at: times.0,
        created_at: times.1,
        run_id: ids.0,
        parent_run_id: ids.1,
        root_run_id: ids.2,
        inflight_run_id: ids.3,
        target_type: target.0,
        target_owner: target.1,
        target_repo: target.2,
        target_number: target.3,
        workflow_name: names.0,
        root_workflow_name: names.1,
        root_delivery_id: names.2.clone(),
        delivery_id: names.2,
        from_status: rest.0,
        to_status: rest.1,
        reason: rest.2,
        traceparent: rest.3,
        reconciled: rest.4,
    })
}

const STATUSES: [&str; 5] = ["queued", "running", "succeeded", "failed", "incomplete"];

/// Rows as the triggers write them while some runs take whatever statuses come (`None`: the row is deleted), and the
/// runs that ended.
fn lived(steps: Vec<(usize, Option<usize>, i64, Option<String>)>) -> (Vec<Row>, Vec<RunId>) {
    let ids = [0_u128, 7, 0x0190_0000_0000_7000_8000_0000_0000_0001].map(Uuid::from_u128);
    let in_flight = |status: &usize| *status < 2;
    // A deleted row stays deleted.
    let mut now: HashMap<usize, Option<usize>> = HashMap::new();
    let (mut over, mut ended) = (HashSet::new(), Vec::new());
    let mut rows = Vec::new();
    for (run, next, at, reason) in steps {
        let before = match now.get(&run) {
            None => None,
            Some(None) => continue,
            Some(Some(before)) => Some(*before),
        };
        if before == next {
            continue;
        }
        now.insert(run, next);
        // A row that is inserted as ended is no run, and what ended once has ended.
        if !next.as_ref().is_some_and(in_flight) && over.insert(run) && before.is_some() {
            ended.push(RunId::from(ids[run]));
        }
        rows.push(Row {
            at,
            run_id: Some(ids[run]),
            workflow_name: Some("triage".to_owned()),
            from_status: before.map(|status| STATUSES[status].to_owned()),
            to_status: next.map(|status| STATUSES[status].to_owned()),
            parent_run_id: (run == 2).then_some(ids[1]),
            reason,
            ..Row::default()
        });
    }
    ended.sort_unstable();
    (rows, ended)
}

/// What a journal came to, batch by batch.
#[derive(Default)]
struct Told {
    open: HashMap<RunId, Tracked>,
    spans: Vec<Span>,
    records: Vec<Record>,
    counters: BTreeMap<Key, u64>,
    /// Values in each bucket, and their sum.
    histograms: BTreeMap<Key, (Vec<u64>, f64)>,
}

impl Told {
    fn batch(&mut self, entries: &[Entry]) {
        let projected = project(self.open.clone(), entries.iter().cloned(), &Settings::default());
        let Projected { spans, records, opened, closed, totals, warnings: _ } = projected;
        for run in closed {
            assert!(self.open.remove(&run).is_some(), "{run} was not open");
        }
        for (run, open) in opened {
            // As it is stored.
            let text = serde_json::to_string(&open).unwrap();
            self.open.insert(run, serde_json::from_str(&text).unwrap());
        }
        self.spans.extend(spans);
        self.records.extend(records);
        self.count(&totals);
    }

    fn count(&mut self, totals: &Totals) {
        for (key, count) in totals.counters() {
            *self.counters.entry(key.clone()).or_default() += count;
        }
        for (key, distribution) in totals.histograms() {
            let counts = distribution.counts(&Buckets::default());
            let (sums, sum) =
                self.histograms.entry(key.clone()).or_insert_with(|| (vec![0; counts.len()], 0.0));
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            *sum += distribution.sum_seconds();
        }
    }

    fn values(&self, kind: MetricKind) -> u64 {
        let of_kind = self.histograms.iter().filter(|(key, _)| key.kind == kind);
        of_kind.flat_map(|(_, (counts, _))| counts).sum()
    }
}

/// Whatever the rows are: projects them at once and cut into batches.
fn check(rows: Vec<Row>, cuts: &[bool]) -> Result<Vec<Span>, TestCaseError> {
    let entries: Vec<Entry> = rows.into_iter().filter_map(|row| Entry::try_from(row).ok()).collect();
    let mut at_once = Told::default();
    at_once.batch(&entries);
    let mut in_batches = Told::default();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let from = entries.len() - rest.len();
        let length = (from..entries.len()).position(|index| cuts.get(index) == Some(&true));
        let (batch, others) = rest.split_at(length.map_or(rest.len(), |length| length + 1));
        in_batches.batch(batch);
        rest = others;
    }
    prop_assert_eq!(&at_once.spans, &in_batches.spans);
    prop_assert_eq!(&at_once.records, &in_batches.records);
    prop_assert_eq!(&at_once.open, &in_batches.open);
    prop_assert_eq!(&at_once.counters, &in_batches.counters);
    let buckets = |told: &Told| -> Vec<_> {
        told.histograms.iter().map(|(key, (counts, _))| (key.clone(), counts.clone())).collect()
    };
    prop_assert_eq!(buckets(&at_once), buckets(&in_batches));

    of_counts(&at_once)?;
    at_once.spans.iter().try_for_each(of_span)?;
    at_once.records.iter().try_for_each(of_record)?;
    of_requests(&at_once.spans, &at_once.records)?;
    Ok(at_once.spans)
}

fn of_counts(told: &Told) -> TestCaseResult {
    prop_assert_eq!(told.counters.values().sum::<u64>(), told.records.len() as u64);
    let of = |event| told.records.iter().filter(|record| record.event == event).count();
    let waits = told.spans.iter().filter(|span| span.kind == SpanKind::Queue).count();
    prop_assert_eq!(told.spans.len() - waits, of(Event::Completed));
    prop_assert_eq!(told.values(MetricKind::Duration), of(Event::Completed) as u64);
    prop_assert_eq!(told.values(MetricKind::QueueDuration), waits as u64);
    for event in Event::ALL {
        let keys = told.counters.iter().filter(|(key, _)| key.event == Some(*event));
        prop_assert_eq!(keys.map(|(_, count)| *count).sum::<u64>(), of(*event) as u64);
    }
    Ok(())
}

fn of_span(span: &Span) -> TestCaseResult {
    let events = span.events.iter().map(|event| event.at);
    let times: Vec<Timestamp> = [span.start].into_iter().chain(events).chain([span.end]).collect();
    prop_assert!(times.is_sorted(), "{times:?}");
    prop_assert!(span.events.len() <= MAX_EVENTS);
    // A span's id is the half of its run's.
    let half = |id: RunId| id.uuid().as_u64_pair().1;
    if let Some(lineage) = &span.context.lineage
        && (half(lineage.parent) != half(span.run) || lineage.parent == span.run)
    {
        prop_assert_ne!(span.parent(), Some(span.span_context().span_id), "its own parent");
    }
    prop_assert!(!format!("{span:?}").contains(&SECRET[4..]), "{span:?}");
    Ok(())
}

fn of_record(record: &Record) -> TestCaseResult {
    let body = record.body();
    prop_assert!(body.starts_with(record.event.name()), "{body}");
    prop_assert!(!body.contains(char::is_control), "{body:?}");
    if let Some(run) = record.run() {
        prop_assert!(body.contains(&run.to_string()), "{body}");
    }
    prop_assert!(!format!("{record:?}").contains(&SECRET[4..]), "{record:?}");
    Ok(())
}

/// That what is stored is what was projected, whole and in every half.
fn of_requests(spans: &[Span], records: &[Record]) -> TestCaseResult {
    let resource = Resource::from_env(&|_| None).unwrap();
    let encoder = Encoder::new(&resource, "database");
    let in_spans = |body: &[u8]| {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        for span in spans {
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
            assert!(
                span.trace_id.iter().any(|byte| *byte != 0) && span.span_id.iter().any(|byte| *byte != 0)
            );
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        }
        spans.len()
    };
    let in_records = |body: &[u8]| {
        let request = ExportLogsServiceRequest::decode(body).unwrap();
        request.resource_logs[0].scope_logs[0].log_records.len()
    };
    prop_assert_eq!(items(encoder.spans(spans), &in_spans), spans.len());
    prop_assert_eq!(items(encoder.records(records), &in_records), records.len());

    let lines = encode::lines(records).map(|lines| lines.body).unwrap_or_default();
    let lines = String::from_utf8(lines.to_vec()).unwrap();
    prop_assert_eq!(lines.lines().count(), records.len());
    for (line, record) in lines.lines().zip(records) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        prop_assert_eq!(&line["event"], record.event.name());
        prop_assert_eq!(&line["message"], &record.body());
    }
    Ok(())
}

/// How many items the requests hold, counted in their smallest parts.
fn items(requests: Vec<NewRequest>, count: &dyn Fn(&[u8]) -> usize) -> usize {
    let mut singles = 0;
    for request in requests {
        let wire = body::unpack(&request.body).unwrap();
        assert!(request.items == 1 || wire.len() <= MAX_REQUEST + 64 * 1024, "{} bytes", wire.len());
        assert_eq!(count(&wire), request.items);
        singles += match encode::halve(request.channel, &request.body).unwrap() {
            Some(halves) => items(halves.into(), count),
            None => 1,
        };
    }
    singles
}
