//! The durable metrics through the whole relay, against a receiver that answers as each test wants.

mod last_word;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use rand::prelude::IndexedRandom as _;
use runspan::otlp::Signal;
use runspan::projection;
use runspan::relay::{Ended, Logs, Relay, RelayHandle, SenderState, Settings};
use runspan::runs;
use runspan::store::Store;
use runspan::trace_context::SpanContext;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::database::{Database, Session, eventually};
use crate::logged::Logged;
use crate::points::{Samples, metrics, points};
use crate::receiver::{Received, Receiver, Reply};

on_every_database!(
    what_is_told_is_what_is_in_the_table,
    whatever_a_receiver_does_nothing_is_lost_or_doubled,
    relays_that_die_lose_and_double_nothing,
    what_surely_did_not_arrive_is_told_with_its_zero,
    a_receiver_that_asks_to_wait_is_let_be,
    what_is_refused_is_not_told_for_ever,
    what_was_not_accepted_is_told_with_its_zero_later,
    one_invalid_series_stops_no_other,
    requests_grow_back_after_a_busy_time,
    too_large_is_told_in_smaller_requests,
    without_a_receiver_sums_are_kept_for_later,
    other_buckets_reset_identity,
    one_point_of_a_series_in_each_request_says_the_same,
    a_clock_that_was_ahead_stops_nothing,
    a_database_that_went_back_in_time_has_new_series,
    a_name_without_end_is_told_and_said,
    a_table_that_is_gone_costs_only_what_is_read_from_it,
    a_table_that_cannot_be_read_is_not_told_as_empty,
    the_last_word_is_said_at_a_clean_stop,
    a_receiver_that_hangs_holds_no_one_at_a_stop,
    exemplars_can_be_left_out,
    after_a_detach_nothing_is_said_of_what_is_in_flight,
);

const INTERVAL_MS: u64 = 20;

pub(crate) fn relay(store: &Arc<dyn Store>, receiver: &Receiver, variables: &[(&str, &str)]) -> Relay {
    let mut environment = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "100".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS.to_string()),
        ("OTEL_TRACES_EXPORTER", "none".to_owned()),
        ("OTEL_LOGS_EXPORTER", "none".to_owned()),
        ("OTEL_SERVICE_NAME", "shop".to_owned()),
    ]);
    environment.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let relay = Relay::new(Arc::clone(store), Logs::Otlp, &|name| environment.get(name).cloned());
    relay.unwrap().with(settings())
}

pub(crate) fn settings() -> Settings {
    Settings {
        idle_poll: Duration::from_millis(20),
        longest_backoff: Duration::from_millis(50),
        ..Settings::default()
    }
}

pub(crate) fn start(store: &Arc<dyn Store>, receiver: &Receiver) -> RelayHandle {
    relay(store, receiver, &[]).spawn()
}

pub(crate) async fn succeed(session: &mut Session, workflow: &str, numbers: std::ops::RangeInclusive<i64>) {
    for number in numbers {
        let run = session.queue(workflow, number).await;
        runs::mark_running(session.runs(), run).await.unwrap();
        runs::mark_succeeded(session.runs(), run).await.unwrap();
    }
}

const ENDED: &str = "workflow.run.duration";
pub(crate) const SUCCEEDED: &str = "workflow.run.events{workflowName=triage event=workflow.run.succeeded}";

