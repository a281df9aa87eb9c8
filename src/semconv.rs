//! The catalogue: every event and field that runspan emits, by name, level and meaning, and which event carries what.
//!
//! The one source of the contract: the schema of the event lines is generated from it; projection, docs, dashboards
//! and tests are checked against it.

mod catalogue;
pub mod metric;
mod schema;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::catalogue::{Carried, Field, FieldKind, Presence, Set};
pub use self::schema::json_schema;
use crate::run::Outcome;

macro_rules! events {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal;)*) => {
        /// An event of the `workflow.run.*` family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        // Stored in open runs and series: for a new value bump SCHEMA_VERSION.
        pub enum Event {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Event {
            /// The whole family, in the order of a run's life.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The event's name on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// When it is emitted.
            pub const fn when(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),*).trim_ascii_start(),)*
                }
            }
        }
    };
}

events! {
    /// A row is inserted as queued or as running, or goes back to queued.
    Queued = "workflow.run.queued";
    /// A queued run starts to run, or a row is inserted as running.
    Running = "workflow.run.running";
    /// A child is inserted under this run, which stays running.
    HandedOff = "workflow.run.handed_off";
    /// The run ended successfully.
    Succeeded = "workflow.run.succeeded";
    /// The run ended cleanly, but work remains.
    Incomplete = "workflow.run.incomplete";
    /// The run failed.
    Failed = "workflow.run.failed";
    /// The run was cancelled.
    Cancelled = "workflow.run.cancelled";
    /// The run failed while it was queued, because it could not be enqueued; `workflow.run.failed` follows.
    EnqueueFailed = "workflow.run.enqueue_failed";
    /// A dispatch was refused before a row existed.
    DispatchRefused = "workflow.run.dispatch_refused";
    /// The run ended, with any outcome: the rollup that follows each end event, at that event's level.
    Completed = "workflow.run.completed";
    /// The row of a run in flight was deleted, which ends the run.
    Deleted = "workflow.run.deleted";
    /// The row changed after the run had ended: the first outcome is final.
    Conflict = "workflow.run.conflict";
}
impl Event {
    /// The level of this event, where it has them with this outcome and `error.type`.
    pub fn level(self, outcome: Option<Outcome>, error_type: Option<ErrorType>) -> Level {
        match self {
            Self::Queued
            | Self::Running
            | Self::HandedOff
            | Self::Succeeded
            | Self::Cancelled
            | Self::DispatchRefused => Level::Info,
            Self::Incomplete | Self::Deleted | Self::Conflict => Level::Warn,
            Self::EnqueueFailed => Level::Error,
            Self::Failed if error_type == Some(ErrorType::Uncaught) => Level::Error,
            Self::Failed => Level::Warn,
            // The rollup has the level of the ending event.
            Self::Completed => outcome
                .map_or(Level::Info, |outcome| Self::of_outcome(outcome).level(Some(outcome), error_type)),
        }
    }

    /// Whether it ends a run.
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::Succeeded
                | Self::Incomplete
                | Self::Failed
                | Self::Cancelled
                | Self::EnqueueFailed
                | Self::Deleted
        )
    }

    /// The event that ends a run with this outcome.
    pub const fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Failed => Self::Failed,
            Outcome::Incomplete => Self::Incomplete,
            Outcome::Cancelled => Self::Cancelled,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to do.
    Info,
    /// Someone may want to look.
    Warn,
    /// Something is broken.
    Error,
}

impl Level {
    /// All three, from the least severe.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warn, Self::Error];

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
// Stored in open runs and series: for a new value bump SCHEMA_VERSION.
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
    /// All, those of failures first.
    pub const ALL: [Self; 9] = [
        Self::Uncaught,
        Self::EnqueueFailed,
        Self::OwnerLost,
        Self::Timeout,
        Self::Handler,
        Self::Inflight,
        Self::ContextMismatch,
        Self::MissingPriorOutput,
        Self::Other,
    ];

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
    use super::catalogue::{Field, FieldKind};

