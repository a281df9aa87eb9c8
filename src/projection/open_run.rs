//! What the projection remembers of a run that has not ended.

use serde::{Deserialize, Serialize};

use super::output::{Attributes, Span, SpanEvent, SpanKind};
use crate::journal::Context;
use crate::run::{RunId, Status, Timestamp};
use crate::semconv::{Event, field};
use crate::trace_context::SpanContext;

/// How many events a span carries at most (the OpenTelemetry SDK's default `OTEL_SPAN_EVENT_COUNT_LIMIT`).
pub const MAX_EVENTS: usize = 128;

/// How many events an end adds at most: `enqueue_failed` and `failed`.
const END_EVENTS: usize = 2;

/// A run in flight, as the projection remembers it between two batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRun {
    /// Workflow, target, delivery, lineage.
    pub context: Context,
    /// The state that the journal last told of.
    pub status: Status,
    /// When it was queued: the span's start.
    pub queued_at: Timestamp,
    /// Its first wait.
    pub wait: Wait,
    /// The time of its last event: none that follows may precede it.
    last: Timestamp,
    /// The span that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<SpanContext>,
    events: Vec<Happened>,
    #[serde(default)]
    dropped_events: u32,
    /// Its span is sent already, and the row came back to life: whatever follows is a conflict.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
}

/// The first wait of a run for an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Still waiting.
    Waiting,
    /// Ended when an executor began.
    Ended(Timestamp),
    /// Ended while nobody looked.
    Unknown,
}

/// An event of a run in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Happened {
    event: Event,
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    child: Option<Child>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    reconciled: bool,
}

/// The child that a run hands off to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its run.
    pub run: RunId,
    /// Its workflow.
    pub workflow_name: String,
}

impl Child {
    /// What a `handed_off` event says of the child.
    pub fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::default();
        attributes
            .set(field::CHILD_RUN_ID, self.run)
            .set(field::CHILD_WORKFLOW_NAME, self.workflow_name.as_str());
        attributes
    }
}

impl OpenRun {
    /// A run that was queued at `queued_at`, with no event yet.
    pub fn new(context: Context, queued_at: Timestamp, wait: Wait, link: Option<SpanContext>) -> Self {
        Self {
            context,
            status: Status::Queued,
            queued_at,
            wait,
            last: queued_at,
            link,
            events: Vec::new(),
            dropped_events: 0,
            over: false,
        }
    }

    /// What remains of a run that ended and whose row came back to life.
    pub fn remains(context: Context, status: Status, at: Timestamp) -> Self {
        Self { status, over: true, ..Self::new(context, at, Wait::Unknown, None) }
    }

    /// `at`, or the time of the last event if that is later; from now on the last.
    pub fn clamp(&mut self, at: Timestamp) -> Timestamp {
        self.last = self.last.max(at);
        self.last
    }

    /// Notes an event, already clamped.
    pub fn note(&mut self, event: Event, at: Timestamp, child: Option<Child>, reconciled: bool) {
        if self.events.len() == MAX_EVENTS - END_EVENTS {
            self.dropped_events += 1;
            let handed_off = self.events.iter().rposition(|known| known.event == Event::HandedOff);
            match handed_off {
                // The many children of a loop say less than the run's own states.
                _ if event == Event::HandedOff => return,
                Some(index) => self.events.remove(index),
                // A run sent back again and again: its first event stays.
                None => self.events.remove(1),
            };
        }
        self.events.push(Happened { event, at, child, reconciled });
    }

    /// The run's span, ended now with these last events; `attributes` are those of all that is said of the run.
    pub fn span(
        self,
        run: RunId,
        mut attributes: Attributes,
        own: Attributes,
        last_events: Vec<SpanEvent>,
        error: Option<String>,
    ) -> Span {
        let root = self.context.root_of(run);
        attributes.extend(own);
        let mut events: Vec<SpanEvent> = self.events.into_iter().map(SpanEvent::from).collect();
        events.extend(last_events);
        Span {
            context: SpanContext::of_run(run, root),
            parent: self.context.lineage.map(|lineage| SpanContext::of_run(lineage.parent, root).span_id),
            run,
            name: self.context.workflow_name,
            kind: SpanKind::Run,
            start: self.queued_at,
            end: self.last,
            attributes,
            events,
            dropped_events: self.dropped_events,
            link: self.link,
            error,
        }
    }

    /// The span of its first wait, which ended at `end`.
    pub fn queue_span(&self, run: RunId, mut attributes: Attributes, end: Timestamp) -> Span {
        let context = SpanContext::of_run(run, self.context.root_of(run));
        attributes.set(field::QUEUE_WAIT_MS, end.millis_since(self.queued_at));
        Span {
            context: context.queue_span(),
            parent: Some(context.span_id),
            run,
            name: format!("{} queued", self.context.workflow_name),
            kind: SpanKind::Queue,
            start: self.queued_at,
            end,
            attributes,
            events: Vec::new(),
            dropped_events: 0,
            link: None,
            error: None,
        }
    }
}

impl From<Happened> for SpanEvent {
    fn from(happened: Happened) -> Self {
        let mut attributes = happened.child.map(|child| child.attributes()).unwrap_or_default();
        attributes.set_if(field::RECONCILED, happened.reconciled.then_some(true));
        Self { event: happened.event, at: happened.at, attributes }
    }
}