async fn what_is_told_is_what_is_in_the_table(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=3).await;
    let failed = session.queue("triage", 4).await;
    runs::mark_running(session.runs(), failed).await.unwrap();
    runs::mark_failed(session.runs(), failed, "timeout: 5 s").await.unwrap();
    session.queue("plan", 5).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);

    let samples = Samples::of(&receiver);
    assert_eq!(samples.increase(ENDED), 4);
    let last = |series: &str| samples.last(series);
    assert_eq!(last(SUCCEEDED), Some(3.0));
    assert_eq!(last("workflow.run.duration{workflowName=triage outcome=succeeded}"), Some(3.0));
    assert_eq!(
        last("workflow.run.duration{workflowName=triage outcome=failed error.type=timeout}"),
        Some(1.0)
    );
    assert_eq!(last("workflow.run.queue.duration{workflowName=triage}"), Some(4.0));
    assert_eq!(last("workflow.run.execution.duration{workflowName=triage outcome=failed}"), Some(1.0));
    // Never yet, and so zero: a ratio over it is 0, and not absent.
    assert_eq!(last("workflow.run.duration{workflowName=plan outcome=incomplete}"), Some(0.0));
    assert_eq!(last("workflow.run.active{workflowName=plan status=queued}"), Some(1.0));
    assert_eq!(last("workflow.run.active{workflowName=triage status=running}"), Some(0.0));
    assert_eq!(last("workflow.run.oldest.age{workflowName=triage status=queued}"), Some(0.0));
    assert_eq!(last("runspan.journal.skipped{}"), Some(0.0));

    let instance = store.instance().await.unwrap();
    let context = SpanContext::of_run(failed, failed);
    let mut exemplars = BTreeSet::new();
    for request in metrics(&receiver) {
        for resource in request.metrics().resource_metrics {
            let told = format!("{:?}", resource.resource.unwrap().attributes);
            assert!(told.contains(&instance) && told.contains("shop"), "{told}");
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                if let Some(Data::Histogram(histogram)) = metric.data {
                    let points = histogram.data_points.into_iter();
                    exemplars
                        .extend(points.flat_map(|point| point.exemplars).map(|it| (it.trace_id, it.span_id)));
                }
            }
        }
    }
    let ids = (context.trace_id.bytes().to_vec(), context.span_id.bytes().to_vec());
    assert!(exemplars.contains(&ids), "{exemplars:?}");
}

async fn whatever_a_receiver_does_nothing_is_lost_or_doubled(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| match [0, 1, 2, 3, 4, 5, 6].choose(&mut rand::rng()) {
        Some(0) => Reply::grpc(Code::Unavailable, "later"),
        Some(1) => Reply::AcceptThenReset,
        Some(2) => Reply::Hang,
        Some(3) => Reply::ResetUnread,
        Some(4) => Reply::grpc(Code::Unimplemented, "not now"),
        _ => Reply::Accept,
    });
    let relay = start(&store, &receiver);
    let mut session = database.connect().await;
    for number in 1..=60 {
        let before = receiver.attempts();
        succeed(&mut session, "triage", number..=number).await;
        eventually("a request more", async || receiver.attempts() > before).await;
    }
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (60, Some(60.0)));
}

async fn relays_that_die_lose_and_double_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    for round in 0..20 {
        let relay = relay(&store, &receiver, &[]).run(CancellationToken::new());
        let relay = tokio::spawn(relay);
        succeed(&mut session, "triage", round * 3 + 1..=round * 3 + 3).await;
        let before = receiver.attempts();
        // Dead in the midst of anything: before, during or after an export.
        eventually("a request more", async || receiver.attempts() > before).await;
        relay.abort();
        let _ = relay.await;
        let long_ago = if database.is_postgres() { "'epoch'" } else { "0" };
        session.execute(&format!("UPDATE {} SET expires_at = {long_ago}", database.own("lease"))).await;
    }
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (60, Some(60.0)));
}

async fn what_surely_did_not_arrive_is_told_with_its_zero(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc(Code::Unimplemented, "not now"));
    let relay = start(&store, &receiver);
    succeed(&mut database.connect().await, "triage", 1..=2).await;
    eventually("an empty journal", async || store.status().await.unwrap().journal_entries == 0).await;
    let before = receiver.attempts();
    eventually("exports of it", async || receiver.attempts() > before + 2).await;
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (2, Some(2.0)));
}

async fn a_receiver_that_asks_to_wait_is_let_be(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc_retry(Code::Unavailable, "later", Duration::from_hours(1)));
    let relay = start(&store, &receiver);
    eventually("the first export", async || receiver.attempts() > 0).await;
    // Many intervals long.
    succeed(&mut database.connect().await, "triage", 1..=30).await;
    eventually("an empty journal", async || store.status().await.unwrap().journal_entries == 0).await;
    assert_eq!(receiver.attempts(), 1);
    receiver.rule(|_| Reply::Accept);
    relay.stop().await.unwrap();
    assert_eq!(Samples::of(&receiver).last(SUCCEEDED), Some(30.0));
}

