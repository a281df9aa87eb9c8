//! The whole relay, against a receiver that answers as each test wants: what waits, what is resent, what dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;
use runspan::otlp::Signal;
use runspan::relay::{Ended, Logs, Relay, RelayHandle, SenderState, Settings};
use runspan::run::RunId;
use runspan::runs;
use runspan::store::{Channel, Selection, Store};
use tonic::Code;

use crate::database::{Database, Session, eventually};
use crate::logged::Logged;
use crate::receiver::{Received, Receiver, Reply};

on_every_database!(
    every_run_becomes_one_span,
    a_backlog_comes_to_the_same_in_batches_of_any_size,
    a_signal_that_is_stuck_stops_no_other,
    poison_dies_alone_and_can_be_retried,
    a_receiver_that_refuses_everything_kills_nothing,
    what_is_too_large_is_halved,
    a_busy_receiver_gets_whole_requests_afterwards,
    a_receiver_that_failed_on_everything_kills_nothing_afterwards,
    what_is_resent_is_resent_to_the_byte,
    a_full_outbox_drops_the_oldest,
    a_standby_takes_over_at_once_from_one_that_stops,
    a_stopped_relay_leaves_the_rest_to_the_next,
    a_partial_success_is_done,
    a_signal_can_be_turned_off,
    another_server_on_that_port_takes_nothing,
    a_success_in_the_receivers_own_words_is_no_reason_to_send_again,
    what_another_relay_left_for_another_channel_keeps_no_one,
    idle_is_only_who_has_looked,
    nothing_to_send_is_said,
    a_renamed_table_stops_nothing,
    trouble_now_and_then_is_not_waited_for_ever_longer,
    a_receiver_that_asks_for_no_wait_gets_one,
    an_outage_is_a_line_at_its_beginning_and_two_at_its_end,
);

#[cfg(feature = "services")]
on_postgres!(a_cut_connection_loses_nothing);

/// Settings for tests: quick to look, quick to try again.
fn settings() -> Settings {
    Settings {
        idle_poll: Duration::from_millis(20),
        longest_backoff: Duration::from_millis(50),
        ..Settings::default()
    }
}

fn relay(store: &Arc<dyn Store>, receiver: &Receiver, variables: &[(&str, &str)]) -> Relay {
    let mut environment = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_SERVICE_NAME", "shop".to_owned()),
    ]);
    environment.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let relay = Relay::new(Arc::clone(store), Logs::Otlp, &|name| environment.get(name).cloned());
    relay.unwrap().with(settings())
}

fn start(store: &Arc<dyn Store>, receiver: &Receiver) -> RelayHandle {
    relay(store, receiver, &[]).spawn()
}

/// Runs that succeed, numbered from 1.
async fn succeed(session: &mut Session, runs: std::ops::RangeInclusive<i64>) -> Vec<RunId> {
    let mut ids = Vec::new();
    for number in runs {
        let run = session.queue("triage", number).await;
        runs::mark_running(session.runs(), run).await.unwrap();
        runs::mark_succeeded(session.runs(), run).await.unwrap();
        ids.push(run);
    }
    ids
}

fn run_id(attributes: &[KeyValue]) -> String {
    let value = &attributes.iter().find(|attribute| attribute.key == "runId").unwrap().value;
    match value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(id) => id.clone(),
        other => panic!("{other:?}"),
    }
}

/// The run spans of a request, by run, each encoded; queue spans are left out.
fn run_spans(request: &Received) -> Vec<(String, Vec<u8>)> {
    request
        .traces()
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .filter(|span| !span.events.is_empty())
        .map(|span| (run_id(&span.attributes), span.encode_to_vec()))
        .collect()
}

fn all_run_spans(receiver: &Receiver) -> Vec<(String, Vec<u8>)> {
    let requests = receiver.requests();
    requests.iter().filter(|request| request.signal == Signal::Traces).flat_map(run_spans).collect()
}

fn names(receiver: &Receiver) -> BTreeSet<String> {
    all_run_spans(receiver).into_iter().map(|(run, _)| run).collect()
}

fn ids(runs: &[RunId]) -> BTreeSet<String> {
    runs.iter().map(ToString::to_string).collect()
}