    macro_rules! fields {
        ($($(#[doc = $doc:literal])* $name:ident = $key:literal: $kind:expr;)*) => {
            $($(#[doc = $doc])* pub const $name: &str = $key;)*

            /// Every field.
            pub const ALL: &[Field] = &[
                $(Field { name: $key, kind: $kind, meaning: concat!($($doc),*).trim_ascii_start() }),*
            ];
        };
    }

    fields! {
        /// The event's time, by the database's clock (OTLP records carry it in a separate field).
        TIMESTAMP = "timestamp": FieldKind::Time;
        /// Severity (on OTLP records the severity number: 9, 13, 17).
        LEVEL = "level": FieldKind::Level;
        /// The event's name; on OTLP records also `event_name`.
        EVENT = "event": FieldKind::Event;
        /// The run's id.
        RUN_ID = "runId": FieldKind::Uuid;
        /// The workflow's name.
        WORKFLOW_NAME = "workflowName": FieldKind::Text;
        /// The target, `acme/widgets#42`.
        TARGET = "target": FieldKind::Text;
        /// `issue` or `pr`, or another value of the table.
        TARGET_TYPE = "targetType": FieldKind::Text;
        /// The repository's owner.
        TARGET_OWNER = "targetOwner": FieldKind::Text;
        /// The repository's name.
        TARGET_REPO = "targetRepo": FieldKind::Text;
        /// The issue's or pull request's number.
        TARGET_NUMBER = "targetNumber": FieldKind::Integer;
        /// The webhook delivery that caused the run; absent for runs that the system created itself.
        DELIVERY_ID = "deliveryId": FieldKind::Text;
        /// The parent run.
        PARENT_RUN_ID = "parentRunId": FieldKind::Uuid;
        /// The run at the top of the tree (the run itself if it has no parent).
        ROOT_RUN_ID = "rootRunId": FieldKind::Uuid;
        /// The root run's workflow.
        ROOT_WORKFLOW_NAME = "rootWorkflowName": FieldKind::Text;
        /// On a child: the webhook delivery that caused the root run.
        ROOT_DELIVERY_ID = "rootDeliveryId": FieldKind::Text;
        /// From queued to the end, in milliseconds.
        DURATION_MS = "durationMs": FieldKind::Integer;
        /// The first wait, in milliseconds.
        QUEUE_WAIT_MS = "queueWaitMs": FieldKind::Integer;
        /// From the first running to the end, in milliseconds; absent if it never ran.
        EXECUTION_MS = "executionMs": FieldKind::Integer;
        /// How the run ended.
        OUTCOME = "outcome": FieldKind::Outcome;
        /// The class of the failure or refusal, with low cardinality: the same on span, record and metric.
        ERROR_TYPE = "error.type": FieldKind::ErrorType;
        /// Why it failed, was refused, or is incomplete: redacted, at most 1 KiB.
        REASON = "reason": FieldKind::Text;
        /// The run in flight that a refused dispatch collided with.
        INFLIGHT_RUN_ID = "inflightRunId": FieldKind::Uuid;
        /// The child's id.
        CHILD_RUN_ID = "childRunId": FieldKind::Uuid;
        /// The child's workflow.
        CHILD_WORKFLOW_NAME = "childWorkflowName": FieldKind::Text;
        /// On a conflict: the previous status of the row.
        FROM_STATUS = "fromStatus": FieldKind::Status;
        /// On a conflict: the new status of the row (absent if it was deleted).
        TO_STATUS = "toStatus": FieldKind::Status;
        /// `true` if the journal missed the transition and reconciliation recovered it from the table.
        RECONCILED = "reconciled": FieldKind::Boolean;
        /// The trace id, on JSON lines (OTLP records carry it in a separate field).
        TRACE_ID = "trace_id": FieldKind::Hex(32);
        /// The span id, on JSON lines.
        SPAN_ID = "span_id": FieldKind::Hex(16);
        /// One readable line with event and run (on OTLP records the body).
        MESSAGE = "message": FieldKind::Text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels() {
        let table: String = Event::ALL
            .iter()
            .map(|event| format!("{:<29} {}\n", event.name(), event.level(None, None).as_str()))
            .collect();
        insta::assert_snapshot!(table, @r"
        workflow.run.queued           info
        workflow.run.running          info
        workflow.run.handed_off       info
        workflow.run.succeeded        info
        workflow.run.incomplete       warn
        workflow.run.failed           warn
        workflow.run.cancelled        info
        workflow.run.enqueue_failed   error
        workflow.run.dispatch_refused info
        workflow.run.completed        info
        workflow.run.deleted          warn
        workflow.run.conflict         warn
        ");
        assert_eq!(Event::Failed.level(None, Some(ErrorType::Uncaught)), Level::Error);
    }
}
