//! What a field is, and which event carries which.

use std::fmt;

use super::Presence::{Always, If};
use super::{ErrorType, Event, Level, field};
use crate::run::{Outcome, Status};

/// A field of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub kind: FieldKind,
    /// Its description.
    pub meaning: &'static str,
}

/// What the values of a field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Any text.
    Text,
    /// A whole number.
    Integer,
    /// Yes or no.
    Boolean,
    /// A UUID, hyphenated.
    Uuid,
    /// So many lower-case hexadecimal digits.
    Hex(usize),
    /// A moment, in RFC 3339.
    Time,
    /// The name of an [`Event`].
    Event,
    /// A [`Level`].
    Level,
    /// An [`Outcome`].
    Outcome,
    /// A [`Status`].
    Status,
    /// An [`ErrorType`].
    ErrorType,
}

impl FieldKind {
    /// All values, where they can be counted.
    pub fn values(self) -> Option<Vec<&'static str>> {
        match self {
            Self::Text | Self::Integer | Self::Boolean | Self::Uuid | Self::Hex(_) | Self::Time => None,
            Self::Event => Some(Event::ALL.iter().map(|event| event.name()).collect()),
            Self::Level => Some(Level::ALL.map(Level::as_str).into()),
            Self::Outcome => Some(Outcome::ALL.map(Outcome::as_str).into()),
            Self::Status => Some(Status::ALL.map(Status::as_str).into()),
            Self::ErrorType => Some(ErrorType::ALL.map(ErrorType::as_str).into()),
        }
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("string"),
            Self::Integer => f.write_str("integer"),
            Self::Boolean => f.write_str("boolean"),
            Self::Uuid => f.write_str("UUID"),
            Self::Hex(digits) => write!(f, "{digits} hex digits"),
            Self::Time => f.write_str("RFC 3339"),
            Self::Event => f.write_str("an event below"),
            Self::Level | Self::Outcome | Self::Status | Self::ErrorType => {
                let values = self.values().unwrap_or_default();
                write!(f, "`{}`", values.join("`, `"))
            }
        }
    }
}

/// Whether an event carries a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Each time.
    Always,
    /// If this holds.
    If(&'static str),
}

/// A field, by name, and whether an event carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried(pub &'static str, pub Presence);

/// Fields that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Of every event.
    Line,
    /// What is known before a row exists.
    Dispatch,
    /// Of a run.
    Run,
    /// Of its end.
    End,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Line, Self::Dispatch, Self::Run, Self::End];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Line => "every line",
            Self::Dispatch => "a dispatch",
            Self::Run => "a run",
            Self::End => "an end",
        }
    }

    /// Its fields.
    pub const fn fields(self) -> &'static [Carried] {
        match self {
            Self::Line => &[
                Carried(field::TIMESTAMP, Always),
                Carried(field::LEVEL, Always),
                Carried(field::EVENT, Always),
                Carried(field::MESSAGE, Always),
            ],
            Self::Dispatch => &[
                Carried(field::WORKFLOW_NAME, Always),
                Carried(field::TARGET, If("owner, repository and number are known")),
                Carried(field::TARGET_TYPE, If("known")),
                Carried(field::TARGET_OWNER, If("known")),
                Carried(field::TARGET_REPO, If("known")),
                Carried(field::TARGET_NUMBER, If("known")),
                Carried(field::DELIVERY_ID, If("a delivery caused it")),
            ],
            Self::Run => &[
                Carried(field::RUN_ID, Always),
                Carried(field::PARENT_RUN_ID, If("it has a parent")),
                Carried(field::ROOT_RUN_ID, Always),
                Carried(field::ROOT_WORKFLOW_NAME, If("the root's row exists")),
                Carried(field::ROOT_DELIVERY_ID, If("it has a parent, and a delivery caused the root")),
                Carried(field::TRACE_ID, Always),
                Carried(field::SPAN_ID, Always),
                Carried(field::RECONCILED, If("the journal missed it")),
            ],
            Self::End => &[
                Carried(field::OUTCOME, Always),
                Carried(field::DURATION_MS, Always),
                Carried(field::QUEUE_WAIT_MS, If("the end of its wait was journalled")),
                Carried(field::EXECUTION_MS, If("its start was journalled")),
            ],
        }
    }
}

impl Event {
    /// The sets that it carries whole.
    pub const fn sets(self) -> &'static [Set] {
        match self {
            Self::DispatchRefused => &[Set::Line, Set::Dispatch],
            Self::Queued | Self::Running | Self::HandedOff | Self::Conflict => {
                &[Set::Line, Set::Dispatch, Set::Run]
            }
            Self::Succeeded
            | Self::Incomplete
            | Self::Failed
            | Self::Cancelled
            | Self::EnqueueFailed
            | Self::Completed
            | Self::Deleted => &Set::ALL,
        }
    }

    /// What it carries besides. One that is in a set too is there as it says here.
    pub const fn own_fields(self) -> &'static [Carried] {
        match self {
            Self::Queued
            | Self::Running
            | Self::Succeeded
            | Self::Cancelled
            | Self::Completed
            | Self::Deleted => &[],
            Self::HandedOff => &[
                Carried(field::CHILD_RUN_ID, Always),
                Carried(field::CHILD_WORKFLOW_NAME, Always),
                // A child's entry lacks the workflow of an ended parent: see `projection::Subject::EndedParent`.
                Carried(field::WORKFLOW_NAME, If("this run is in flight, or the root")),
            ],
            Self::Incomplete => &[Carried(field::REASON, If("one was given"))],
            Self::Failed => {
                &[Carried(field::ERROR_TYPE, Always), Carried(field::REASON, If("one was given"))]
            }
            Self::EnqueueFailed => &[Carried(field::ERROR_TYPE, Always), Carried(field::REASON, Always)],
            Self::DispatchRefused => &[
                Carried(field::ERROR_TYPE, Always),
                Carried(field::REASON, If("one was given")),
                Carried(field::INFLIGHT_RUN_ID, If("a run is in flight")),
                Carried(field::TRACE_ID, If("a run is in flight: that run's")),
                Carried(field::SPAN_ID, If("a run is in flight: that run's")),
            ],
            Self::Conflict => &[
                Carried(field::FROM_STATUS, Always),
                Carried(field::TO_STATUS, If("the row is still there")),
            ],
        }
    }

    /// Every field that it carries, none twice.
    pub fn fields(self) -> Vec<Carried> {
        let own = self.own_fields();
        let of_sets = self.sets().iter().flat_map(|set| set.fields());
        let others = of_sets.filter(|Carried(field, _)| own.iter().all(|Carried(named, _)| named != field));
        others.chain(own).copied().collect()
    }

    /// The levels that it can have, from the least severe.
    pub fn levels(self) -> Vec<Level> {
        let error_types = || [None].into_iter().chain(ErrorType::ALL.map(Some));
        let mut levels: Vec<Level> = Outcome::ALL
            .into_iter()
            .flat_map(|outcome| error_types().map(move |error_type| self.level(Some(outcome), error_type)))
            .collect();
        levels.sort_unstable();
        levels.dedup();
        levels
    }
}