fn tells_of(request: &Received, run: &RunId) -> bool {
    request.signal == Signal::Traces && run_spans(request).iter().any(|(id, _)| *id == run.to_string())
}

async fn every_run_becomes_one_span(database: &Database) {
    for (protocol, receiver) in [("grpc", Receiver::grpc().await), ("http/protobuf", Receiver::http().await)]
    {
        let (store, _) = database.attach().await;
        let relay = relay(&store, &receiver, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]).spawn();
        let runs = succeed(&mut database.connect().await, 1..=20).await;
        assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
        assert_eq!(names(&receiver), ids(&runs));
        assert_eq!(all_run_spans(&receiver).len(), runs.len());
        let records: usize = receiver
            .requests()
            .iter()
            .filter(|request| request.signal == Signal::Logs)
            .flat_map(|request| request.logs().resource_logs)
            .flat_map(|resource| resource.scope_logs)
            .map(|scope| scope.log_records.len())
            .sum();
        assert_eq!(records, runs.len() * 4, "queued, running, succeeded, completed");
    }
}

/// Each batch is projected over what the one before it, which is not committed yet, will leave.
async fn a_backlog_comes_to_the_same_in_batches_of_any_size(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    for batch in [1, 2, 5, 1_000] {
        let mut queued = Vec::new();
        for number in 1..=12 {
            queued.push(session.queue("triage", number).await);
        }
        for (number, run) in queued.iter().enumerate() {
            runs::mark_running(session.runs(), *run).await.unwrap();
            if number % 3 == 0 {
                session.execute(&format!("DELETE FROM workflow_runs WHERE id = '{run}'")).await;
            }
        }
        for (number, run) in queued.iter().enumerate() {
            if number % 3 > 0 {
                runs::mark_succeeded(session.runs(), *run).await.unwrap();
            }
        }
        let receiver = Receiver::grpc().await;
        let relay =
            relay(&store, &receiver, &[]).with(Settings { batch: batch.try_into().unwrap(), ..settings() });
        assert_eq!(relay.spawn().drain().await.unwrap(), Ended::Idle);
        assert_eq!(names(&receiver), ids(&queued), "in batches of {batch}");
        let requests = receiver.requests();
        let spans = requests.iter().filter(|request| request.signal == Signal::Traces).flat_map(|request| {
            request.traces().resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans)
        });
        // A run's own and its wait's; three events on each of the former.
        let events: Vec<usize> = spans.map(|span| span.events.len()).collect();
        assert_eq!((events.len(), events.iter().sum::<usize>()), (24, 36), "in batches of {batch}");
        assert_eq!(store.status().await.unwrap().open_runs, 0, "in batches of {batch}");
    }
}

async fn a_signal_that_is_stuck_stops_no_other(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|request| match request.signal {
        Signal::Logs => Reply::grpc(Code::Unavailable, "logs are away"),
        _ => Reply::Accept,
    });
    let relay = start(&store, &receiver);
    let runs = succeed(&mut database.connect().await, 1..=5).await;
    receiver.wait_until("all spans", |receiver| all_run_spans(receiver).len() == 5).await;
    let waiting =
        || async { matches!(relay.status().snapshot().senders[&Channel::Logs], SenderState::Waiting(_)) };
    eventually("the logs wait", waiting).await;
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    assert!(receiver.requests().iter().any(|request| request.signal == Signal::Logs));
    assert_eq!(names(&receiver), ids(&runs));
}

async fn poison_dies_alone_and_can_be_retried(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let runs = succeed(&mut database.connect().await, 1..=40).await;
    let poison = runs[17];
    receiver.rule(move |request| {
        if tells_of(request, &poison) {
            Reply::grpc(Code::InvalidArgument, "bad span")
        } else {
            Reply::Accept
        }
    });
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Dead(1));
    let mut good = ids(&runs);
    good.remove(&poison.to_string());
    assert_eq!(names(&receiver), good);
    assert_eq!(all_run_spans(&receiver).len(), good.len());

    let dead = store.list(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].dead.as_ref().unwrap().ends_with("\"bad span\""), "{dead:?}");
    assert_eq!(store.retry(&Selection::All).await.unwrap(), 1);
    receiver.rule(|_| Reply::Accept);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
}

