//! Series from increments to a receiver that computes as `rate()` does, with exports that fail in every way.

mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use self::replay::{Database, Receiver, export, render};
use super::*;
use crate::run::{Outcome, RunId, Timestamp};
use crate::semconv::Event;
use crate::trace_context::SpanContext;

const INTERVAL: Duration = Duration::from_mins(1);
const START: i64 = 1_800_000_000_000_000;

fn buckets(text: &str) -> Buckets {
    text.parse().unwrap()
}

fn span(number: u128) -> SpanContext {
    let run = RunId::from(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number));
    SpanContext::of_run(run, run)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(START + seconds * 1_000_000)
}

/// One run that took `seconds`, as a batch of the projector adds it.
fn run(workflow: &str, seconds: i64, layout: &Buckets) -> Totals {
    let mut totals = Totals::new(layout.clone());
    totals.count(Key::events(Some(workflow), Event::Succeeded, None));
    totals.observe(
        Key::duration(workflow, Outcome::Succeeded, None),
        seconds * 1_000_000,
        at(seconds),
        span(1),
    );
    totals
}

#[derive(Clone, Debug)]
enum Step {
    /// Runs of these workflows end.
    Runs(Vec<(u8, u8)>),
    /// Time passes, in seconds.
    Wait(u16),
    /// An export.
    Export(Fate),
    /// The relay dies, and the next begins with these buckets.
    Restart(bool),
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    Lost,
    UnknownAndArrived,
    UnknownAndLost,
    /// It arrived, and the relay died before it could write that down.
    ArrivesAndDies,
    DiesBefore,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop::sample::select(vec![
        Fate::Arrives,
        Fate::Arrives,
        Fate::Arrives,
        Fate::Lost,
        Fate::UnknownAndArrived,
        Fate::UnknownAndLost,
        Fate::ArrivesAndDies,
        Fate::DiesBefore,
    ]);
    prop_oneof![
        3 => prop::collection::vec((0..3_u8, 0..70_u8), 1..5).prop_map(Step::Runs),
        3 => prop::sample::select(vec![0_u16, 1, 59, 60, 61, 130, 1_000, 7_000]).prop_map(Step::Wait),
        4 => fate.prop_map(Step::Export),
        1 => any::<bool>().prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_increment_is_seen_once_despite_failures(steps in prop::collection::vec(step(), 1..60)) {
        let layouts = [buckets("1,10,60"), buckets("5,30")];
        let (mut database, mut receiver) = (Database::new(), Receiver::default());
        let mut ledger = database.open();
        let (mut now, mut layout) = (0, &layouts[0]);
        let mut expected: BTreeMap<Key, u64> = BTreeMap::new();
        let last = [Step::Wait(10), Step::Export(Fate::Arrives), Step::Wait(60), Step::Export(Fate::Arrives)];
        for step in steps.into_iter().chain(last) {
            match step {
                Step::Runs(runs) => for (workflow, seconds) in runs {
                    let totals = run(&format!("w{workflow}"), seconds.into(), layout);
                    for key in totals.counters.keys().chain(totals.histograms.keys()) {
                        *expected.entry(key.clone()).or_default() += 1;
                    }
                    database.append(totals);
                },
                Step::Wait(seconds) => now += i64::from(seconds),
                Step::Restart(other) => {
                    layout = &layouts[usize::from(other)];
                    ledger = database.open();
                }
                Step::Export(fate) => loop {
                    database.receive(&mut ledger);
                    let is_repeated = ledger.attempt().is_some();
                    ledger.begin(at(now), INTERVAL, 0);
                    database.record(ledger.change());
                    let series = ledger.series();
                    if !matches!(fate, Fate::Lost | Fate::UnknownAndLost | Fate::DiesBefore) {
                        receiver.take(&series);
                    }
                    match fate {
                        Fate::Arrives => ledger.acknowledged(),
                        // What was tried before may have arrived then.
                        Fate::Lost if !is_repeated => ledger.forget(),
                        Fate::ArrivesAndDies | Fate::DiesBefore => {
                            ledger = database.open();
                            break;
                        }
                        _ => break,
                    }
                    database.record(ledger.change());
                    if !is_repeated {
                        break;
                    }
                },
            }
        }
        for (key, count) in expected {
            prop_assert_eq!(receiver.increase(&key), count, "{:?}", key);
            if key.kind == MetricKind::Events {
                let known = receiver.samples[&key].last_key_value().unwrap().1[0];
                prop_assert_eq!(known, count);
            }
        }
        prop_assert!(database.pending.is_empty());
    }
}

#[derive(Clone, Debug)]
enum Odd {
    /// Runs end, each in a batch of its own.
    Runs(u8),
    /// Somebody sets the numbers back to this one.
    SetBack(u8),
    /// An export.
    Export(Fate),
}

fn odd() -> impl Strategy<Value = Odd> {
    let fates = vec![Fate::Arrives, Fate::Lost, Fate::UnknownAndArrived, Fate::UnknownAndLost];
    prop_oneof![
        3 => (1..5_u8).prop_map(Odd::Runs),
        1 => (1..20_u8).prop_map(Odd::SetBack),
        3 => prop::sample::select(fates).prop_map(Odd::Export),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..ProptestConfig::default() })]

    /// Whenever somebody sets the numbers back: what would be hidden is seen, and counted once.
    #[test]
    fn set_back_sequences_lose_and_double_no_increment(steps in prop::collection::vec(odd(), 1..40)) {
        let layout = buckets("1,10,60");
        let (mut database, mut receiver) = (Database::new(), Receiver::default());
        let mut ledger = database.open();
        let (mut now, mut ended) = (0, 0);
        let last = [Odd::Runs(1), Odd::Export(Fate::Arrives), Odd::Export(Fate::Arrives)];
        for step in steps.into_iter().chain(last) {
            match step {
                Odd::Runs(runs) => for _ in 0..runs {
                    database.append(run("ship", 3, &layout));
                    ended += 1;
                },
                Odd::SetBack(to) => database.set_back(i64::from(to)),
                Odd::Export(fate) => loop {
                    now += 60;
                    database.receive_all(&mut ledger);
                    let is_repeated = ledger.attempt().is_some();
                    ledger.begin(at(now), INTERVAL, 0);
                    database.record(ledger.change());
                    let series = ledger.series();
                    if matches!(fate, Fate::Arrives | Fate::UnknownAndArrived) {
                        receiver.take(&series);
                    }
                    match fate {
                        Fate::Arrives => ledger.acknowledged(),
                        Fate::Lost if !is_repeated => ledger.forget(),
                        _ => break,
                    }
                    database.record(ledger.change());
                    if !is_repeated {
                        break;
                    }
                },
            }
        }
        let key = Key::events(Some("ship"), Event::Succeeded, None);
        prop_assert_eq!(receiver.samples[&key].last_key_value().unwrap().1[0], ended);
        prop_assert!(database.pending.is_empty());
    }
}

