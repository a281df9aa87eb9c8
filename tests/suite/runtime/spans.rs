//! A subscriber for the runtime alone sees every span of its handlers end, however the handler ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use runspan::runtime::{ExecutorSettings, Outcome, Workflow};
use tracing::Subscriber;
use tracing::instrument::{Instrument as _, WithSubscriber as _};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::stage::{Stage, workflow};
use crate::database::{Database, eventually};

on_every_database!(every_span_of_a_handler_ends);

/// Keeps the names of spans, and of those that have ended.
#[derive(Clone, Default)]
struct Spans {
    begun: Arc<Mutex<Vec<&'static str>>>,
    ended: Arc<Mutex<Vec<&'static str>>>,
}

impl Spans {
    /// Waits until so many innermost ones have begun.
    async fn inner(&self, count: usize) {
        eventually("it has begun", || async {
            self.begun.lock().unwrap().iter().filter(|name| **name == "inner").count() == count
        })
        .await;
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        self.begun.lock().unwrap().push(attributes.metadata().name());
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.ended.lock().unwrap().push(context.span(&id).unwrap().name());
    }
}

async fn every_span_of_a_handler_ends(database: &Database) {
    let spans = Spans::default();
    let drive = async {
        let forever = |name: &str| {
            Workflow::new(name, |_| {
                std::future::pending::<Result<_, _>>()
                    .instrument(tracing::info_span!("inner"))
                    .instrument(tracing::info_span!("outer"))
            })
        };
        let workflows = [
            workflow("triage", |_| Outcome::Succeeded),
            forever("timeout").timeout(Duration::from_millis(20)),
            forever("stopped"),
            forever("killed"),
        ];
        let stage = Stage::new(database, workflows).await;
        let executor = stage.execute_with(ExecutorSettings { drain: Duration::ZERO, ..Stage::settings() });
        for name in ["triage", "timeout"] {
            let run = stage.dispatch(name, 1).await;
            stage.ended(run).await;
        }
        stage.dispatch("stopped", 1).await;
        spans.inner(2).await;
        executor.stop().await;
        let executor = stage.execute();
        stage.dispatch("killed", 1).await;
        spans.inner(3).await;
        executor.kill().await;
    };
    drive.with_subscriber(crate::scoped::registry().with(spans.clone())).await;
    let ended = || {
        let mut ended = spans.ended.lock().unwrap().clone();
        ended.sort_unstable();
        ended
    };
    let mut begun = spans.begun.lock().unwrap().clone();
    begun.sort_unstable();
    assert_eq!(begun.len(), 10, "{begun:?}");
    eventually("all have ended", || async { ended() == begun }).await;
}