async fn a_receiver_that_refuses_everything_kills_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let runs = succeed(&mut database.connect().await, 1..=30).await;
    receiver.rule(|_| Reply::grpc(Code::InvalidArgument, "not today"));
    let ended = start(&store, &receiver).drain().await.unwrap();
    assert!(matches!(&ended, Ended::Refused(said) if said.ends_with("\"not today\"")), "{ended:?}");
    assert_eq!(store.status().await.unwrap().dead_requests, 0);
    receiver.rule(|_| Reply::Accept);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
    assert_eq!(all_run_spans(&receiver).len(), runs.len());
}

async fn what_is_too_large_is_halved(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let runs = succeed(&mut database.connect().await, 1..=30).await;
    receiver.rule(|request| {
        let large = request.signal == Signal::Traces && run_spans(request).len() > 4;
        if large { Reply::grpc(Code::ResourceExhausted, "too large") } else { Reply::Accept }
    });
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
    assert_eq!(all_run_spans(&receiver).len(), runs.len());
}

/// Without a hint "too much" may mean too large. What was accepted in this size before is not.
async fn a_busy_receiver_gets_whole_requests_afterwards(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    let mut runs = succeed(&mut session, 1..=30).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let traces = |receiver: &Receiver| {
        receiver.requests().iter().filter(|request| request.signal == Signal::Traces).count()
    };
    assert_eq!(traces(&receiver), 1);
    let relay = start(&store, &receiver);
    runs.extend(succeed(&mut session, 31..=31).await);
    receiver.wait_until("one more", |receiver| names(receiver).len() == runs.len()).await;
    relay.stop().await.unwrap();

    runs.extend(succeed(&mut session, 32..=61).await);
    let before = traces(&receiver);
    let mut refusals = 0;
    receiver.rule(move |request| {
        refusals += usize::from(request.signal == Signal::Traces);
        let is_busy = request.signal == Signal::Traces && refusals == 1;
        if is_busy { Reply::grpc(Code::ResourceExhausted, "busy") } else { Reply::Accept }
    });
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(traces(&receiver), before + 1);
    assert_eq!(names(&receiver), ids(&runs));
}

async fn a_receiver_that_failed_on_everything_kills_nothing_afterwards(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    let mut runs = Vec::new();
    let mut spans = 0;
    receiver.rule(move |request| {
        spans += usize::from(request.signal == Signal::Traces);
        // Each request fails until it is suspect; then others pass; then one more failure.
        let fails =
            request.signal == Signal::Traces && (spans <= 10 || (12..40).contains(&spans) && spans % 2 == 0);
        if fails { Reply::grpc(Code::Internal, "broken") } else { Reply::Accept }
    });
    let relay = start(&store, &receiver);
    for number in 1..=12 {
        // A request of one span each: the wait is sent when the run begins, the run when it ends.
        let before = receiver.attempts();
        runs.extend(succeed(&mut session, number..=number).await);
        eventually("another attempt", async || receiver.attempts() > before).await;
    }
    receiver.wait_until("all spans", |receiver| names(receiver) == ids(&runs)).await;
    relay.stop().await.unwrap();
    assert_eq!(store.status().await.unwrap().dead_requests, 0);
}

async fn what_is_resent_is_resent_to_the_byte(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let runs = succeed(&mut database.connect().await, 1..=10).await;
    receiver.script([Reply::AcceptThenReset, Reply::AcceptThenReset, Reply::AcceptThenReset]);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let mut copies = BTreeMap::<String, Vec<Vec<u8>>>::new();
    for (run, span) in all_run_spans(&receiver) {
        copies.entry(run).or_default().push(span);
    }
    assert_eq!(copies.keys().cloned().collect::<BTreeSet<_>>(), ids(&runs));
    assert!(copies.values().any(|copies| copies.len() > 1), "a reset makes copies");
    assert!(copies.values().flatten().all(|span| !span.is_empty()));
    for copies in copies.values() {
        assert!(copies.iter().all(|copy| copy == &copies[0]));
    }
}