#[test]
fn totals_count_as_stored_until_their_change_is_recorded() {
    let layout = buckets("1,10");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    assert_eq!(ledger.stored(), 0);
    for _ in 0..3 {
        database.append(run("ship", 3, &layout));
    }
    database.receive(&mut ledger);
    // Merged into one, in memory: all three are there, and then that one.
    assert_eq!((ledger.stored(), database.pending.len()), (3, 3));
    database.record(ledger.change());
    assert_eq!((ledger.stored(), database.pending.len()), (1, 1));
    ledger.begin(at(60), INTERVAL, 0);
    database.record(ledger.change());
    // What is being told stays by itself.
    database.append(run("ship", 3, &layout));
    database.receive(&mut ledger);
    assert_eq!((ledger.stored(), database.pending.len()), (2, 2));
    ledger.acknowledged();
    assert_eq!((ledger.stored(), database.pending.len()), (2, 2));
    database.record(ledger.change());
    assert_eq!((ledger.stored(), database.pending.len()), (1, 1));
}

#[test]
fn a_sequence_that_was_set_back_is_detected() {
    let layout = buckets("1,10");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    for _ in 0..3 {
        database.append(run("ship", 3, &layout));
    }
    assert!(!database.receive_all(&mut ledger));
    ledger.begin(at(60), INTERVAL, 0);
    database.record(ledger.change());
    database.set_back(1);
    database.append(run("ship", 3, &layout));
    assert_eq!((database.up_to(&ledger), ledger.stored()), (2, 1));
    // Only this ledger knows what the export under way tells of.
    assert!(!database.receive_all(&mut ledger));
    ledger.acknowledged();
    database.record(ledger.change());
    assert!(database.receive_all(&mut ledger));
    assert!(!database.receive_all(&mut ledger));
    let events = render(&export(&mut database, &mut ledger, 120), MetricKind::Events);
    assert!(events.contains("ship workflow.run.succeeded: 4 @ 120\n"), "{events}");
}

