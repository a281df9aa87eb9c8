//! The projector's step by hand, and what it makes rendered as lines.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use runspan::journal::{Change, Entry};
use runspan::projection::{Projected, Record, Settings, Span, Value, project};
use runspan::run::RunId;
use runspan::store::{Batch, Commit, Lease, Store};

/// An inline snapshot that is the same on every database.
macro_rules! assert_told {
    ($told:expr, @$expected:literal) => {{
        let told = $told;
        insta::allow_duplicates! { insta::assert_snapshot!(told, @$expected); }
    }};
}

pub(crate) const TERM: Duration = Duration::from_mins(1);

/// A relay that holds the lease.
pub(crate) struct Relay {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lease: Lease,
    pub(crate) instance: String,
}

impl Relay {
    pub(crate) async fn new(store: Arc<dyn Store>) -> Self {
        store.check().await.unwrap();
        let seen = store.lease().await.unwrap();
        let lease = store.take_lease(&seen, "test", TERM).await.unwrap().unwrap();
        let instance = store.instance().await.unwrap();
        Self { store, lease, instance }
    }

    pub(crate) async fn read(&self, limit: usize) -> Batch {
        let position = self.store.position(&self.instance).await.unwrap();
        self.store.read(position, limit).await.unwrap()
    }

    /// What a batch comes to, and what has to be committed for it.
    pub(crate) async fn project(&self, batch: Batch) -> (Projected, Commit) {
        let mut commit = Commit { position: batch.position, ..Commit::default() };
        let mut entries = Vec::new();
        for (seq, entry) in batch.entries {
            commit.consumed.push(seq);
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => commit.set_aside.push((seq, error.to_string())),
            }
        }
        let open = self.store.open_runs(&concerned(&entries)).await.unwrap();
        let projected = project(open, entries, &Settings::default());
        commit.opened.clone_from(&projected.opened);
        commit.closed.clone_from(&projected.closed);
        commit.totals.clone_from(&projected.totals);
        (projected, commit)
    }

    /// Projects at most `limit` entries; how many there were, and what they come to.
    pub(crate) async fn step(&self, limit: usize) -> (usize, Projected) {
        let batch = self.read(limit).await;
        let read = batch.entries.len();
        let (projected, commit) = self.project(batch).await;
        if read > 0 {
            self.store.commit(&self.lease, &self.instance, &commit).await.unwrap();
        }
        (read, projected)
    }

    /// Projects whatever is in the journal.
    pub(crate) async fn drain(&self) -> String {
        let mut all = String::new();
        loop {
            let (read, projected) = self.step(1000).await;
            if read == 0 {
                return all;
            }
            all += &render(&projected);
        }
    }
}

fn concerned(entries: &[Entry]) -> Vec<RunId> {
    let mut runs = Vec::new();
    for entry in entries {
        if let Change::Transition { run, .. } = entry.change {
            runs.push(run);
        }
        runs.extend(entry.context.lineage.as_ref().map(|lineage| lineage.parent));
    }
    runs
}

/// A line a record, then a line a span. Ids and durations differ from run to run and are left out.
pub(crate) fn render(projected: &Projected) -> String {
    let mut text = String::new();
    for record in &projected.records {
        writeln!(text, "{}", record_line(record)).unwrap();
    }
    for span in &projected.spans {
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