async fn a_full_outbox_drops_the_oldest(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    receiver.rule(|_| Reply::grpc(Code::Unavailable, "away"));
    let small = Settings {
        max_outbox: 2_000,
        batch: 3.try_into().unwrap(),
        trim_every: Duration::ZERO,
        ..settings()
    };
    let relay = relay(&store, &receiver, &[]).with(small).spawn();
    let runs = succeed(&mut session, 1..=60).await;
    let empty = || async { store.status().await.unwrap().journal_entries == 0 };
    eventually("the journal is empty", empty).await;
    relay.stop().await.unwrap();
    let status = store.status().await.unwrap();
    assert!(status.waiting_bytes < 4_000, "one request over the bound at most: {status:?}");
    receiver.rule(|_| Reply::Accept);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let kept = names(&receiver);
    assert!(kept.contains(&runs[59].to_string()), "the newest is kept");
    assert!(!kept.contains(&runs[0].to_string()), "the oldest is gone");
}

async fn a_standby_takes_over_at_once_from_one_that_stops(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let holds = |relay: &RelayHandle| relay.status().snapshot().lease_epoch.is_some();
    let first = start(&store, &receiver);
    eventually("the first works", || async { holds(&first) }).await;
    let second = start(&store, &receiver);
    let runs = succeed(&mut database.connect().await, 1..=3).await;
    receiver.wait_until("all spans", |receiver| all_run_spans(receiver).len() == 3).await;
    assert!(!holds(&second), "one works, the other stands by");
    first.stop().await.unwrap();
    // Well within the lease's ten seconds, which it would have to wait if the first had not given it back.
    let lease = store.lease().await.unwrap();
    assert!(lease.expired || lease.epoch > 1, "{lease:?}");
    eventually("the second works", || async { holds(&second) }).await;
    let more = succeed(&mut database.connect().await, 4..=6).await;
    assert_eq!(second.drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&[runs, more].concat()));
    assert_eq!(all_run_spans(&receiver).len(), 6);
}

async fn a_stopped_relay_leaves_the_rest_to_the_next(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc(Code::Unavailable, "away"));
    let relay = start(&store, &receiver);
    let runs = succeed(&mut database.connect().await, 1..=10).await;
    eventually("the outbox fills", || async { store.status().await.unwrap().waiting_requests > 0 }).await;
    relay.stop().await.unwrap();
    receiver.rule(|_| Reply::Accept);
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
    assert_eq!(all_run_spans(&receiver).len(), runs.len());
}

async fn a_partial_success_is_done(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    succeed(&mut database.connect().await, 1..=2).await;
    receiver.rule(|_| Reply::Partial { rejected: 1, message: "one is too old".to_owned() });
    let relay = start(&store, &receiver);
    let status = relay.status().clone();
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    let of_runs = receiver.requests().into_iter().filter(|request| request.signal != Signal::Metrics);
    assert_eq!(status.snapshot().rejected_items, of_runs.count() as u64);
}

async fn a_signal_can_be_turned_off(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    succeed(&mut database.connect().await, 1..=2).await;
    let off = [("OTEL_LOGS_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
    let relay = relay(&store, &receiver, &off).spawn();
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    assert!(receiver.requests().iter().all(|request| request.signal == Signal::Traces));
}

/// Cutting the relay's connections, at whichever statement it is.
async fn a_renamed_table_stops_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    let runs = succeed(&mut session, 1..=3).await;
    session.execute("ALTER TABLE workflow_runs RENAME TO runs_of_old").await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
}

#[cfg(feature = "services")]
async fn a_cut_connection_loses_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let relay = start(&store, &receiver);
    let mut session = database.connect().await;
    let mut runs = Vec::new();
    let mut round = 0;
    // Until one of the cuts hit a statement: then it takes its own lease anew, without waiting for it to expire.
    while round < 10 || store.lease().await.unwrap().epoch < 2 {
        assert!(round < 1_000, "no cut cost it its lease");
        runs.extend(succeed(&mut session, round * 20 + 1..=round * 20 + 20).await);
        round += 1;
        session
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'runspan' AND datname = current_database()",
            )
            .await;
    }
    receiver.wait_until("all spans", |receiver| names(receiver).len() == runs.len()).await;
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    assert_eq!(names(&receiver), ids(&runs));
}

