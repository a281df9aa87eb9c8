//! The catalogue: every event and field that runspan emits, by name, level and meaning.
//!
//! The one source of the contract: projection, docs, dashboards and tests are checked against it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::run::Outcome;

/// An event of the `workflow.run.*` family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A row is inserted as queued, or goes back to queued.
    Queued,
    /// An executor has begun.
    Running,
    /// A child is inserted under this run, which stays running.
    HandedOff,
    /// The run ended well.
    Succeeded,
    /// The run ran cleanly, but work remains.
    Incomplete,
    /// The run failed.
    Failed,
    /// The run failed while queued because publishing it failed; [`Event::Failed`] follows.
    EnqueueFailed,
    /// A dispatch was refused before a row existed.
    DispatchRefused,
    /// The rollup after any end.
    Completed,
    /// The row of a run in flight was deleted.
    Deleted,
    /// A transition after the end: the first end stands.
    Conflict,
}

impl Event {
    /// The whole family, in the order of a run's life.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Running,
        Self::HandedOff,
        Self::Succeeded,
        Self::Incomplete,
        Self::Failed,
        Self::EnqueueFailed,
        Self::DispatchRefused,
        Self::Completed,
        Self::Deleted,
        Self::Conflict,
    ];

    /// The event's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "workflow.run.queued",
            Self::Running => "workflow.run.running",
            Self::HandedOff => "workflow.run.handed_off",
            Self::Succeeded => "workflow.run.succeeded",
            Self::Incomplete => "workflow.run.incomplete",
            Self::Failed => "workflow.run.failed",
            Self::EnqueueFailed => "workflow.run.enqueue_failed",
            Self::DispatchRefused => "workflow.run.dispatch_refused",
            Self::Completed => "workflow.run.completed",
            Self::Deleted => "workflow.run.deleted",
            Self::Conflict => "workflow.run.conflict",
        }
    }

    /// The level of this event with this `error.type`, if it has one.
    pub fn level(self, error_type: Option<ErrorType>) -> Level {
        match self {
            Self::Queued | Self::Running | Self::HandedOff | Self::Succeeded | Self::DispatchRefused => {
                Level::Info
            }
            Self::Incomplete | Self::Deleted | Self::Conflict => Level::Warn,
            Self::EnqueueFailed => Level::Error,
            Self::Failed if error_type == Some(ErrorType::Uncaught) => Level::Error,
            Self::Failed => Level::Warn,
            // The rollup has its outcome's level: the projection hands on the ending event's.
            Self::Completed => Level::Info,
        }
    }

    /// The event that tells of this end.
    pub const fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Failed => Self::Failed,
            Outcome::Incomplete => Self::Incomplete,
            Outcome::Deleted => Self::Deleted,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A record's level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing to do.
    Info,
    /// Someone may want to look.
    Warn,
    /// Something is broken.
    Error,
}

impl Level {
    /// OTLP's severity number (logs data model, "Displaying Severity").
    pub const fn severity_number(self) -> i32 {
        match self {
            Self::Info => 9,
            Self::Warn => 13,
            Self::Error => 17,
        }
    }

    /// The level in a JSON line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Why a run failed or a dispatch was refused: low in cardinality, the same on span, record and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// A panic or an error that escaped the handler: the reason begins `uncaught:`.
    Uncaught,
    /// Publishing failed: the reason begins `enqueue failed:`.
    EnqueueFailed,
    /// The executor is gone: the reason begins `owner lost:`.
    OwnerLost,
    /// The run took too long: the reason begins `timeout:`.
    Timeout,
    /// The handler said so: any other reason.
    Handler,
    /// Refused: a run of this workflow on this target is in flight.
    Inflight,
    /// Refused: the label does not fit the target's kind.
    ContextMismatch,
    /// Refused: the workflow that has to succeed first has not.
    MissingPriorOutput,
    /// No reason, or a refusal of another kind.
    Other,
}

