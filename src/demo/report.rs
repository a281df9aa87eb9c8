//! The demo's result: everything that was received, counted and compared with the table.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;

use super::forward::Forwarded;
use super::receiver::{Kind, Receiver, Record, Span};
use super::story::Told;
use runspan::run::{Outcome, RunId};
use runspan::semconv::{Event, field, metric};
use runspan::trace_context::SpanContext;

/// Everything that the demo shows. As JSON it is `runspan demo --json`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// From nothing to the last acknowledgement, in milliseconds.
    pub took_ms: i64,
    /// The numbers that have to agree.
    pub counts: Counts,
    /// The composite run.
    pub ship: Option<Ship>,
    /// The numbers of each workflow.
    pub workflows: Vec<Workflow>,
    /// What the receiver of the environment said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<Forwarded>,
    /// The database, if it outlives the demo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_in: Option<String>,
    /// Every span, by its beginning.
    pub spans: Vec<Span>,
    /// Every record, in the journal's order.
    pub records: Vec<Record>,
}

/// What SQL says, and what was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    /// Deliveries.
    pub deliveries: usize,
    /// Rows of runs that have ended.
    pub rows: usize,
    /// Runs whose row was deleted.
    pub deleted: usize,
    /// Deliveries that were refused.
    pub refused: usize,
    /// Spans of runs that were received.
    pub run_spans: usize,
    /// Spans of waits.
    pub queue_spans: usize,
    /// Spans of what handlers did.
    pub handler_spans: usize,
    /// Records.
    pub records: usize,
    /// Records that tell of a run's end.
    pub completed_records: usize,
    /// Records that tell of a refusal.
    pub refusal_records: usize,
    /// Runs that the duration histogram counted.
    pub measured_runs: usize,
}

impl Counts {
    /// Runs that have been in the table.
    pub(crate) const fn runs(&self) -> usize {
        self.rows + self.deleted
    }

    /// Whether everything that happened was received, and nothing else.
    pub(crate) const fn agree(&self) -> bool {
        self.runs() == self.run_spans
            && self.runs() == self.completed_records
            && self.runs() == self.measured_runs
            && self.refused == self.refusal_records
    }
}

/// The composite run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ship {
    /// Its id.
    pub run_id: RunId,
    /// Its trace, as the span has it.
    pub trace_id: String,
    /// Its span, as anyone can write it who knows the run's id.
    pub traceparent: String,
    /// The span that caused it.
    pub link: Option<String>,
}

/// The numbers of one workflow, from its spans and the records of refusals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workflow {
    /// Its name.
    #[serde(rename = "workflowName")]
    pub name: String,
    /// Runs.
    pub runs: usize,
    /// Runs that succeeded.
    pub succeeded: usize,
    /// Runs that failed.
    pub failed: usize,
    /// Runs that ended incomplete.
    pub incomplete: usize,
    /// Runs whose row was deleted.
    pub deleted: usize,
    /// Deliveries that were refused.
    pub refused: usize,
    /// The median duration, in milliseconds.
    pub p50_ms: Option<i64>,
    /// The 95th percentile of the durations.
    pub p95_ms: Option<i64>,
    /// The 95th percentile of the queue waits.
    pub wait_p95_ms: Option<i64>,
}

impl Report {
    pub(super) fn new(told: &Told, ended: &[RunId], receiver: &Receiver, took: Duration) -> Self {
        let own: HashSet<String> = ended.iter().chain(&told.deleted).map(ToString::to_string).collect();
        let mut spans = receiver.spans();
        // A kept database may contain runs of an earlier demo.
        spans.retain(|span| match span.kind {
            Kind::Run | Kind::Queue => span.text(field::RUN_ID).is_some_and(|run| own.contains(run)),
            Kind::Handler | Kind::Delivery => true,
        });
        let mut records = receiver.records();
        records.retain(|record| match record.text(field::RUN_ID) {
            Some(run) => own.contains(run),
            None => record.text(field::DELIVERY_ID).is_some_and(|delivery| told.refused.contains(delivery)),
        });
        // Sending is at least once, so duplicates count once.
        let of_kind = |kind| {
            let ids = spans.iter().filter(|span| span.kind == kind).map(|span| &span.id);
            ids.collect::<HashSet<_>>().len()
        };
        let of_event = |event: Event, key| {
            let of_event = records.iter().filter(|record| record.event() == event.name());
            of_event.filter_map(|record| record.text(key)).collect::<HashSet<_>>().len()
        };
        let counts = Counts {
            deliveries: told.deliveries,
            rows: ended.len(),
            deleted: told.deleted.len(),
            refused: told.refused.len(),
            run_spans: of_kind(Kind::Run),
            queue_spans: of_kind(Kind::Queue),
            handler_spans: of_kind(Kind::Handler),
            records: records.len(),
            completed_records: of_event(Event::Completed, field::RUN_ID),
            refusal_records: of_event(Event::DispatchRefused, field::DELIVERY_ID),
            measured_runs: receiver.increase(&metric::DURATION).try_into().unwrap_or(usize::MAX),
        };
        Self {
            took_ms: took.as_millis().try_into().unwrap_or(i64::MAX),
            counts,
            ship: told.composite.and_then(|run| ship(run, &spans)),
            workflows: workflows(&spans, &records),
            forwarded: None,
            kept_in: None,
            spans,
            records,
        }
    }