async fn what_is_refused_is_not_told_for_ever(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc(Code::InvalidArgument, "out of order"));
    succeed(&mut database.connect().await, "triage", 1..=2).await;
    let ended = start(&store, &receiver).drain().await.unwrap();
    assert!(matches!(&ended, Ended::Refused(said) if said.contains("out of order")), "{ended:?}");
    receiver.rule(|_| Reply::Accept);
    succeed(&mut database.connect().await, "triage", 3..=3).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    // The sum says it all.
    assert_eq!(Samples::of(&receiver).last(SUCCEEDED), Some(3.0));
}

/// Whatever the receiver says meanwhile, and whether the relay is restarted or not.
async fn what_was_not_accepted_is_told_with_its_zero_later(database: &Database) {
    let busy: [fn() -> Reply; 6] = [
        || Reply::grpc(Code::ResourceExhausted, "busy"),
        || Reply::grpc(Code::InvalidArgument, "not today"),
        || Reply::grpc(Code::Unavailable, "busy"),
        || Reply::grpc(Code::Internal, "broken"),
        || Reply::http(413, &[], "busy"),
        || Reply::http(429, &[("retry-after", "0")], "busy"),
    ];
    let mut runs = 0.0;
    for reply in busy {
        for is_restarted in [false, true] {
            runs += 5.0;
            let (store, _) = database.attach().await;
            let receiver = Receiver::grpc().await;
            receiver.rule(move |_| reply());
            let relay = start(&store, &receiver);
            let mut session = database.connect().await;
            let before = receiver.attempts();
            eventually("refused exports", async || receiver.attempts() > before + 3).await;
            succeed(&mut session, "triage", 1..=5).await;
            eventually("an empty journal", async || store.status().await.unwrap().journal_entries == 0).await;
            let before = receiver.attempts();
            eventually("more of them", async || receiver.attempts() > before + 12).await;
            let relay = if is_restarted {
                relay.stop().await.unwrap();
                start(&store, &receiver)
            } else {
                relay
            };
            let before = receiver.attempts();
            eventually("and more", async || receiver.attempts() > before + 5).await;
            receiver.rule(|_| Reply::Accept);
            assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
            let samples = Samples::of(&receiver);
            let told = (samples.increase(ENDED), samples.last(SUCCEEDED));
            assert_eq!(told, (5, Some(runs)), "{:?}, restarted: {is_restarted}", reply());
        }
    }
}

async fn one_invalid_series_stops_no_other(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|request| {
        let is_invalid = points(request).iter().any(|(series, ..)| series.contains("workflowName=bad"));
        if is_invalid { Reply::grpc(Code::InvalidArgument, "bad name") } else { Reply::Accept }
    });
    let relay = start(&store, &receiver);
    let mut session = database.connect().await;
    for round in 0..3 {
        succeed(&mut session, "triage", 3 * round + 1..=3 * round + 2).await;
        succeed(&mut session, "bad", 3 * round + 3..=3 * round + 3).await;
        let told = || Samples::of(&receiver).last(SUCCEEDED);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let expected = (2 * round + 2) as f64;
        eventually("the valid series", async || told() == Some(expected)).await;
    }
    relay.stop().await.unwrap();
    assert_eq!(Samples::of(&receiver).increase(ENDED), 6);
}

async fn requests_grow_back_after_a_busy_time(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    for number in 1..=60 {
        session.queue(&format!("workflow-{number}"), number).await;
    }
    receiver.rule(|_| Reply::grpc(Code::ResourceExhausted, "busy"));
    let relay = start(&store, &receiver);
    eventually("a long busy time", async || receiver.attempts() > 12).await;
    receiver.rule(|_| Reply::Accept);
    let all =
        |request: &Received| points(request).iter().filter(|point| point.0.contains("queued}")).count() >= 60;
    receiver.wait_until("everything in one request", |it| metrics(it).iter().any(all)).await;
    relay.stop().await.unwrap();
}

