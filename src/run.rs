//! Runs: ids, targets, statuses, and the meaning of a change of status.
//!
//! The database serializes every transition, but writers of any kind make them. So [`Transition::between`] gives a meaning
//! to each pair of states, also to those that no correct writer produces.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of a run: the primary key of its row, and the origin of its trace and span ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A new id (UUIDv7, so that a table keyed by it grows at its end).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as a UUID.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for RunId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// A moment by the database's clock, in microseconds since the Unix epoch (PostgreSQL's resolution).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The moment this long before.
    #[must_use]
    pub fn minus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Nanoseconds since the Unix epoch, as in OTLP (`fixed64`): earlier times become 0.
    pub const fn unix_nanos(self) -> u64 {
        if self.0 < 0 { 0 } else { self.0.unsigned_abs().saturating_mul(1_000) }
    }

    /// Whole milliseconds from `earlier` to this moment; never negative.
    pub const fn millis_since(self, earlier: Self) -> i64 {
        let micros = self.0.saturating_sub(earlier.0);
        if micros < 0 { 0 } else { micros / 1_000 }
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros())
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{}us", self.0),
        }
    }
}

/// The target of a run: an issue or a pull request, written `acme/widgets#42`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Issue or pull request.
    pub kind: TargetKind,
    /// The repository's owner.
    pub owner: String,
    /// The repository's name.
    pub repo: String,
    /// The issue's or pull request's number, above 0.
    pub number: i64,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.owner, self.repo, self.number)
    }
}

/// The kind of a [`Target`], as the column `target_type` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// An issue.
    Issue,
    /// A pull request.
    Pr,
}

impl TargetKind {
    /// The column's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issue => "issue",
            Self::Pr => "pr",
        }
    }
}

/// The state of a run, as the column `status` spells it. A word that is none of these is the application's own: see
/// `docs/table.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
// Stored in open runs and series: for a new value bump SCHEMA_VERSION.
pub enum Status {
    /// Waiting for an executor.
    Queued,
    /// An executor has it.
    Running,
    /// Ended successfully.
    Succeeded,
    /// Failed: `state.failedReason` holds the reason.
    Failed,
    /// Ended without an error, but with work left: `state.incompleteReason` holds the reason.
    Incomplete,
    /// Cancelled. Tables may use it; the bundled one does not. Also spelled [`Status::CANCELED`].
    Cancelled,
}

/// How many levels of parents are walked at most to find a root. A run whose parent is in flight takes that one's root, so
/// this limits only chains whose runs end before their children are inserted.
pub const MAX_ANCESTORS: i32 = 1_000;

impl Status {
    /// All of them, in the order of a run's life.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Incomplete, Self::Cancelled];

    /// Those that every table has to allow.
    pub const REQUIRED: [Self; 5] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Incomplete];

    /// The American spelling of [`Cancelled`](Self::Cancelled), which is read but never written.
    pub const CANCELED: &str = "canceled";

    /// The column's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
        }
    }

    /// The outcome of a run in this state, if it has ended.
    pub const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Queued | Self::Running => None,
            Self::Succeeded => Some(Outcome::Succeeded),
            Self::Failed => Some(Outcome::Failed),
            Self::Incomplete => Some(Outcome::Incomplete),
            Self::Cancelled => Some(Outcome::Cancelled),
        }
    }

    /// Whether the mutators may move a run from this state to `next`. Other writers may make any change;
    /// [`Transition::between`] interprets it.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Running | Self::Failed),
            Self::Running => matches!(next, Self::Succeeded | Self::Failed | Self::Incomplete),
            Self::Succeeded | Self::Failed | Self::Incomplete | Self::Cancelled => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An unknown status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0:?} (known: queued, running, succeeded, failed, incomplete, cancelled)")]
pub struct UnknownStatus(pub String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = if text == Self::CANCELED { Self::Cancelled.as_str() } else { text };
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
// Stored in open runs and series: for a new value bump SCHEMA_VERSION.
pub enum Outcome {
    /// It succeeded.
    Succeeded,
    /// It failed.
    Failed,
    /// It ended without an error, but with work left.
    Incomplete,
    /// It was cancelled.
    Cancelled,
    /// Its row was deleted while it was in flight.
    Deleted,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Succeeded, Self::Failed, Self::Incomplete, Self::Cancelled, Self::Deleted];

    /// Whether somebody ended the run from outside. Such an end shows neither how long a run takes nor whether it succeeds.
    pub const fn is_interruption(self) -> bool {
        matches!(self, Self::Cancelled | Self::Deleted)
    }

    /// The value of the attribute `outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The meaning of a row's change for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Waiting for an executor: inserted as queued, or back from running.
    Queued,
    /// Running.
    Running,
    /// Ended for the first time.
    Ended(Outcome),
    /// Changed after its end. The first end is final.
    AfterEnd,
    /// Nothing: a row inserted with a final status (a restore), or no change of the status.
    Nothing,
}

