//! What the processes log of their own: the older vocabulary, without `event`, so that queries on it go on working
//! and no line is taken for one of the relay's.

use std::fmt;
use std::sync::{Arc, Mutex};

use runspan::runtime::{Outcome, Workflow};
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::stage::{Running, Stage, about};
use crate::database::Database;

on_every_database!(the_processes_keep_the_older_vocabulary);

/// Keeps each line's fields.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let shown = match field.name() {
            key @ ("runId" | "inflightRunId") => key.to_owned(),
            key => format!("{key}={value:?}"),
        };
        self.0 += &format!(" {shown}");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("runspan::runtime") {
            let mut line = Line(event.metadata().level().as_str().to_lowercase());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }
}

async fn the_processes_keep_the_older_vocabulary(database: &Database) {
    let lines = Lines::default();
    let drive = async {
        let triage = Workflow::new("triage", |context| async move {
            Ok(match context.run().target.number {
                1 => Outcome::Succeeded,
                _ => Outcome::Failed { reason: "push https://ci:hunter2@github.com: 403".to_owned() },
            })
        });
        let stage = Stage::new(database, [triage]).await;
        let first = stage.dispatch("triage", 1).await;
        stage.runtime.dispatcher().intent("triage", &about(1)).await.unwrap();
        stage.queue.close();
        stage.runtime.dispatcher().intent("triage", &about(2)).await.unwrap();
        stage.queue.open();
        let second = stage.dispatch("triage", 3).await;
        let settings = runspan::runtime::ExecutorSettings { concurrency: 1, ..Stage::settings() };
        let executor = Running::new(&stage.runtime, settings);
        stage.ended(first).await;
        stage.ended(second).await;
        executor.stop().await;
    };
    drive.with_subscriber(crate::scoped::registry().with(lines.clone())).await;
    let lines = lines.0.lock().unwrap().join("\n");
    assert_told!(lines, @r#"
    info message=dispatched reason=workflow-dispatch runId workflowName=triage target=acme/widgets#1 deliveryId=d-1
    info message=dispatch refused reason=workflow-dispatch-inflight inflightRunId workflowName=triage target=acme/widgets#1 deliveryId=d-1
    info message=dispatched reason=workflow-dispatch runId workflowName=triage target=acme/widgets#2 deliveryId=d-2
    error message=failed to enqueue run: the queue is closed reason=workflow-dispatch-enqueue-failed runId
    info message=dispatched reason=workflow-dispatch runId workflowName=triage target=acme/widgets#3 deliveryId=d-3
    info message=handled outcome=succeeded runId workflowName=triage target=acme/widgets#1 deliveryId=d-1
    warn message=handled outcome=failed reason=push https://[redacted]@github.com: 403 runId workflowName=triage target=acme/widgets#3 deliveryId=d-3
    "#);
}
