//! What the projection remembers of a run between two batches.
//!
//! Memory is what a run's span is made of when it ends, so a process that dies loses nothing: the store keeps each
//! [`Tracked`] as JSON, in the transaction that consumes the entries.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::event::RecordedEvent;
use super::output::{End, Span, SpanKind};
use crate::journal::Context;
use crate::run::{RunId, Status, Timestamp};
use crate::semconv::Event;
use crate::trace_context::SpanContext;

/// The most events of a span (the OpenTelemetry SDK's default `OTEL_SPAN_EVENT_COUNT_LIMIT`).
pub const MAX_EVENTS: usize = 128;

/// The most events that an end adds: `enqueue_failed` and `failed`.
const END_EVENTS: usize = 2;

/// A run that later entries may belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredRun", into = "StoredRun")]
pub enum Tracked {
    /// In flight.
    Open(OpenRun),
    /// Ended, with a row that is in flight again: whatever follows is a conflict.
    Ended(Tombstone),
}

impl Tracked {
    /// The row's status, according to the journal.
    pub const fn status(&self) -> Status {
        match self {
            Self::Open(OpenRun { status, .. }) | Self::Ended(Tombstone { status, .. }) => *status,
        }
    }
}

/// A run in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRun {
    pub(super) context: Arc<Context>,
    pub(super) status: Status,
    pub(super) queued_at: Timestamp,
    pub(super) wait: Wait,
    /// The time of the latest event: no later one may precede it.
    last: Timestamp,
    link: Option<SpanContext>,
    events: Vec<RecordedEvent>,
    dropped_events: u32,
}

/// A run that ended, and whose row is in flight again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub(super) context: Arc<Context>,
    pub(super) status: Status,
    pub(super) at: Timestamp,
}

/// The first wait of a run for an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
// Stored in open runs and series: for a new value bump SCHEMA_VERSION.
pub enum Wait {
    /// Still waiting.
    Waiting,
    /// Ended when an executor began.
    Ended(Timestamp),
    /// Ended at an unknown time: the journal missed it.
    Unknown,
}

/// Stored: bump `SCHEMA_VERSION` with any change that an older relay cannot read.
#[derive(Serialize, Deserialize)]
struct StoredRun {
    context: Arc<Context>,
    status: Status,
    queued_at: Timestamp,
    wait: Wait,
    last: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<SpanContext>,
    events: Vec<RecordedEvent>,
    #[serde(default)]
    dropped_events: u32,
    #[serde(rename = "over", default, skip_serializing_if = "std::ops::Not::not")]
    has_ended: bool,
}

impl From<StoredRun> for Tracked {
    fn from(stored: StoredRun) -> Self {
        let StoredRun { context, status, queued_at, wait, last, link, events, dropped_events, has_ended } =
            stored;
        if has_ended {
            Self::Ended(Tombstone { context, status, at: queued_at })
        } else {
            Self::Open(OpenRun { context, status, queued_at, wait, last, link, events, dropped_events })
        }
    }
}

impl From<Tracked> for StoredRun {
    fn from(tracked: Tracked) -> Self {
        let (run, has_ended) = match tracked {
            Tracked::Open(run) => (run, false),
            Tracked::Ended(Tombstone { context, status, at }) => {
                (OpenRun { status, ..OpenRun::new(context, at, Wait::Unknown, None) }, true)
            }
        };
        let OpenRun { context, status, queued_at, wait, last, link, events, dropped_events } = run;
        Self { context, status, queued_at, wait, last, link, events, dropped_events, has_ended }
    }
}

impl OpenRun {
    /// A run that was queued at `queued_at`, without events.
    pub(super) const fn new(
        context: Arc<Context>,
        queued_at: Timestamp,
        wait: Wait,
        link: Option<SpanContext>,
    ) -> Self {
        Self {
            context,
            status: Status::Queued,
            queued_at,
            wait,
            last: queued_at,
            link,
            events: Vec::new(),
            dropped_events: 0,
        }
    }

    /// `at`, or the time of the latest event if that is later; from now on the latest.
    pub(super) fn clamp(&mut self, at: Timestamp) -> Timestamp {
        self.last = self.last.max(at);
        self.last
    }

    /// Adds an event whose time is clamped.
    pub(super) fn add(&mut self, event: RecordedEvent) {
        if self.events.len() == MAX_EVENTS - END_EVENTS {
            self.dropped_events += 1;
            let handed_off = self.events.iter().rposition(|known| known.event == Event::HandedOff);
            match handed_off {
                // A loop's many children matter less than the run's own states.
                _ if event.event == Event::HandedOff => return,
                Some(index) => self.events.remove(index),
                // A run sent back again and again: its first event stays.
                None => self.events.remove(1),
            };
        }
        self.events.push(event);
    }

    /// The run's span, which ends with `last_events`.
    pub(super) fn into_span(
        self,
        run: RunId,
        end: Arc<End>,
        last_events: impl IntoIterator<Item = RecordedEvent>,
    ) -> Span {
        let mut events = self.events;
        events.extend(last_events);
        Span {
            run,
            context: self.context,
            kind: SpanKind::Run(end),
            start: self.queued_at,
            end: self.last,
            events,
            dropped_events: self.dropped_events,
            link: self.link,
        }
    }

    /// The span of its first wait, which ended at `end`.
    pub(super) fn queue_span(&self, run: RunId, end: Timestamp) -> Span {
        Span {
            run,
            context: Arc::clone(&self.context),
            kind: SpanKind::Queue,
            start: self.queued_at,
            end,
            events: Vec::new(),
            dropped_events: 0,
            link: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_runs_keep_their_form() {
        let context = r#"{"workflow_name":"plan","target_number":42}"#;
        let link =
            r#"{"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","flags":1}"#;
        let events = r#"[{"event":"queued","at":5,"reconciled":true},{"event":"handed_off","at":7,"child":{"run":"01900000-0000-7000-8000-000000000002","workflow_name":"review"}}]"#;
        for (stored, is_open) in [
            (
                format!(
                    r#"{{"context":{context},"status":"running","queued_at":5,"wait":{{"ended":6}},"last":7,"link":{link},"events":{events},"dropped_events":3}}"#
                ),
                true,
            ),
            (
                format!(
                    r#"{{"context":{context},"status":"queued","queued_at":9,"wait":"unknown","last":9,"events":[],"dropped_events":0,"over":true}}"#
                ),
                false,
            ),
        ] {
            let tracked: Tracked = serde_json::from_str(&stored).unwrap();
            assert_eq!(matches!(tracked, Tracked::Open(_)), is_open);
            assert_eq!(serde_json::to_string(&tracked).unwrap(), stored);
        }
    }
}