impl Transition {
    /// The meaning of a change from `before` (`None`: the row is inserted) to `after` (`None`: deleted).
    ///
    /// ```
    /// use runspan::run::{Outcome, Status, Transition};
    ///
    /// assert_eq!(Transition::between(None, Some(Status::Queued)), Transition::Queued);
    /// assert_eq!(Transition::between(Some(Status::Running), None), Transition::Ended(Outcome::Deleted));
    /// assert_eq!(Transition::between(Some(Status::Failed), Some(Status::Succeeded)), Transition::AfterEnd);
    /// assert_eq!(Transition::between(None, Some(Status::Failed)), Transition::Nothing);
    /// ```
    pub fn between(before: Option<Status>, after: Option<Status>) -> Self {
        let was_terminal = before.is_some_and(|status| status.outcome().is_some());
        match (before, after) {
            (None, None) => Self::Nothing,
            (Some(before), Some(after)) if before == after => Self::Nothing,
            (Some(_), _) if was_terminal => Self::AfterEnd,
            (Some(_), None) => Self::Ended(Outcome::Deleted),
            (_, Some(after)) => match (after.outcome(), before) {
                (Some(_), None) => Self::Nothing,
                (Some(outcome), Some(_)) => Self::Ended(outcome),
                (None, _) if after == Status::Queued => Self::Queued,
                (None, _) => Self::Running,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_states_has_a_transition() {
        let states: Vec<Option<Status>> = std::iter::once(None).chain(Status::ALL.map(Some)).collect();
        let name = |status: Option<Status>| status.map_or("-", Status::as_str);
        let mut table = String::new();
        for &before in &states {
            for &after in &states {
                let meaning = Transition::between(before, after);
                if meaning != Transition::Nothing {
                    table += &format!("{:>10} → {:<10} {meaning:?}\n", name(before), name(after));
                }
            }
        }
        insta::assert_snapshot!(table, @r"
                 - → queued     Queued
                 - → running    Running
            queued → -          Ended(Deleted)
            queued → running    Running
            queued → succeeded  Ended(Succeeded)
            queued → failed     Ended(Failed)
            queued → incomplete Ended(Incomplete)
            queued → cancelled  Ended(Cancelled)
           running → -          Ended(Deleted)
           running → queued     Queued
           running → succeeded  Ended(Succeeded)
           running → failed     Ended(Failed)
           running → incomplete Ended(Incomplete)
           running → cancelled  Ended(Cancelled)
         succeeded → -          AfterEnd
         succeeded → queued     AfterEnd
         succeeded → running    AfterEnd
         succeeded → failed     AfterEnd
         succeeded → incomplete AfterEnd
         succeeded → cancelled  AfterEnd
            failed → -          AfterEnd
            failed → queued     AfterEnd
            failed → running    AfterEnd
            failed → succeeded  AfterEnd
            failed → incomplete AfterEnd
            failed → cancelled  AfterEnd
        incomplete → -          AfterEnd
        incomplete → queued     AfterEnd
        incomplete → running    AfterEnd
        incomplete → succeeded  AfterEnd
        incomplete → failed     AfterEnd
        incomplete → cancelled  AfterEnd
         cancelled → -          AfterEnd
         cancelled → queued     AfterEnd
         cancelled → running    AfterEnd
         cancelled → succeeded  AfterEnd
         cancelled → failed     AfterEnd
         cancelled → incomplete AfterEnd
        ");
    }

    #[test]
    fn times_before_the_epoch_become_zero() {
        assert_eq!(Timestamp::from_micros(-1).unix_nanos(), 0);
        assert_eq!(Timestamp::from_micros(1_500).unix_nanos(), 1_500_000);
        assert_eq!(Timestamp::from_micros(0).millis_since(Timestamp::from_micros(5_000)), 0);
    }
}