#[test]
fn first_point_and_point_after_gap_have_a_predecessor() {
    let layout = buckets("1,10");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    database.append(run("ship", 3, &layout));
    let first = export(&mut database, &mut ledger, 1_000);
    insta::assert_snapshot!(render(&first, MetricKind::Duration), @r"
    ship succeeded: [0, 0, 0] @ 940, [0, 1, 0] @ 1000
    ship failed handler: [0, 0, 0] @ 940, [0, 0, 0] @ 1000
    ship incomplete: [0, 0, 0] @ 940, [0, 0, 0] @ 1000
    ship deleted: [0, 0, 0] @ 940, [0, 0, 0] @ 1000
    ");
    database.append(run("ship", 30, &layout));
    let second = export(&mut database, &mut ledger, 1_060);
    insta::assert_snapshot!(render(&second, MetricKind::Duration), @r"
    ship succeeded: [0, 1, 1] @ 1060
    ship failed handler: [0, 0, 0] @ 1060
    ship incomplete: [0, 0, 0] @ 1060
    ship deleted: [0, 0, 0] @ 1060
    ");
    database.append(run("ship", 30, &layout));
    let after_a_gap = export(&mut database, &mut ledger, 5_000);
    insta::assert_snapshot!(render(&after_a_gap, MetricKind::Duration), @r"
    ship succeeded: [0, 1, 1] @ 4940, [0, 1, 2] @ 5000
    ship failed handler: [0, 0, 0] @ 4940, [0, 0, 0] @ 5000
    ship incomplete: [0, 0, 0] @ 4940, [0, 0, 0] @ 5000
    ship deleted: [0, 0, 0] @ 4940, [0, 0, 0] @ 5000
    ");
    // The other buckets are those of whoever projects now.
    database.append(run("ship", 30, &buckets("20,40,60")));
    let changed = export(&mut database, &mut ledger, 5_060);
    insta::assert_snapshot!(render(&changed, MetricKind::Duration), @r"
    ship succeeded: [0, 1, 2] @ 5020, [0, 0, 0, 0] @ 5040, [0, 1, 0, 0] @ 5060
    ship failed handler: [0, 0, 0] @ 5020, [0, 0, 0, 0] @ 5040, [0, 0, 0, 0] @ 5060
    ship incomplete: [0, 0, 0] @ 5020, [0, 0, 0, 0] @ 5040, [0, 0, 0, 0] @ 5060
    ship deleted: [0, 0, 0] @ 5020, [0, 0, 0, 0] @ 5040, [0, 0, 0, 0] @ 5060
    ");
    insta::assert_snapshot!(render(&changed, MetricKind::Events), @r"
    ship workflow.run.queued: 0 @ 5060
    ship workflow.run.running: 0 @ 5060
    ship workflow.run.handed_off: 0 @ 5060
    ship workflow.run.succeeded: 4 @ 5060
    ship workflow.run.incomplete: 0 @ 5060
    ship workflow.run.failed handler: 0 @ 5060
    ship workflow.run.enqueue_failed enqueue_failed: 0 @ 5060
    ship workflow.run.dispatch_refused workflow-dispatch-inflight: 0 @ 5060
    ship workflow.run.dispatch_refused context-mismatch: 0 @ 5060
    ship workflow.run.dispatch_refused missing-prior-output: 0 @ 5060
    ship workflow.run.completed: 0 @ 5060
    ship workflow.run.deleted: 0 @ 5060
    ship workflow.run.conflict: 0 @ 5060
    ");
}

#[test]
fn a_restored_database_begins_new_series() {
    let layout = buckets("1,10");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    database.append(run("ship", 3, &layout));
    export(&mut database, &mut ledger, 1_000);
    // Not told yet: it is told by whoever comes.
    database.append(run("ship", 3, &layout));
    let (mut ledger, before) = Ledger::open(database.recorded.clone(), "restored");
    assert_eq!(before.as_deref(), Some("db"));
    let series = export(&mut database, &mut ledger, 2_000);
    let shipped = render(&series, MetricKind::Duration);
    assert!(shipped.starts_with("ship succeeded: [0, 0, 0] @ 1940, [0, 1, 0] @ 2000\n"), "{shipped}");
    assert_eq!(Ledger::open(database.recorded.clone(), "restored").1, None);
}

#[test]
fn the_newest_exemplar_of_a_bucket_is_exported_once() {
    let layout = buckets("1,10");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    let exemplars = |series: Vec<Series>| -> Vec<i64> {
        let points = series.into_iter().flat_map(|series| series.points);
        let of = |point: Point| match point.value {
            Value::Distribution(_, distribution) => distribution.exemplars().map(|it| it.micros).collect(),
            Value::Count(_) => Vec::new(),
        };
        points.flat_map(of).collect()
    };
    for seconds in [3, 5, 4] {
        database.append(run("ship", seconds, &layout));
    }
    assert_eq!(exemplars(export(&mut database, &mut ledger, 1_000)), [5_000_000]);
    database.append(run("ship", 30, &layout));
    assert_eq!(exemplars(export(&mut database, &mut ledger, 5_000)), [30_000_000]);
    assert_eq!(exemplars(export(&mut database, &mut ledger, 9_000)), [0_i64; 0]);
}

#[test]
fn old_skipped_entries_are_not_counted_again_after_failover() {
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    let mut export = |ledger: &mut Ledger, now, skipped| {
        ledger.begin(at(now), INTERVAL, skipped);
        database.record(ledger.change());
        let series = ledger.series();
        ledger.acknowledged();
        database.record(ledger.change());
        (render(&series, MetricKind::Skipped), database.recorded.clone())
    };
    // The first time it is: nobody has told of it.
    let (told, recorded) = export(&mut ledger, 1_000, 7);
    assert_eq!(told, ": 0 @ 940, 7 @ 1000\n");
    let (mut ledger, _) = Ledger::open(recorded, "promoted");
    assert_eq!(export(&mut ledger, 2_000, 9).0, ": 7 @ 1940, 9 @ 2000\n");
    assert_eq!(export(&mut ledger, 2_060, 9).0, ": 9 @ 2060\n");
}

#[test]
fn workflows_beyond_the_limit_are_counted_as_other() {
    let layout = Buckets::default();
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    for number in 0..5_000 {
        database.append(run(&format!("w{number:04}"), 3, &layout));
    }
    let notices = database.receive(&mut ledger);
    assert_eq!(notices, [Notice::Full]);
    let series = export(&mut database, &mut ledger, 1_000);
    let names: BTreeSet<&str> = series.iter().filter_map(|series| series.key.workflow.as_deref()).collect();
    assert_eq!(names.len(), MAX_WORKFLOWS + 1);
    let durations = render(&series, MetricKind::Duration);
    assert!(durations.contains("#other# succeeded: "), "{durations}");
    // The next relay knows the same ones, and has been told.
    let mut next = database.open();
    database.append(run("late", 3, &layout));
    assert_eq!(database.receive(&mut next), []);
    database.append(run("w0000", 3, &layout));
    let series = export(&mut database, &mut next, 1_060);
    let shown = render(&series, MetricKind::Events);
    assert!(shown.contains("#other# workflow.run.succeeded: 4801 @ 1060\n"), "{shown}");
    assert!(shown.contains("w0000 workflow.run.succeeded: 2 @ 1060\n"), "{shown}");
    let in_flight = next.in_flight(vec![
        InFlight { workflow: "late".into(), status: crate::run::Status::Queued, runs: 2, oldest_age: 5.0 },
        InFlight { workflow: "later".into(), status: crate::run::Status::Queued, runs: 1, oldest_age: 9.0 },
    ]);
    assert_eq!(in_flight.len(), 2 * (MAX_WORKFLOWS + 1));
    let others = in_flight.iter().find(|row| row.workflow == OTHER).unwrap();
    assert_eq!((others.runs, others.oldest_age), (3, 9.0));
    assert_eq!(in_flight.iter().map(|row| row.runs).sum::<i64>(), 3);
    // They have an end, too.
    let others = next.in_flight(vec![]).into_iter().filter(|row| row.workflow == OTHER);
    assert_eq!(others.map(|row| row.runs).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn long_or_multiline_names_are_shortened_with_a_notice() {
    let layout = Buckets::default();
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    database.append(run(&"x".repeat(10 * 1024), 3, &layout));
    database.append(run("evil\nname", 3, &layout));
    let long = "x".repeat(128) + "…";
    let renamed = [Notice::Renamed(long.clone()), Notice::Renamed("evil\u{fffd}name".to_owned())];
    assert_eq!(database.receive(&mut ledger), renamed);
    let shown = render(&export(&mut database, &mut ledger, 1_000), MetricKind::Events);
    assert!(shown.contains(&format!("{long} workflow.run.succeeded: 0 @ 940, 1 @ 1000\n")), "{shown}");
}

#[test]
fn bucket_lists_are_validated() {
    let of =
        |text: &str| text.parse::<Buckets>().map_or_else(|error| error.to_string(), |read| read.to_string());
    let read: String = ["0.1, 2.5,60", "", " , ", "1,2,2", "2,1", "0,1", "-1", "1,x", "1e99", "inf", "NaN"]
        .map(|text| format!("{text:?}: {}\n", of(text)))
        .concat();
    insta::assert_snapshot!(read, @r#"
    "0.1, 2.5,60": 0.1,2.5,60
    "": the list of buckets is empty: write seconds, rising, as in 0.5,1,5,60
    " , ": bucket 1 is "", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "1,2,2": bucket 3 (2) is not above the one before it: write them rising, each once
    "2,1": bucket 2 (1) is not above the one before it: write them rising, each once
    "0,1": bucket 1 is "0", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "-1": bucket 1 is "-1", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "1,x": bucket 2 is "x", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "1e99": bucket 1 is "1e99", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "inf": bucket 1 is "inf", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "NaN": bucket 1 is "NaN", not a number of seconds above 0: write e.g. 0.5,1,5,60
    "#);
    assert!(
        of(&(1..=101).map(|bound| bound.to_string()).collect::<Vec<_>>().join(",")).contains("101 buckets")
    );
    // In the program too, and in what a database holds.
    let refused = [vec![], vec![0], vec![2_000_000, 1_000_000]].map(|micros| {
        let stored = serde_json::from_value::<Buckets>(serde_json::json!(micros));
        let said = Buckets::try_from(micros).unwrap_err().to_string();
        assert_eq!(stored.unwrap_err().to_string(), said);
        said + "\n"
    });
    insta::assert_snapshot!(refused.concat(), @r#"
    the list of buckets is empty: write seconds, rising, as in 0.5,1,5,60
    bucket 1 is "0", not a number of seconds above 0: write e.g. 0.5,1,5,60
    bucket 2 (1) is not above the one before it: write them rising, each once
    "#);
    let buckets = buckets("1,10");
    // A value on a bound is below it (`le`).
    assert_eq!([0, 1_000_000, 1_000_001, 10_000_001].map(|micros| buckets.index(micros)), [0, 0, 1, 2]);
}

#[test]
fn usual_duration_is_the_99th_percentile() {
    let layout = buckets("1,10,100");
    let (mut database, mut ledger) = (Database::new(), Database::new().open());
    for _ in 0..19 {
        database.append(run("ship", 3, &layout));
    }
    export(&mut database, &mut ledger, 1_000);
    assert_eq!(ledger.usual(), BTreeMap::new());
    database.append(run("ship", 99, &layout));
    // Whether anybody was told or not.
    database.receive(&mut ledger);
    assert_eq!(ledger.change().usual, Some(ledger.usual()));
    assert_eq!(ledger.change().usual, None);
    // The 99th percentile of 20 lies in the last bucket that has any, as histogram_quantile() would have it.
    // What lies beyond the last bound takes at least its mean.
    let mut beyond = Database::new().open();
    beyond.receive((1..=20).map(|id| (id, run("ship", 3_600, &layout))));
    assert!((beyond.usual()["ship"] - 3_600.0).abs() < 1e-9);
    assert!((ledger.usual()["ship"] - (10.0 + 90.0 * (19.8 - 19.0))).abs() < 1e-9);
}