impl ErrorType {
    /// The attribute's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uncaught => "uncaught",
            Self::EnqueueFailed => "enqueue_failed",
            Self::OwnerLost => "owner_lost",
            Self::Timeout => "timeout",
            Self::Handler => "handler",
            Self::Inflight => "workflow-dispatch-inflight",
            Self::ContextMismatch => "context-mismatch",
            Self::MissingPriorOutput => "missing-prior-output",
            Self::Other => "_OTHER",
        }
    }

    /// From the reason of a failed run.
    ///
    /// ```
    /// use runspan::semconv::ErrorType;
    ///
    /// assert_eq!(ErrorType::of_failure(Some("owner lost: executor-3")), ErrorType::OwnerLost);
    /// assert_eq!(ErrorType::of_failure(Some("no such branch")), ErrorType::Handler);
    /// assert_eq!(ErrorType::of_failure(None), ErrorType::Other);
    /// ```
    pub fn of_failure(reason: Option<&str>) -> Self {
        let Some(reason) = reason.filter(|reason| !reason.is_empty()) else { return Self::Other };
        [
            ("uncaught:", Self::Uncaught),
            ("enqueue failed:", Self::EnqueueFailed),
            ("owner lost:", Self::OwnerLost),
            ("timeout:", Self::Timeout),
        ]
        .into_iter()
        .find(|(prefix, _)| reason.starts_with(prefix))
        .map_or(Self::Handler, |(_, error_type)| error_type)
    }

    /// From the reason of a refusal.
    pub fn of_refusal(reason: Option<&str>) -> Self {
        [Self::Inflight, Self::ContextMismatch, Self::MissingPriorOutput]
            .into_iter()
            .find(|known| reason == Some(known.as_str()))
            .unwrap_or(Self::Other)
    }
}

/// The names of fields: attributes of spans, span events and records, and keys of JSON lines.
pub mod field {
    macro_rules! fields {
        ($($(#[doc = $doc:literal])* $name:ident = $key:literal;)*) => {
            $($(#[doc = $doc])* pub const $name: &str = $key;)*

            /// Every field.
            pub const ALL: &[&str] = &[$($key),*];
        };
    }

    fields! {
        /// The event's name; on OTLP records also `event_name`.
        EVENT = "event";
        /// The run's id.
        RUN_ID = "runId";
        /// The workflow's name.
        WORKFLOW_NAME = "workflowName";
        /// The target, `acme/widgets#42`.
        TARGET = "target";
        /// `issue` or `pr`.
        TARGET_TYPE = "targetType";
        /// The repository's owner.
        TARGET_OWNER = "targetOwner";
        /// The repository's name.
        TARGET_REPO = "targetRepo";
        /// The issue's or pull request's number.
        TARGET_NUMBER = "targetNumber";
        /// The webhook delivery that caused the run; absent for runs that the system itself spawned.
        DELIVERY_ID = "deliveryId";
        /// The run that spawned this one.
        PARENT_RUN_ID = "parentRunId";
        /// The run at the top of the tree (itself without a parent).
        ROOT_RUN_ID = "rootRunId";
        /// That run's workflow.
        ROOT_WORKFLOW_NAME = "rootWorkflowName";
        /// The trace's id, on JSON lines (OTLP records carry it in their own field).
        TRACE_ID = "trace_id";
        /// The span's id, on JSON lines.
        SPAN_ID = "span_id";
        /// Queued to end, in milliseconds.
        DURATION_MS = "durationMs";
        /// The first wait, in milliseconds.
        QUEUE_WAIT_MS = "queueWaitMs";
        /// First running to end, in milliseconds; absent if it never ran.
        EXECUTION_MS = "executionMs";
        /// How the run ended: `succeeded`, `failed`, `incomplete`, `deleted`.
        OUTCOME = "outcome";
        /// Why it failed or was refused, in few words: see [`super::ErrorType`].
        ERROR_TYPE = "error.type";
        /// Why it failed, was refused, or is incomplete: redacted, at most 1 KiB.
        REASON = "reason";
        /// The run in flight that a refused dispatch collided with.
        INFLIGHT_RUN_ID = "inflightRunId";
        /// The child handed off to.
        CHILD_RUN_ID = "childRunId";
        /// That child's workflow.
        CHILD_WORKFLOW_NAME = "childWorkflowName";
        /// On a conflict: the state that the row left.
        FROM_STATUS = "fromStatus";
        /// On a conflict: the state that the row took (absent: it was deleted).
        TO_STATUS = "toStatus";
        /// `true` where the journal missed the transition and the table told of it later.
        RECONCILED = "reconciled";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels() {
        let table: String = Event::ALL
            .iter()
            .map(|event| format!("{:<29} {}\n", event.name(), event.level(None).as_str()))
            .collect();
        insta::assert_snapshot!(table, @r"
        workflow.run.queued           info
        workflow.run.running          info
        workflow.run.handed_off       info
        workflow.run.succeeded        info
        workflow.run.incomplete       warn
        workflow.run.failed           warn
        workflow.run.enqueue_failed   error
        workflow.run.dispatch_refused info
        workflow.run.completed        info
        workflow.run.deleted          warn
        workflow.run.conflict         warn
        ");
        assert_eq!(Event::Failed.level(Some(ErrorType::Uncaught)), Level::Error);
    }
}
