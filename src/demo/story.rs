//! The demo's script: deliveries, and the faults that it injects.
//!
//! Dispatchers, executors and the reaper are the runtime's. What goes wrong here goes wrong there: a queue is
//! closed, an executor is gone, a handler has a bug.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::DemoError;
use super::database::{ByHand, NAME};
use super::deliveries::{about, deliver, saying};
use super::handlers::{self, Remarks};
use runspan::run::{RunId, Status};
use runspan::runs;
use runspan::runtime::queue::InProcessQueue;
use runspan::runtime::{
    Database, Delivery, Dispatched, Dispatcher, ExecutorSettings, ReaperSettings, Registry, Runtime, bundled,
};

/// How many handlers run at a time: few enough that some runs wait.
const CONCURRENCY: usize = 6;

/// How long the executor that dies is thought to live.
const LEASE: Duration = Duration::from_millis(300);

/// How often the story looks how far a run is.
const LOOK: Duration = Duration::from_millis(20);

/// More issues, so that quantiles have something to tell.
const MORE_ISSUES: std::ops::RangeInclusive<i64> = 3..=14;

/// What was asked for, to be compared with what was received.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) deliveries: usize,
    /// The ids of the deliveries that led to no run.
    pub(super) refused: HashSet<String>,
    /// The runs whose row is gone.
    pub(super) deleted: Vec<RunId>,
    pub(super) composite: Option<RunId>,
}

