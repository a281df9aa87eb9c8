//! Every path of a run's life through the real runtime, and exactly what is received of it: events, fields and
//! spans, the same on PostgreSQL with Redis between dispatcher and executor as on SQLite in one process.

mod render;
mod workflows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use runspan::relay::{Ended, Logs, Relay, Settings};
use runspan::run::RunId;
use runspan::runs;
use runspan::runtime::queue::{InProcessQueue, Queue};
use runspan::runtime::{self, Delivery, Dispatched, ExecutorSettings, ReaperSettings, Runtime};
use runspan::telemetry::Telemetry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;
use tracing_subscriber::layer::SubscriberExt as _;

use self::workflows::{Gate, registry};
use crate::database::{Database, eventually};
use crate::receiver::Receiver;
#[cfg(feature = "services")]
use crate::runtime::queue::server::Server;

#[tokio::test]
async fn on_sqlite_in_process() {
    Database::sqlite()
        .await
        .run(async |database| fan_out(database, Between::Memory(InProcessQueue::default())).await)
        .await;
}

#[cfg(feature = "services")]
#[tokio::test]
async fn on_postgres_and_redis() {
    let server = Server::start(&[]).await;
    let queue = server.queue(Duration::from_secs(10)).await;
    let between = Between::Server { server: tokio::sync::Mutex::new(server), queue };
    Database::postgres().await.run(async |database| fan_out(database, between).await).await;
}

/// What is between dispatcher and executor, and can be stopped on purpose.
#[cfg_attr(not(feature = "services"), expect(clippy::unused_async, reason = "a server is waited for"))]
enum Between {
    Memory(InProcessQueue),
    #[cfg(feature = "services")]
    Server {
        server: tokio::sync::Mutex<Server>,
        queue: Arc<dyn Queue>,
    },
}

impl Between {
    fn queue(&self) -> Arc<dyn Queue> {
        match self {
            Self::Memory(queue) => Arc::new(queue.clone()),
            #[cfg(feature = "services")]
            Self::Server { queue, .. } => Arc::clone(queue),
        }
    }

    async fn stop(&self) {
        match self {
            Self::Memory(queue) => queue.close(),
            #[cfg(feature = "services")]
            Self::Server { server, .. } => server.lock().await.kill(),
        }
    }

    async fn start(&self) {
        match self {
            Self::Memory(queue) => queue.open(),
            #[cfg(feature = "services")]
            Self::Server { server, .. } => assert!(server.lock().await.restart().await, "its port is taken"),
        }
    }
}

struct Stage<'a> {
    database: &'a Database,
    between: Arc<Between>,
    gate: Arc<Gate>,
    telemetry: Telemetry,
}

impl Stage<'_> {
    /// A process of the application, with live spans of its own.
    async fn process(&self) -> Runtime {
        let url = self.database.url.parse().unwrap();
        let database = runtime::Database::connect(&url, 8).await.unwrap();
        Runtime::new("app", database, self.between.queue(), registry(&self.gate, &self.between))
    }

    fn execute(&self, runtime: &Runtime, lease_term: Duration) -> (CancellationToken, JoinHandle<()>) {
        let stop = CancellationToken::new();
        let settings = ExecutorSettings { lease_term, ..ExecutorSettings::default() };
        let executor = runtime.executor(settings).run(stop.clone());
        let subscriber = crate::scoped::registry().with(self.telemetry.layer());
        let working = async { executor.await.unwrap() };
        (stop, tokio::spawn(working.with_subscriber(subscriber)))
    }
}

/// A delivery about an issue.
fn about(number: i64) -> Delivery {
    let body = format!(
        r#"{{"repository": {{"name": "widgets", "owner": {{"login": "acme"}}}},
            "issue": {{"number": {number}, "title": "fix it"}}}}"#
    );
    Delivery::from_github(&format!("delivery-{number}"), body.as_bytes()).unwrap()
}

fn pull_request(number: i64) -> Delivery {
    let body = format!(
        r#"{{"repository": {{"name": "widgets", "owner": {{"login": "acme"}}}},
            "pull_request": {{"number": {number}}}}}"#
    );
    Delivery::from_github(&format!("delivery-{number}"), body.as_bytes()).unwrap()
}