    /// The problem, in one line.
    pub(crate) fn problem(&self) -> Option<String> {
        if !self.counts.agree() {
            return Some(format!("the received telemetry does not match the table: {:?}", self.counts));
        }
        self.forwarded.as_ref()?.problem().map(ToOwned::to_owned)
    }
}

fn ship(run: RunId, spans: &[Span]) -> Option<Ship> {
    let id = run.to_string();
    let span =
        spans.iter().find(|span| span.kind == Kind::Run && span.text(field::RUN_ID) == Some(id.as_str()))?;
    Some(Ship {
        run_id: run,
        trace_id: span.trace_id.clone(),
        traceparent: SpanContext::of_run(run, run).to_string(),
        link: span.links.first().cloned(),
    })
}

fn workflows(spans: &[Span], records: &[Record]) -> Vec<Workflow> {
    #[derive(Default)]
    struct Seen {
        workflow: Workflow,
        took: Vec<i64>,
        waited: Vec<i64>,
    }
    let mut seen = BTreeMap::<&str, Seen>::new();
    for span in spans.iter().filter(|span| matches!(span.kind, Kind::Run | Kind::Queue)) {
        let Some(name) = span.text(field::WORKFLOW_NAME) else { continue };
        let Seen { workflow, took, waited } = seen.entry(name).or_default();
        if span.kind == Kind::Queue {
            waited.push(span.millis());
            continue;
        }
        workflow.runs += 1;
        took.push(span.millis());
        let outcome = span.text(field::OUTCOME);
        for (known, count) in [
            (Outcome::Succeeded, &mut workflow.succeeded),
            (Outcome::Failed, &mut workflow.failed),
            (Outcome::Incomplete, &mut workflow.incomplete),
            (Outcome::Deleted, &mut workflow.deleted),
        ] {
            *count += usize::from(outcome == Some(known.as_str()));
        }
    }
    for record in records.iter().filter(|record| record.event() == Event::DispatchRefused.name()) {
        let Some(name) = record.text(field::WORKFLOW_NAME) else { continue };
        seen.entry(name).or_default().workflow.refused += 1;
    }
    seen.into_iter()
        .map(|(name, Seen { workflow, mut took, mut waited })| Workflow {
            name: name.to_owned(),
            p50_ms: quantile(&mut took, 50),
            p95_ms: quantile(&mut took, 95),
            wait_p95_ms: quantile(&mut waited, 95),
            ..workflow
        })
        .collect()
}

/// The smallest value that is at least as large as this percentage of all values.
fn quantile(values: &mut [i64], percent: usize) -> Option<i64> {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut values: Vec<i64> = (1..=20).rev().collect();
        assert_eq!(quantile(&mut values, 50), Some(10));
        assert_eq!(quantile(&mut values, 95), Some(19));
        assert_eq!(quantile(&mut [7], 95), Some(7));
        assert_eq!(quantile(&mut [], 50), None);
    }

    #[test]
    fn one_span_less_than_runs_is_a_disagreement() {
        let counts = Counts {
            rows: 2,
            deleted: 1,
            refused: 1,
            run_spans: 3,
            completed_records: 3,
            refusal_records: 1,
            measured_runs: 3,
            ..Counts::default()
        };
        assert!(counts.agree());
        assert!(!Counts { run_spans: 2, ..counts }.agree());
        assert!(!Counts { completed_records: 4, ..counts }.agree());
        assert!(!Counts { refusal_records: 0, ..counts }.agree());
        assert!(!Counts { measured_runs: 6, ..counts }.agree());
    }
}
