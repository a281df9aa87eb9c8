//! The projector's step by hand, and what it makes rendered as lines.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use runspan::projection::{Record, Settings, Span, Value};
use runspan::relay::{Plan, plan, runs_of};
use runspan::store::{Batch, Lease, Store};

/// An inline snapshot that is the same on every database.
#[macro_export]
macro_rules! assert_told {
    ($told:expr, @$expected:literal) => {{
        let told = $told;
        insta::allow_duplicates! { insta::assert_snapshot!(told, @$expected); }
    }};
}

pub const TERM: Duration = Duration::from_mins(1);

/// A relay that holds the lease.
pub struct Relay {
    pub store: Arc<dyn Store>,
    pub lease: Lease,
    pub instance: String,
}

impl Relay {
    pub async fn new(store: Arc<dyn Store>) -> Self {
        store.check().await.unwrap();
        let seen = store.lease().await.unwrap();
        let lease = store.take_lease(&seen, "test", TERM).await.unwrap().unwrap();
        let instance = store.instance().await.unwrap();
        Self { store, lease, instance }
    }

    pub async fn read(&self, limit: usize) -> Batch {
        let position = self.store.position(&self.instance).await.unwrap();
        self.store.read(position, limit).await.unwrap()
    }

    pub async fn plan(&self, batch: Batch) -> Plan {
        let runs: Vec<_> = runs_of(&batch).into_iter().collect();
        let open = self.store.open_runs(&runs).await.unwrap();
        plan(batch, open, &Settings::default())
    }

    /// Projects and commits at most `limit` entries; how many there were.
    pub async fn step(&self, limit: usize) -> (usize, Plan) {
        let batch = self.read(limit).await;
        let read = batch.entries.len();
        let plan = self.plan(batch).await;
        if read > 0 {
            self.store.commit(&self.lease, &self.instance, &plan.commit).await.unwrap();
        }
        (read, plan)
    }

    /// Projects whatever is in the journal.
    pub async fn drain(&self) -> String {
        let mut all = String::new();
        loop {
            let (read, plan) = self.step(1000).await;
            if read == 0 {
                return all;
            }
            all += &render(&plan.records, &plan.spans);
        }
    }
}

/// One line per record, then one per span, without ids and durations, which differ from run to run.
pub fn render(records: &[Record], spans: &[Span]) -> String {
    let mut text = String::new();
    for record in records {
        writeln!(text, "{}", record_line(record)).unwrap();
    }
    for span in spans {
        writeln!(text, "{}", span_line(span)).unwrap();
    }
    text
}

fn record_line(record: &Record) -> String {
    let mut line = record.event.name().trim_start_matches("workflow.run.").to_owned();
    for (key, value) in &record.attributes() {
        let shown = match (*key, value) {
            ("workflowName", Value::Text(name)) => format!(" {name}"),
            ("target", Value::Text(target)) => format!(" {target}"),
            (
                "reason" | "error.type" | "outcome" | "deliveryId" | "childWorkflowName" | "rootWorkflowName"
                | "fromStatus" | "toStatus",
                Value::Text(text),
            ) => format!(" {key}={text}"),
            ("reconciled", _) => " reconciled".to_owned(),
            _ => continue,
        };
        line += &shown;
    }
    line
}

fn span_line(span: &Span) -> String {
    let events: Vec<_> =
        span.events.iter().map(|event| event.event.name().trim_start_matches("workflow.run.")).collect();
    let mut line = format!("span {:?} [{}]", span.name(), events.join(" "));
    if span.parent().is_some() {
        line += " child";
    }
    if span.link.is_some() {
        line += " linked";
    }
    if let Some(error) = span.error() {
        write!(line, " error={error}").unwrap();
    }
    line
}
