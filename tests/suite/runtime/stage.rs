//! A process of the runtime with a queue of its own, and a relay to hear what the journal tells of it.

use std::sync::Arc;
use std::time::Duration;

use runspan::run::{RunId, Status, Target, TargetKind};
use runspan::runs::{self, Run};
use runspan::runtime::queue::InProcessQueue;
use runspan::runtime::{
    Delivery, Dispatched, ExecutorSettings, Outcome, ReaperSettings, Registry, Runtime, RuntimeError,
    Workflow,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;

use crate::database::{Database, eventually};
use crate::projector::Relay;

pub(super) struct Stage {
    pub(super) runtime: Runtime,
    pub(super) queue: InProcessQueue,
    registry: Registry,
    relay: Relay,
    url: String,
}

/// A workflow whose handler knows at once how it ends.
pub(super) fn workflow(name: &str, outcome: fn(i64) -> Outcome) -> Workflow {
    Workflow::new(name, move |context| async move { Ok(outcome(context.run().target.number)) })
}

/// A workflow whose handlers wait until the gate lets them through.
pub(super) fn gated(name: &str) -> (Workflow, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let handlers = Arc::clone(&gate);
    let workflow = Workflow::new(name, move |_| {
        let gate = Arc::clone(&handlers);
        async move {
            gate.acquire().await?.forget();
            Ok(Outcome::Succeeded)
        }
    });
    (workflow, gate)
}

/// A delivery about an issue.
pub(super) fn about(number: i64) -> Delivery {
    let input = [("title".to_owned(), "fix it".into())].into_iter().collect();
    let target = Target { kind: TargetKind::Issue, owner: "acme".into(), repo: "widgets".into(), number };
    Delivery {
        id: format!("d-{number}"),
        owner: "acme".into(),
        repo: "widgets".into(),
        target: Some(target),
        input,
        traceparent: None,
    }
}

/// A delivery about a pull request.
pub(super) fn pull_request(number: i64) -> Delivery {
    let issue = about(number);
    Delivery { target: issue.target.map(|target| Target { kind: TargetKind::Pr, ..target }), ..issue }
}

impl Stage {
    pub(super) async fn new(database: &Database, workflows: impl IntoIterator<Item = Workflow>) -> Self {
        let relay = Relay::new(database.attach().await.0).await;
        let registry = Registry::new(workflows).unwrap();
        // What is not acknowledged comes again at once.
        let queue = InProcessQueue::new(Duration::from_millis(50));
        let url = database.url.clone();
        let runtime = process(&url, &queue, &registry).await;
        Self { runtime, queue, registry, relay, url }
    }

    /// Another process of the same application.
    pub(super) async fn another(&self) -> Runtime {
        process(&self.url, &self.queue, &self.registry).await
    }

    pub(super) fn settings() -> ExecutorSettings {
        ExecutorSettings { drain: Duration::from_mins(1), ..ExecutorSettings::default() }
    }

    /// It believes the first look.
    pub(super) fn reaping() -> ReaperSettings {
        ReaperSettings {
            interval: Duration::ZERO,
            enqueue_grace: Duration::ZERO,
            ..ReaperSettings::default()
        }
    }

    pub(super) fn execute(&self) -> Running {
        self.execute_with(Self::settings())
    }

    pub(super) fn execute_with(&self, settings: ExecutorSettings) -> Running {
        Running::new(&self.runtime, settings)
    }

    /// Queues a run of a workflow on an issue.
    pub(super) async fn dispatch(&self, workflow: &str, number: i64) -> RunId {
        match self.runtime.dispatcher().intent(workflow, &about(number)).await.unwrap() {
            Dispatched::Queued { run } => run,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn row(&self, run: RunId) -> Run {
        let mut session = self.runtime.database().acquire().await.unwrap();
        runs::load(session.runs(), run).await.unwrap()
    }

    pub(super) async fn begun(&self, run: RunId) {
        eventually("begun", || async { self.row(run).await.status == Status::Running }).await;
    }

    /// Waits for a run's end.
    pub(super) async fn ended(&self, run: RunId) -> Run {
        eventually("ended", || async { self.row(run).await.status.outcome().is_some() }).await;
        self.row(run).await
    }

    /// What the journal has told since the last time.
    pub(super) async fn told(&self) -> String {
        self.relay.drain().await
    }

    /// A line a row, with its end, in the order of their beginning; children are indented.
    pub(super) async fn ends(&self) -> String {
        let mut session = crate::database::connect(&self.url).await;
        let ids = session
            .text("SELECT string_agg(CAST(id AS text), ' ' ORDER BY created_at, id) FROM workflow_runs");
        let mut lines = String::new();
        for id in ids.await.unwrap_or_default().split(' ').filter(|id| !id.is_empty()) {
            let run = self.row(id.parse().unwrap()).await;
            let step = run.parent.map(|parent| format!("  {} ", parent.step_index)).unwrap_or_default();
            let reason = run.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
            lines += &format!("{step}{}#{} {}{reason}\n", run.workflow_name, run.target.number, run.status);
        }
        lines
    }
}

async fn process(url: &str, queue: &InProcessQueue, registry: &Registry) -> Runtime {
    let database = runspan::runtime::Database::connect(&url.parse().unwrap(), 8).await.unwrap();
    Runtime::new("executor", database, Arc::new(queue.clone()), registry.clone())
}

/// An executor at work.
pub(super) struct Running {
    pub(super) stop: CancellationToken,
    task: JoinHandle<Result<(), RuntimeError>>,
}

impl Running {
    pub(super) fn new(runtime: &Runtime, settings: ExecutorSettings) -> Self {
        let stop = CancellationToken::new();
        let executor = runtime.executor(settings).run(stop.clone());
        Self { task: tokio::spawn(executor.with_current_subscriber()), stop }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As a process that is killed: nothing of it does anything any more.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