/// A friendly web page stored nothing.
async fn another_server_on_that_port_takes_nothing(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::http().await;
    succeed(&mut database.connect().await, 1..=3).await;
    receiver
        .rule(|_| Reply::http(200, &[("content-type", "text/html; charset=utf-8")], "<html>Welcome</html>"));
    let http = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let ended = relay(&store, &receiver, &http).spawn().drain().await.unwrap();
    assert!(matches!(&ended, Ended::Refused(said) if said.contains("answers with a web page")), "{ended:?}");
    assert!(store.status().await.unwrap().waiting_requests > 0);
}

/// It stored the request, so sending it again would store a copy.
async fn a_success_in_the_receivers_own_words_is_no_reason_to_send_again(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::http().await;
    let stored = Arc::new(Mutex::new(Vec::new()));
    let spans = Arc::clone(&stored);
    receiver.rule(move |request| {
        if request.signal != Signal::Traces {
            return Reply::Accept;
        }
        let mut spans = spans.lock().unwrap();
        spans.extend(run_spans(request).into_iter().map(|(run, _)| run));
        let body = ["ok", r#"{"status":"available"}"#, "<accepted/>"][spans.len() % 3];
        Reply::http(200, &[("content-type", "text/plain")], body)
    });
    let (log, _guard) = Logged::start();
    let http = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let relay = relay(&store, &receiver, &http).spawn();
    let mut runs = Vec::new();
    for number in 1..=4 {
        runs.extend(succeed(&mut database.connect().await, number..=number).await);
        receiver.wait_until("its span", |_| stored.lock().unwrap().len() >= runs.len()).await;
    }
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    let mut stored = stored.lock().unwrap().clone();
    stored.sort_unstable();
    assert_eq!(stored, ids(&runs).into_iter().collect::<Vec<_>>());
    assert_eq!(log.with("that is not an OTLP response, which counts as accepted").len(), 1);
}

async fn what_another_relay_left_for_another_channel_keeps_no_one(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc(Code::Unavailable, "away"));
    let first = start(&store, &receiver);
    succeed(&mut database.connect().await, 1..=3).await;
    eventually("both channels wait", || async { store.list(10).await.unwrap().len() >= 2 }).await;
    first.stop().await.unwrap();
    receiver.rule(|_| Reply::Accept);
    let traces_only = relay(&store, &receiver, &[("OTEL_LOGS_EXPORTER", "none")]).spawn();
    assert_eq!(traces_only.drain().await.unwrap(), Ended::Idle);
    let left = store.list(10).await.unwrap();
    assert!(!left.is_empty() && left.iter().all(|request| request.channel == Channel::Logs), "{left:?}");
}

/// An empty journal is no work done: what it missed is found first.
async fn idle_is_only_who_has_looked(database: &Database) {
    let (store, _) = database.attach().await;
    let receiver = Receiver::grpc().await;
    let mut session = database.connect().await;
    let runs = succeed(&mut session, 1..=1).await;
    let late = session.queue("plan", 2).await;
    session.execute(&format!("DELETE FROM {}", database.own("journal"))).await;
    assert_eq!(start(&store, &receiver).drain().await.unwrap(), Ended::Idle);
    let status = store.status().await.unwrap();
    assert_eq!(
        (status.journal_entries, status.open_runs),
        (0, 1),
        "{late} is taken in, {runs:?} came and went unseen"
    );
}

async fn nothing_to_send_is_said(database: &Database) {
    let (store, _) = database.attach().await;
    let off = |name: &str| name.ends_with("_EXPORTER").then(|| "none".to_owned());
    let error = Relay::new(store, Logs::Otlp, &off).err().unwrap().to_string();
    assert!(error.starts_with("every signal is turned off"), "{error}");
}

async fn trouble_now_and_then_is_not_waited_for_ever_longer(database: &Database) {
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let term = Duration::from_millis(200);
    // Waits that double come to almost two minutes here, waits that begin anew to a few seconds.
    let settings = Settings { lease_term: term, longest_backoff: Duration::from_mins(1), ..settings() };
    let relay = relay(&store, &receiver, &[]).with(settings).spawn();
    let mut session = database.connect().await;
    let journal = database.own("journal");
    let away = if database.is_postgres() { "journal_away" } else { "runspan_journal_away" };
    let at_work = async || relay.status().snapshot().lease_epoch.is_some();
    for _ in 0..10 {
        eventually("the relay at work", at_work).await;
        let began = store.lease().await.unwrap().expires_at;
        let term = i64::try_from(term.as_micros()).unwrap();
        eventually("a term of work", async || store.lease().await.unwrap().expires_at > began + term).await;
        session.execute(&format!("ALTER TABLE {journal} RENAME TO {away}")).await;
        eventually("trouble", async || !at_work().await).await;
        let (from, to) = if database.is_postgres() {
            (format!("runspan.{away}"), "journal")
        } else {
            (away.to_owned(), "runspan_journal")
        };
        session.execute(&format!("ALTER TABLE {from} RENAME TO {to}")).await;
    }
    relay.stop().await.unwrap();
}