async fn fan_out(database: &Database, between: Between) {
    let receiver = Receiver::grpc().await;
    let environment = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_SERVICE_NAME", "app".to_owned()),
    ]);
    let env = |name: &str| environment.get(name).cloned();
    let (store, _) = database.attach().await;
    let settings = Settings { idle_poll: Duration::from_millis(20), ..Settings::default() };
    let relay = Relay::new(Arc::clone(&store), Logs::Otlp, &env).unwrap().with(settings).spawn();

    let telemetry = Telemetry::from_env(&env).unwrap();
    let stage = Stage { database, between: Arc::new(between), gate: Arc::default(), telemetry };
    let deleted = drive(&stage).await;

    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    stage.telemetry.flush().await.unwrap();
    let text = render::render(&receiver, &render::names(database, deleted).await);
    insta::assert_snapshot!("received", text);
}

/// Goes each path, one after the other, each on an issue of its own; the run whose row it deleted.
async fn drive(stage: &Stage<'_>) -> RunId {
    let app = stage.process().await;
    let dispatcher = app.dispatcher();
    let dispatch = async |workflow: &str, number: i64| match dispatcher
        .intent(workflow, &about(number))
        .await
        .unwrap()
    {
        Dispatched::Queued { run } => run,
        other => panic!("{workflow}#{number}: {other:?}"),
    };
    let row = async |run: RunId| {
        let mut session = app.database().acquire().await.unwrap();
        runs::load(session.runs(), run).await.unwrap()
    };
    let ended = async |run: RunId| {
        eventually("ended", || async { row(run).await.status.outcome().is_some() }).await;
    };
    let (stop, executor) = stage.execute(&app, Duration::from_secs(10));

    // 1: by a label, with the span that brought it.
    let traceparent = Some("00-4b72407cfb2049d1a120884229aa119e-a1272e2054514458-01".to_owned());
    let delivery = Delivery { traceparent, ..about(1) };
    let Dispatched::Queued { run } = dispatcher.label("bot:triage", &delivery).await.unwrap() else {
        panic!()
    };
    ended(run).await;
    // 2 to 5: failed, incomplete, a panic, an error that escapes.
    for number in 2..=5 {
        ended(dispatch("triage", number).await).await;
    }
    // 6: it takes too long.
    ended(dispatch("wait", 6).await).await;

    // 7: refused, and a redelivery after the end.
    dispatcher.label("bot:triage", &pull_request(7)).await.unwrap();
    dispatcher.label("bot:plan", &about(7)).await.unwrap();
    let first = dispatch("triage", 7).await;
    dispatcher.label("bot:triage", &about(7)).await.unwrap();
    stage.gate.open(7);
    ended(first).await;
    ended(dispatch("triage", 7).await).await;

    // 8: nothing between dispatcher and executor.
    stage.between.stop().await;
    let became = dispatcher.label("bot:triage", &about(8)).await.unwrap();
    assert!(matches!(became, Dispatched::EnqueueFailed { .. }), "{became:?}");
    stage.between.start().await;

    // 9 to 11: a chain that needs a second round, one whose step fails, one that comes to its cap.
    for number in 9..=11 {
        ended(dispatch("ship", number).await).await;
    }
    // 12: a step that is in flight elsewhere.
    ended(dispatch("triage", 12).await).await;
    let elsewhere = dispatch("plan", 12).await;
    ended(dispatch("ship", 12).await).await;
    stage.gate.open(12);
    ended(elsewhere).await;
    // 13: the first step's handler stops what is between, so the second cannot be published.
    ended(dispatch("ship", 13).await).await;
    stage.between.start().await;
    // 14 and 15: a handler hands off, to a child and to nobody.
    ended(dispatch("route", 14).await).await;
    ended(dispatch("route", 15).await).await;

    // 16: its row is deleted. 17: somebody overrules its end.
    let mut session = stage.database.connect().await;
    let deleted = dispatch("triage", 16).await;
    eventually("begun", || async { row(deleted).await.status == runspan::run::Status::Running }).await;
    session.execute(&format!("DELETE FROM workflow_runs WHERE id = '{deleted}'")).await;
    stage.gate.open(16);
    let overruled = dispatch("triage", 17).await;
    ended(overruled).await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'failed' WHERE id = '{overruled}'")).await;

    stop.cancel();
    executor.await.unwrap();

    // 18: the process that has it dies.
    let dying = stage.process().await;
    let (_, killed) = stage.execute(&dying, Duration::from_millis(1));
    let orphan = dispatch("triage", 18).await;
    eventually("it works", || async { stage.gate.waiting(18) }).await;
    killed.abort();
    eventually("it is dead", || async { !stage.gate.waiting(18) }).await;
    let reaper = app.reaper(ReaperSettings { interval: Duration::ZERO, ..ReaperSettings::default() });
    eventually("reaped", || async {
        reaper.round().await.unwrap();
        row(orphan).await.status.outcome().is_some()
    })
    .await;
    deleted
}