async fn too_large_is_told_in_smaller_requests(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|request| match request.body.len() {
        200_000.. => Reply::grpc(Code::ResourceExhausted, "larger than max"),
        _ => Reply::Accept,
    });
    let mut session = database.connect().await;
    for number in 1..=120 {
        session.queue(&format!("workflow-{number}"), number).await;
    }
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    let queued = samples.series().filter(|series| series.ends_with("event=workflow.run.queued}"));
    assert_eq!(queued.filter(|series| samples.last(series) == Some(1.0)).count(), 120);
    // A first point has its zero beside it: requests may overtake each other behind the receiver.
    let mut known = BTreeSet::new();
    for request in metrics(&receiver) {
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for (series, ..) in points(&request) {
            *counts.entry(series).or_default() += 1;
        }
        counts.retain(|series, _| series.starts_with("workflow.run.events") && known.insert(series.clone()));
        assert!(counts.values().all(|points| *points == 2), "{counts:#?}");
    }
}

async fn without_a_receiver_sums_are_kept_for_later(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    for number in 1..=3 {
        succeed(&mut session, "triage", number..=number).await;
        let off = [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "otlp")];
        assert_eq!(relay(&store, &receiver, &off).spawn().drain().await.unwrap(), Ended::Idle);
    }
    assert_eq!(session.count(&database.own("deltas")).await, 1);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (3, Some(3.0)));
    assert_eq!(session.count(&database.own("deltas")).await, 0);
}

async fn other_buckets_reset_identity(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=2).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    succeed(&mut session, "triage", 3..=3).await;
    let settings = Settings {
        projection: projection::Settings { buckets: "1,5".parse().unwrap(), ..Default::default() },
        ..settings()
    };
    let other = relay(&store, &receiver, &[]).with(settings).spawn();
    assert_eq!(other.drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!(samples.increase(ENDED), 3);
    // Anew, that is: from zero.
    assert_eq!(samples.last("workflow.run.duration{workflowName=triage outcome=succeeded}"), Some(1.0));
    assert_eq!(samples.last(SUCCEEDED), Some(3.0));
}

async fn one_point_of_a_series_in_each_request_says_the_same(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let apart = |buckets: &str| {
        let buckets = buckets.parse().unwrap();
        let projection = projection::Settings { buckets, ..projection::Settings::default() };
        let settings = Settings { one_point_per_series: true, projection, ..settings() };
        relay(&store, &receiver, &[]).with(settings).spawn()
    };
    let mut session = database.connect().await;
    // A first point with its zero, a point after a gap, and new buckets.
    for (number, buckets) in [(1, "1,5"), (2, "1,5"), (3, "2,4")] {
        succeed(&mut session, "triage", number..=number).await;
        assert_eq!(apart(buckets).drain().await.unwrap(), Ended::Idle);
    }
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (3, Some(3.0)));
    for request in metrics(&receiver) {
        let mut series: Vec<_> = points(&request).into_iter().map(|(series, ..)| series).collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "a series has two points in one request");
    }
}

/// By a day, during one export. Receivers reject what is older than their newest point, so the series begin anew.
async fn a_clock_that_was_ahead_stops_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=2).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let day = 86_400_000_000_i64;
    let series = database.own("series");
    session
        .execute(&if database.is_postgres() {
            format!(
                "UPDATE {series} SET head = jsonb_set(head::jsonb, '{{exported_at}}', \
                 to_jsonb((head::jsonb ->> 'exported_at')::bigint + {day}))::text"
            )
        } else {
            format!(
                "UPDATE {series} SET head = \
                 json_set(head, '$.exported_at', json_extract(head, '$.exported_at') + {day})"
            )
        })
        .await;
    succeed(&mut session, "triage", 3..=3).await;
    let receiver = Receiver::grpc().await;
    let (log, _guard) = Logged::start();
    for number in 4..=5 {
        succeed(&mut session, "triage", number..=number).await;
        assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    }
    assert_eq!(log.with("the database's clock was ahead").len(), 1);
    // Those that were acknowledged before are in the old series.
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (3, Some(3.0)));
    let soon = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_mins(1);
    let instance = store.instance().await.unwrap();
    for request in metrics(&receiver) {
        assert!(points(&request).iter().all(|(_, at, _)| u128::from(*at) < soon.as_millis()));
        let resource = format!("{:?}", request.metrics().resource_metrics[0].resource);
        assert!(resource.contains(&format!("{instance}-1")), "{resource}");
    }
}