/// Waits of zero, in the past, negative or without sense: each sender backs off as if nothing was asked for.
async fn a_receiver_that_asks_for_no_wait_gets_one(database: &Database) {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let http = [("grpc", false), ("http/protobuf", true)];
    for (protocol, is_http) in http {
        let (store, _) = database.attach().await;
        let receiver = if is_http { Receiver::http().await } else { Receiver::grpc().await };
        let arrivals = Arc::new(Mutex::new(BTreeMap::<Signal, Vec<Instant>>::new()));
        let seen = Arc::clone(&arrivals);
        receiver.rule(move |request| {
            let mut seen = seen.lock().unwrap();
            let arrivals = seen.entry(request.signal).or_default();
            arrivals.push(Instant::now());
            match (is_http, arrivals.len() % 4) {
                (true, 0) => Reply::http(503, &[("retry-after", "0")], "busy"),
                (true, 1) => Reply::http(429, &[("retry-after", date), ("date", date)], "busy"),
                (true, 2) => Reply::http(503, &[("retry-after", date)], "busy"),
                (true, _) => Reply::http(503, &[("retry-after", "-1")], "busy"),
                (false, 0) => Reply::grpc_retry(Code::Unavailable, "busy", Duration::ZERO),
                (false, 1) => Reply::grpc_retry(Code::ResourceExhausted, "busy", Duration::ZERO),
                (false, 2) => Reply::grpc_retry(Code::Unavailable, "busy", Duration::from_nanos(1)),
                (false, _) => Reply::http(503, &[("retry-after", "0")], "busy"),
            }
        });
        let variables = [("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let settings = Settings { longest_backoff: Duration::from_secs(1), ..settings() };
        let relay = relay(&store, &receiver, &variables).with(settings).spawn();
        succeed(&mut database.connect().await, 1..=1).await;
        let enough = |arrivals: &BTreeMap<Signal, Vec<Instant>>| {
            arrivals.len() == Signal::ALL.len() && arrivals.values().all(|arrivals| arrivals.len() > 4)
        };
        receiver.wait_until("five attempts of each signal", |_| enough(&arrivals.lock().unwrap())).await;
        relay.stop().await.unwrap();
        for (signal, arrivals) in arrivals.lock().unwrap().iter() {
            // The last export of metrics, at the end of the relay, waits for nothing.
            for attempt in arrivals[..5].windows(2) {
                let wait = attempt[1] - attempt[0];
                assert!(wait >= Duration::from_millis(200), "{protocol}: {signal} again after {wait:?}");
            }
        }
    }
}

async fn an_outage_is_a_line_at_its_beginning_and_two_at_its_end(database: &Database) {
    let (store, _) = database.attach().await;
    let (logged, _guard) = Logged::start();
    let receiver = Receiver::grpc().await;
    receiver.rule(|_| Reply::grpc(Code::Unavailable, "away"));
    let only_traces = [("OTEL_LOGS_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
    let relay = relay(&store, &receiver, &only_traces).spawn();
    succeed(&mut database.connect().await, 1..=3).await;
    eventually("some attempts", async || receiver.attempts() > 5).await;
    assert_eq!(logged.with("away").len(), 1, "{:?}", logged.with(""));
    assert!(logged.with("again").is_empty());
    receiver.rule(|_| Reply::Accept);
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    assert_eq!(logged.with("away").len(), 1, "{:?}", logged.with(""));
    assert_eq!(logged.with("accepts requests again"), ["info receiver accepts requests again"]);
    assert_eq!(logged.with("that waited"), ["info sent the requests that waited for the receiver"]);
}
