//! The metrics that a relay has of itself, as they arrive.

use runspan_test_support::otlp::text;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric as Sent, metric::Data, number_data_point,
};
use prost::Message as _;
use runspan::otlp::Signal;
use runspan::runs;
use runspan::semconv::metric::{self, Instrument, Metric, Source};

use crate::database::Database;
use crate::receiver::{Receiver, Reply};

/// A relay that ends with its test.
struct Relay(Child);

impl Relay {
    fn start(database: &Database, receiver: &Receiver) -> Self {
        Self(command(database, receiver).spawn().unwrap())
    }

    /// SIGTERM, and what it said until its end.
    fn stop(mut self) -> Output {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.end()
    }

    fn end(&mut self) -> Output {
        let stderr = self.0.stderr.take();
        let ended = tokio::task::block_in_place(|| self.0.wait()).unwrap();
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut stderr.unwrap(), &mut said).unwrap();
        Output { status: ended, stdout: Vec::new(), stderr: said }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(database: &Database, receiver: &Receiver) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runspan"));
    command
        .env_clear()
        .args(["relay", "--database-url", &database.url])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "100")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What the relays have sent of themselves, export by export: who, and their metrics.
fn exports(receiver: &Receiver) -> Vec<(BTreeMap<String, String>, Vec<Sent>)> {
    let requests = receiver.requests().into_iter().filter(|request| request.signal == Signal::Metrics);
    let resources = requests
        .flat_map(|request| ExportMetricsServiceRequest::decode(request.body).unwrap().resource_metrics);
    resources
        .map(|sent| {
            let metrics = sent.scope_metrics.into_iter().flat_map(|scope| scope.metrics).collect();
            (texts(&sent.resource.unwrap_or_default().attributes), metrics)
        })
        .filter(|(resource, _): &(BTreeMap<_, _>, _)| resource["service.name"] == "runspan-relay")
        .collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

/// The points of a metric: attributes but `database`, and the value, or how many were counted.
fn points(sent: &Sent) -> Vec<(BTreeMap<String, String>, f64)> {
    let number = |value: Option<number_data_point::Value>| match value.unwrap() {
        #[expect(clippy::cast_precision_loss, reason = "the numbers of a test are small")]
        number_data_point::Value::AsInt(value) => value as f64,
        number_data_point::Value::AsDouble(value) => value,
    };
    let numbers = match sent.data.clone().unwrap() {
        Data::Gauge(gauge) => gauge.data_points,
        Data::Sum(sum) => sum.data_points,
        Data::Histogram(histogram) => {
            let points = histogram.data_points.into_iter();
            #[expect(clippy::cast_precision_loss, reason = "the numbers of a test are small")]
            return points.map(|point| (texts(&point.attributes), point.count as f64)).collect();
        }
        other => panic!("{}: {other:?}", sent.name),
    };
    numbers.into_iter().map(|point| (texts(&point.attributes), number(point.value))).collect()
}

/// The value of a metric's point with these attributes beside `database`, if there is one.
fn value(metrics: &[Sent], metric: &Metric, with: &[(&str, &str)]) -> Option<f64> {
    let sent = metrics.iter().find(|sent| sent.name == metric.name)?;
    let found = points(sent).into_iter().find(|(attributes, _)| {
        attributes.len() == with.len() + 1 && with.iter().all(|(key, value)| attributes[*key] == *value)
    });
    found.map(|(_, value)| value)
}

/// Waits until the newest export is as it should be.
async fn newest(receiver: &Receiver, what: &str, holds: impl Fn(&[Sent]) -> bool) -> Vec<Sent> {
    let last = |receiver: &Receiver| exports(receiver).pop().map(|(_, metrics)| metrics);
    receiver.wait_until(what, |receiver| last(receiver).is_some_and(|metrics| holds(&metrics))).await;
    last(receiver).unwrap()
}

/// Runs that go through, as many as `numbers`.
async fn work(database: &Database, numbers: std::ops::Range<i64>) {
    let mut session = database.connect().await;
    for number in numbers {
        let run = session.queue("triage", number).await;
        runs::mark_running(session.runs(), run).await.unwrap();
        runs::mark_succeeded(session.runs(), run).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_exports_every_metric_of_its_own_in_the_catalogue_and_no_other() {
    for (protocol, receiver) in [("http/protobuf", Receiver::http().await), ("grpc", Receiver::grpc().await)]
    {
        let database = Database::sqlite().await;
        let (store, _) = database.attach().await;
        let mut session = database.connect().await;
        // One that the journal missed, one that it cannot understand.
        session.queue("triage", 1000).await;
        session.execute("DELETE FROM runspan_journal").await;
        session
            .execute(
                "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                 VALUES ('run 1', 'triage', 'issue', 'acme', 'widgets', 1001)",
            )
            .await;
        work(&database, 1..6).await;
        // Of the records the receiver first takes none, and then throws one away.
        let mut records = 0;
        receiver.rule(move |request| {
            records += usize::from(request.signal == Signal::Logs);
            match (request.signal, records) {
                (Signal::Logs, 1) => Reply::http(503, &[], "later"),
                (Signal::Logs, 2) => Reply::Partial { rejected: 1, message: "too old".to_owned() },
                _ => Reply::Accept,
            }
        });
        let mut relay = command(&database, &receiver);
        relay.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).args(["--max-outbox", "64MiB"]);
        let relay = Relay(relay.spawn().unwrap());
        let signal = |signal| [(metric::SIGNAL, signal)];
        newest(&receiver, "acknowledged spans and records", |metrics| {
            // Three transitions of each, a rollup, and the missed one's queued.
            value(metrics, &metric::EXPORTED, &signal("logs")) == Some(21.0)
                && value(metrics, &metric::EXPORTED, &signal("traces")) == Some(10.0)
        })
        .await;
        let output = relay.stop();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        // The last export tells how it was left, but for the lease, which is no longer this relay's to speak of.
        let mut exports = exports(&receiver);
        let (resource, mut metrics) = exports.pop().unwrap();
        assert_eq!(value(&metrics, &metric::LEASE_HELD, &[]), None);
        let mut before = exports.into_iter().rev().flat_map(|(_, metrics)| metrics);
        metrics.push(before.find(|sent| sent.name == metric::LEASE_HELD.name).unwrap());
        assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(uuid::Uuid::try_parse(&resource["service.instance.id"]).is_ok(), "{resource:?}");
        let value = |metric, with: &[(&str, &str)]| value(&metrics, &metric, with);
        let status = |status| [(metric::STATUS, status)];
        for (expected, found) in [
            (1.0, value(metric::LEASE_HELD, &[])),
            (1.0, value(metric::JOURNAL_LIVE, &[])),
            (0.0, value(metric::JOURNAL_ENTRIES, &[])),
            (0.0, value(metric::JOURNAL_OLDEST_AGE, &[])),
            (1.0, value(metric::JOURNAL_SET_ASIDE, &[])),
            (0.0, value(metric::OUTBOX_REQUESTS, &status("waiting"))),
            (0.0, value(metric::OUTBOX_REQUESTS, &status("dead"))),
            (0.0, value(metric::OUTBOX_SIZE, &[])),
            (67_108_864.0, value(metric::OUTBOX_LIMIT, &[])),
            (0.0, value(metric::OUTBOX_OLDEST_AGE, &[])),
            (1.0, value(metric::RECONCILED, &[])),
            (0.0, value(metric::REJECTED, &signal("traces"))),
            (1.0, value(metric::REJECTED, &signal("logs"))),
            (0.0, value(metric::RESENT, &signal("traces"))),
            (1.0, value(metric::RESENT, &signal("logs"))),
            (0.0, value(metric::DROPPED, &[])),
            (1.0, value(metric::EXPORT_DURATION, &[signal("logs")[0], ("error.type", "unavailable")])),
        ] {
            assert_eq!(found, Some(expected), "{metrics:#?}");
        }
        for sent in ["traces", "logs", "metrics"] {
            assert!(value(metric::EXPORT_DURATION, &signal(sent)) >= Some(1.0), "{sent}");
        }
        assert!(value(metric::EXPORTED, &signal("metrics")) > Some(0.0));
        assert_eq!(value(metric::RESENT, &signal("metrics")), Some(0.0));
        assert!(value(metric::CYCLE_DURATION, &[]) >= Some(1.0));

        let own = || metric::ALL.iter().filter(|metric| metric.source == Source::Relay);
        let names = |metrics: &mut dyn Iterator<Item = String>| metrics.collect::<BTreeSet<_>>();
        assert_eq!(
            names(&mut metrics.iter().map(|sent| sent.name.clone())),
            names(&mut own().map(|metric| metric.name.to_owned()))
        );
        let instance = store.instance().await.unwrap();
        for metric in own() {
            let sent = metrics.iter().find(|sent| sent.name == metric.name).unwrap();
            assert_eq!((sent.unit.as_str(), sent.description.as_str()), (metric.unit, metric.meaning));
            assert_eq!(instrument(sent), metric.instrument, "{}", metric.name);
            let mut carried = BTreeSet::new();
            for (attributes, _) in points(sent) {
                assert_eq!(attributes[metric::DATABASE], instance, "{}", metric.name);
                carried.extend(attributes.into_keys());
            }
            let known: BTreeSet<String> = metric.attributes.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(carried, known, "{}", metric.name);
        }
    }
}

fn instrument(sent: &Sent) -> Instrument {
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    match sent.data.as_ref().unwrap() {
        Data::Gauge(_) => Instrument::Gauge,
        Data::Sum(sum) if sum.is_monotonic && sum.aggregation_temporality == cumulative => {
            Instrument::Counter
        }
        Data::Histogram(histogram) if histogram.aggregation_temporality == cumulative => {
            let bounds = &histogram.data_points[0].explicit_bounds;
            assert_eq!((bounds.first(), bounds.last()), (Some(&0.001), Some(&300.0)), "{}", sent.name);
            Instrument::Histogram
        }
        other => panic!("{}: {other:?}", sent.name),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_says_that_it_does_not_hold_the_lease() {
    let (database, receiver) = (Database::sqlite().await, Receiver::http().await);
    let (store, _) = database.attach().await;
    // By process: whether it held the lease when it last told.
    let held = |receiver: &Receiver| {
        let told = exports(receiver).into_iter().filter_map(|(resource, metrics)| {
            let held = value(&metrics, &metric::LEASE_HELD, &[])?;
            // Not a database's first look: it knows how the journal stands too.
            value(&metrics, &metric::JOURNAL_ENTRIES, &[])?;
            Some((resource["service.instance.id"].clone(), held > 0.0))
        });
        told.collect::<BTreeMap<_, _>>().into_values().collect::<Vec<_>>()
    };
    let first = Relay::start(&database, &receiver);
    receiver.wait_until("holder", |receiver| held(receiver) == [true]).await;
    let second = Relay::start(&database, &receiver);
    let sorted = |receiver: &Receiver| {
        let mut held = held(receiver);
        held.sort_unstable();
        held
    };
    receiver.wait_until("standby beside it", |receiver| sorted(receiver) == [false, true]).await;
    let holder = store.lease().await.unwrap().holder.unwrap();
    assert!(holder.starts_with(&format!("{}-", first.0.id())), "{holder}");
    // A standby counts too, from 0.
    let (_, metrics) = exports(&receiver)
        .into_iter()
        .rfind(|(_, metrics)| value(metrics, &metric::LEASE_HELD, &[]) == Some(0.0))
        .unwrap();
    assert_eq!(value(&metrics, &metric::EXPORTED, &[(metric::SIGNAL, "traces")]), Some(0.0));
    first.stop();
    receiver
        .wait_until("takeover", |receiver| {
            // The first has said nothing else of it since: it is gone, and its lease with it.
            sorted(receiver) == [true, true]
        })
        .await;
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_no_metrics_costs_nothing_and_is_told_of_once() {
    let (database, receiver) = (Database::sqlite().await, Receiver::http().await);
    database.attach().await;
    work(&database, 1..4).await;
    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = refusals.clone();
    receiver.rule(move |request| {
        if request.signal != Signal::Metrics {
            return Reply::Accept;
        }
        match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::Hang,
            _ => Reply::http(503, &[], "away"),
        }
    });
    let mut command = command(&database, &receiver);
    let relay = Relay(command.env("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "200").spawn().unwrap());
    receiver.wait_until("refused exports", |_| refusals.load(Ordering::Relaxed) > 4).await;
    receiver.wait_for(2).await;
    let delivered: BTreeSet<Signal> = receiver.requests().iter().map(|request| request.signal).collect();
    assert_eq!(delivered, [Signal::Traces, Signal::Logs].into());
    let output = relay.stop();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("the relay's own").count(), 1, "{said}");
    assert!(said.contains("failed to export the relay's own metrics: metrics to "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_carry_the_resource_of_the_process_and_a_timer_makes_no_new_series() {
    let (database, receiver) = (Database::sqlite().await, Receiver::http().await);
    database.attach().await;
    let attributes = "deployment.environment.name=staging,service.version=7,service.namespace=web";
    for number in 1..=3 {
        work(&database, number..number + 1).await;
        let mut command = command(&database, &receiver);
        command.env("OTEL_RESOURCE_ATTRIBUTES", attributes).env("OTEL_SERVICE_NAME", "shop");
        assert!(Relay(command.arg("--until-idle").spawn().unwrap()).end().status.success());
    }
    let resources: BTreeSet<_> = exports(&receiver).into_iter().map(|(resource, _)| resource).collect();
    let resource = resources.first().unwrap();
    assert_eq!(resources.len(), 1, "one instance: {resources:?}");
    let value = |key: &str| resource[key].as_str();
    assert_eq!(value("service.instance.id"), "until-idle");
    assert_eq!(value("deployment.environment.name"), "staging");
    assert_eq!(value("service.namespace"), "web");
    assert_eq!(value("service.version"), env!("CARGO_PKG_VERSION"), "the relay's, not the application's");

    let mut own_id = command(&database, &receiver);
    own_id.env("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1");
    assert!(Relay(own_id.arg("--until-idle").spawn().unwrap()).end().status.success());
    assert!(exports(&receiver).iter().any(|(resource, _)| resource["service.instance.id"] == "pod-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn they_can_be_turned_off() {
    let (database, receiver) = (Database::sqlite().await, Receiver::http().await);
    database.attach().await;
    work(&database, 1..2).await;
    for (variable, off) in [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")] {
        let mut command = command(&database, &receiver);
        let mut relay = Relay(command.env(variable, off).arg("--until-idle").spawn().unwrap());
        assert!(relay.end().status.success());
        assert!(exports(&receiver).is_empty(), "{variable}={off}");
    }
    assert!(!receiver.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_cannot_be_is_refused() {
    let (database, receiver) = (Database::sqlite().await, Receiver::http().await);
    let mut command = command(&database, &receiver);
    let mut relay = Relay(command.env("OTEL_METRIC_EXPORT_INTERVAL", "0").spawn().unwrap());
    let output = relay.end();
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @r#"error: OTEL_METRIC_EXPORT_INTERVAL is "0", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000"#);
}