/// What a delivery asks for.
#[derive(Clone, Copy)]
enum Ask {
    /// With a label.
    Label(&'static str),
    /// In the words of a comment, in which a classifier has found this workflow.
    Intent(&'static str),
}
use Ask::{Intent, Label};

/// The story and its stage.
pub(super) struct Story {
    database: Database,
    /// What the names of its processes begin with.
    name: String,
    registry: Registry,
    /// The process that most goes through.
    main: Runtime,
    told: Mutex<Told>,
}

impl Story {
    pub(super) fn new(database: Database) -> Self {
        let remarks = Remarks::default();
        let registry = bundled::registry(|name| handlers::workflow(name, &remarks))
            .expect("the bundled workflows fit together");
        let name = format!("{NAME}-{:08x}", rand::random::<u32>());
        let queue = Arc::new(InProcessQueue::default());
        let main = Runtime::new(&name, database.clone(), queue, registry.clone());
        Self { database, name, registry, main, told: Mutex::default() }
    }

    /// What the names of its processes begin with, and of no other demo's.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Plays it, in about two seconds.
    pub(super) async fn play(&self) -> Result<Told, DemoError> {
        let stop = CancellationToken::new();
        let executor = self.main.executor(ExecutorSettings {
            concurrency: CONCURRENCY,
            // All runs have ended by then: what still hangs has lost its own.
            drain: Duration::ZERO,
            ..ExecutorSettings::default()
        });
        let reaper = self.main.reaper(ReaperSettings {
            lease_term: LEASE,
            interval: LEASE / 3,
            ..ReaperSettings::default()
        });
        let scenes = async {
            let more = future::try_join_all(MORE_ISSUES.map(|number| self.another_issue(number)));
            tokio::try_join!(self.issue(), self.pull_request(), self.nowhere(), self.by_hand(), more)?;
            stop.cancel();
            Ok::<(), DemoError>(())
        };
        let executing = async { Ok(executor.run(stop.clone()).await?) };
        let reaping = async {
            reaper.run(stop.clone()).await;
            Ok(())
        };
        tokio::try_join!(scenes, executing, reaping)?;
        Ok(self.told().clone())
    }

    /// An issue is triaged, and shipped: a composite run.
    async fn issue(&self) -> Result<(), DemoError> {
        self.see(Label("bot:triage"), deliver("issues.opened")?).await?;
        let labeled = deliver("issues.labeled")?;
        let run = self.queue(Label("bot:ship"), labeled.clone()).await?;
        self.told().composite = run;
        // GitHub delivers it again: refused while the run is in flight.
        self.queue(Label("bot:ship"), labeled).await?;
        self.end(run).await
    }

    async fn pull_request(&self) -> Result<(), DemoError> {
        // Refused: triage is for issues, and nobody reviews #17.
        self.see(Label("bot:triage"), deliver("pull_request.opened")?).await?;
        let unread = about(17, deliver("pull_request_review.submitted")?);
        self.see(Label("bot:resolve"), unread).await?;

        let secret = format!("Built at https://ci:{}@github.com", credential());
        self.see(Label("bot:review"), saying("body", secret, deliver("pull_request.opened")?)).await?;
        self.see(Label("bot:review"), deliver("pull_request.synchronize")?).await?;
        // The text has one.
        let bug = saying("comment", "Why not as in line 4?", deliver("pull_request_review.submitted")?);
        self.see(Intent("resolve"), bug).await?;

        let queue = InProcessQueue::default();
        queue.close();
        let away = self.process(queue).dispatcher();
        self.dispatch(&away, Label("bot:resolve"), deliver("check_suite.completed")?).await?;
        self.owner_lost(hanging("comment", deliver("check_suite.completed")?)).await?;
        // Neither is in its way.
        self.see(Label("bot:resolve"), deliver("check_suite.completed")?).await
    }

    /// About no issue and no pull request.
    async fn nowhere(&self) -> Result<(), DemoError> {
        self.see(Label("bot:triage"), deliver("release.published")?).await?;
        self.see(Label("bot:ship"), deliver("workflow_dispatch")?).await
    }

    async fn another_issue(&self, number: i64) -> Result<(), DemoError> {
        sleep(Duration::from_millis(number.abs_diff(*MORE_ISSUES.start()) * 100)).await;
        let about = |delivery| {
            let delivery = about(number, delivery);
            match number {
                3 => hanging("body", delivery),
                9 => saying("body", "Please add a command that prints the version.", delivery),
                11 => saying("body", "It does not start. Which file is it? And which line?", delivery),
                _ => delivery,
            }
        };
        self.see(Label("bot:triage"), about(deliver("issues.opened")?)).await?;
        self.see(Intent("plan"), about(deliver("issue_comment.created")?)).await
    }

    /// Somebody knows SQL.
    async fn by_hand(&self) -> Result<(), DemoError> {
        sleep(Duration::from_millis(400)).await;
        for (number, deed) in [(15, ByHand::Delete), (16, ByHand::Fail)] {
            let delivery = hanging("body", about(number, deliver("issue_comment.created")?));
            let Some(run) = self.queue(Label("bot:review"), delivery).await? else { continue };
            self.until(run, |status| status != Status::Queued).await?;
            deed.to(run, &self.database).await?;
            if matches!(deed, ByHand::Delete) {
                self.told().deleted.push(run);
            }
        }
        Ok(())
    }

    /// An executor is killed in the middle of a run; the reaper fails that, and somebody knows better.
    async fn owner_lost(&self, delivery: Delivery) -> Result<(), DemoError> {
        let doomed = self.process(InProcessQueue::default());
        let run = self.dispatch(&doomed.dispatcher(), Label("bot:resolve"), delivery).await?;
        let Some(run) = run else { return Ok(()) };
        let settings = ExecutorSettings { lease_term: LEASE, ..ExecutorSettings::default() };
        tokio::select! {
            ended = doomed.executor(settings).run(CancellationToken::new()) => ended?,
            // Dropped as it is, with the handler that it has in hand.
            begun = self.until(run, |status| status != Status::Queued) => begun?,
        }
        self.end(Some(run)).await?;
        Ok(ByHand::Succeed.to(run, &self.database).await?)
    }

    /// A process beside the main one.
    fn process(&self, queue: InProcessQueue) -> Runtime {
        Runtime::new(&self.name, self.database.clone(), Arc::new(queue), self.registry.clone())
    }

    /// Delivers, and waits for the end of what that leads to.
    async fn see(&self, ask: Ask, delivery: Delivery) -> Result<(), DemoError> {
        let run = self.queue(ask, delivery).await?;
        self.end(run).await
    }

    async fn queue(&self, ask: Ask, delivery: Delivery) -> Result<Option<RunId>, DemoError> {
        self.dispatch(&self.main.dispatcher(), ask, delivery).await
    }

    /// Takes a delivery, in a span to which the run's will link.
    async fn dispatch(
        &self,
        dispatcher: &Dispatcher,
        ask: Ask,
        mut delivery: Delivery,
    ) -> Result<Option<RunId>, DemoError> {
        let span = info_span!("take_delivery", otel.kind = "server", deliveryId = delivery.id);
        delivery.traceparent = traceparent(&span);
        self.told().deliveries += 1;
        let became = match ask {
            Label(label) => dispatcher.label(label, &delivery).instrument(span).await?,
            Intent(workflow) => dispatcher.intent(workflow, &delivery).instrument(span).await?,
        };
        Ok(match became {
            Dispatched::Queued { run } | Dispatched::EnqueueFailed { run } => Some(run),
            Dispatched::Refused { .. } => {
                self.told().refused.insert(delivery.id);
                None
            }
        })
    }

    async fn end(&self, run: Option<RunId>) -> Result<(), DemoError> {
        let Some(run) = run else { return Ok(()) };
        self.until(run, |status| status.outcome().is_some()).await
    }

    async fn until(&self, run: RunId, is: impl Fn(Status) -> bool) -> Result<(), DemoError> {
        while !is(runs::status(self.database.acquire().await?.runs(), run).await?) {
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Held between two awaits only, and sound whoever panicked: it only grows.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same, with a link that nobody can follow to its end.
fn hanging(what: &str, delivery: Delivery) -> Delivery {
    saying(what, "See https://builds.invalid/17 first.", delivery)
}

fn traceparent(span: &Span) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.remove("traceparent")
}

/// Looks like a token, and is none: put together here, so that no scanner of sources trips over it.
fn credential() -> String {
    ["ghs", &"d3M0".repeat(9)].join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use runspan::redact::reason;

    #[test]
    fn the_credential_is_one_to_the_redaction() {
        let said = format!("403 at https://ci:{}@github.com/", credential());
        assert_eq!(reason(&said), "403 at https://[redacted]@github.com/");
        assert_eq!(reason(&credential()), "[redacted]");
    }
}