async fn a_database_that_went_back_in_time_has_new_series(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=2).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let instance = store.instance().await.unwrap();
    let series = database.own("series");
    session.execute(&format!("UPDATE {series} SET head = replace(head, '{instance}', 'of-old')")).await;
    succeed(&mut session, "triage", 3..=3).await;
    // Of another database, as far as a receiver can tell.
    let receiver = Receiver::grpc().await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (1, Some(1.0)));
}

async fn a_name_without_end_is_told_and_said(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    session.queue(&"x".repeat(10 * 1024), 1).await;
    session.queue("two\nlines", 2).await;
    if !database.is_postgres() {
        // SQLite keeps what is no text, too.
        session.queue("no text", 3).await;
        session.execute("UPDATE workflow_runs SET workflow_name = CAST(X'FF' AS TEXT) WHERE workflow_name = 'no text'").await;
    }
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    for name in ["x".repeat(128) + "…", "two\u{fffd}lines".to_owned()] {
        let series = format!("workflow.run.events{{workflowName={name} event=workflow.run.queued}}");
        assert_eq!(samples.last(&series), Some(1.0), "{name}");
        let active = format!("workflow.run.active{{workflowName={name} status=queued}}");
        assert_eq!(samples.last(&active), Some(1.0), "{name}");
    }
}

async fn a_table_that_is_gone_costs_only_what_is_read_from_it(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=2).await;
    session.execute("DROP TABLE workflow_runs").await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!(samples.last(SUCCEEDED), Some(2.0));
}

async fn a_table_that_cannot_be_read_is_not_told_as_empty(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    session.execute("ALTER TABLE workflow_runs RENAME COLUMN workflow_name TO workflow").await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    let queued = "workflow.run.events{workflowName=triage event=workflow.run.queued}";
    assert_eq!(samples.last(queued), Some(1.0));
    assert_eq!(samples.last("workflow.run.active{workflowName=triage status=queued}"), None);
}

async fn the_last_word_is_said_at_a_clean_stop(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let relay = relay(&store, &receiver, &[("OTEL_METRIC_EXPORT_INTERVAL", "3600000")]).spawn();
    eventually("the first export", async || !metrics(&receiver).is_empty()).await;
    let status = relay.status().clone();
    succeed(&mut database.connect().await, "triage", 1..=2).await;
    eventually("an empty journal", async || store.status().await.unwrap().journal_entries == 0).await;
    relay.stop().await.unwrap();
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (2, Some(2.0)));
    assert_eq!(status.snapshot().metrics, Some(SenderState::Idle));
    assert!(receiver.requests().iter().all(|request| request.signal == Signal::Metrics));
}

async fn a_receiver_that_hangs_holds_no_one_at_a_stop(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::Hang);
    succeed(&mut database.connect().await, "triage", 1..=2).await;
    // Longer than the test may take.
    let relay = relay(&store, &receiver, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")]).spawn();
    eventually("a request", async || receiver.attempts() > 0).await;
    relay.stop().await.unwrap();
    receiver.rule(|_| Reply::Accept);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert_eq!((samples.increase(ENDED), samples.last(SUCCEEDED)), (2, Some(2.0)));
}

async fn exemplars_can_be_left_out(database: &Database) {
    let (store, _) = database.attach().await;
    succeed(&mut database.connect().await, "triage", 1..=2).await;
    let off = [("OTEL_METRICS_EXEMPLAR_FILTER", "always_off")];
    let receiver = Receiver::grpc().await;
    assert_eq!(relay(&store, &receiver, &off).spawn().drain().await.unwrap(), Ended::Idle);
    let told =
        metrics(&receiver).iter().map(|request| format!("{:?}", request.metrics())).collect::<String>();
    assert!(told.contains("HistogramDataPoint") && !told.contains("Exemplar {"), "{told}");
}

async fn after_a_detach_nothing_is_said_of_what_is_in_flight(database: &Database) {
    let (store, _) = database.attach().await;
    database.connect().await.queue("triage", 1).await;
    store.detach(false).await.unwrap();
    let receiver = Receiver::grpc().await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let samples = Samples::of(&receiver);
    assert!(samples.series().all(|series| !series.starts_with("workflow.run.active")));
}
