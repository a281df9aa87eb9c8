//! What the projection puts out: spans and records, typed.
//!
//! They share what describes their run, so a batch holds it once. Only `otlp::encode` and the JSON line turn fields
//! into attributes, see [`attributes`](super::attributes).

use std::borrow::Cow;
use std::sync::Arc;

use super::event::{Child, RecordedEvent};
use crate::journal::Context;
use crate::run::{Outcome, RunId, Status, Timestamp};
use crate::semconv::{ErrorType, Event, Level};
use crate::trace_context::{SpanContext, SpanId};

/// A finished span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The run.
    pub run: RunId,
    /// What is known of the run.
    pub context: Arc<Context>,
    /// The run itself, or its first wait.
    pub kind: SpanKind,
    /// When it began.
    pub start: Timestamp,
    /// When it ended; never before it began.
    pub end: Timestamp,
    /// Its events, oldest first.
    pub events: Vec<RecordedEvent>,
    /// How many more events there were.
    pub dropped_events: u32,
    /// The span that caused the run.
    pub link: Option<SpanContext>,
}

/// What a span stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A run.
    Run(Arc<End>),
    /// Its first wait.
    Queue,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// How it ended.
    pub outcome: Outcome,
    /// From queued to the end.
    pub duration_ms: i64,
    /// The first wait, unless the journal missed its end.
    pub queue_wait_ms: Option<i64>,
    /// From the first running to the end, if the journal has both.
    pub execution_ms: Option<i64>,
    /// Why it failed, classified.
    pub error_type: Option<ErrorType>,
    /// Why it failed or is incomplete: redacted and cut.
    pub reason: Option<String>,
}

impl Span {
    /// Its ids and flags.
    pub fn span_context(&self) -> SpanContext {
        let of_run = SpanContext::of_run(self.run, self.context.root_of(self.run));
        match self.kind {
            SpanKind::Run(_) => of_run,
            SpanKind::Queue => of_run.queue_span(),
        }
    }

    /// The span that it is a child of, in the same trace.
    pub fn parent(&self) -> Option<SpanId> {
        let parent = match (&self.kind, &self.context.lineage) {
            (SpanKind::Run(_), lineage) => lineage.as_ref()?.parent,
            (SpanKind::Queue, _) => self.run,
        };
        Some(SpanContext::of_run(parent, self.context.root_of(self.run)).span_id)
    }

    /// Its name.
    pub fn name(&self) -> Cow<'_, str> {
        let workflow = &self.context.workflow_name;
        match self.kind {
            SpanKind::Run(_) => Cow::Borrowed(workflow),
            SpanKind::Queue => Cow::Owned(format!("{workflow} queued")),
        }
    }

    /// Of a failed run: its reason, empty if it has none.
    pub fn error(&self) -> Option<&str> {
        match &self.kind {
            SpanKind::Run(end) if end.outcome == Outcome::Failed => {
                Some(end.reason.as_deref().unwrap_or_default())
            }
            SpanKind::Run(_) | SpanKind::Queue => None,
        }
    }
}

/// A log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The event.
    pub event: Event,
    /// When it happened.
    pub at: Timestamp,
    /// Whose event it is.
    pub subject: Subject,
    /// What is particular to the event.
    pub detail: Detail,
    /// Whether reconciliation found it.
    pub reconciled: bool,
}

/// Whose event a record reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A run's.
    Run {
        /// Its id.
        run: RunId,
        /// What is known of it.
        context: Arc<Context>,
    },
    /// A parent's that had ended: only its child's entry describes it.
    EndedParent {
        /// Its id.
        run: RunId,
        /// What is known of the child.
        child: Arc<Context>,
    },
    /// A dispatch's, which would have become a run.
    Dispatch(Arc<Context>),
}

/// What is particular to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: `queued`, `running`.
    None,
    /// `handed_off`.
    HandedOff(Child),
    /// The end: how and why.
    End(Arc<End>),
    /// `completed`: how, not why.
    Completed(Arc<End>),
    /// `conflict`: the change that came after the end.
    Conflict {
        /// The status that the row left.
        from: Option<Status>,
        /// The status that the row took; `None`: it was deleted.
        to: Option<Status>,
    },
    /// `dispatch_refused`.
    Refusal {
        /// Why, classified.
        error_type: ErrorType,
        /// Why: redacted and cut.
        reason: Option<String>,
        /// The run that it collided with, and that run's root.
        inflight: Option<(RunId, RunId)>,
    },
}

impl Record {
    /// Its level.
    pub fn level(&self) -> Level {
        let (outcome, error_type) = match &self.detail {
            Detail::End(end) | Detail::Completed(end) => (Some(end.outcome), end.error_type),
            _ => (None, None),
        };
        self.event.level(outcome, error_type)
    }

    /// The run; absent on a refusal.
    pub const fn run(&self) -> Option<RunId> {
        match &self.subject {
            Subject::Run { run, .. } | Subject::EndedParent { run, .. } => Some(*run),
            Subject::Dispatch(_) => None,
        }
    }

    /// The workflow. Of a parent that had ended it is known only if that parent is the root.
    pub fn workflow_name(&self) -> Option<&str> {
        match &self.subject {
            Subject::Run { context, .. } => Some(&context.workflow_name),
            Subject::EndedParent { run, child } => {
                child.root_workflow_name().filter(|_| child.root_of(*run) == *run)
            }
            Subject::Dispatch(context) => Some(&context.workflow_name),
        }
    }

    /// The run's span; on a refusal that of the run in flight.
    pub fn span_context(&self) -> Option<SpanContext> {
        let (run, root) = match (&self.subject, &self.detail) {
            (Subject::Run { run, context } | Subject::EndedParent { run, child: context }, _) => {
                (*run, context.root_of(*run))
            }
            (Subject::Dispatch(_), Detail::Refusal { inflight, .. }) => (*inflight)?,
            (Subject::Dispatch(_), _) => return None,
        };
        Some(SpanContext::of_run(run, root))
    }

    /// `error.type`.
    pub fn error_type(&self) -> Option<ErrorType> {
        match &self.detail {
            Detail::End(end) => end.error_type,
            Detail::Refusal { error_type, .. } => Some(*error_type),
            _ => None,
        }
    }
}
