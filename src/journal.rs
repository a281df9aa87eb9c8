//! What the triggers write: one entry per transition, in the writer's own transaction.
//!
//! A [`Row`] is a row of the journal as a store reads it; an [`Entry`] is what it means. Every entry carries the whole
//! context of its run, so that a run whose beginning the journal missed still becomes a complete span.

mod row;

use serde::{Deserialize, Serialize};

pub use self::row::Row;
pub(crate) use self::row::{Source, journal_columns};

use crate::run::{RunId, Status, Timestamp};
use crate::trace_context::SpanContext;

/// Why a row cannot be parsed. It is set aside with this error, and the rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A column that the entry needs is empty.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A column does not hold what it should (SQLite types values, not columns).
    #[error("{column} is not a UUID: {value:?}")]
    NotUuid {
        /// The column.
        column: &'static str,
        /// What it holds.
        value: String,
    },
}

/// One journalled event.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it happened.
    pub at: Timestamp,
    /// Written by reconciliation, not by a trigger.
    pub reconciled: bool,
    /// The run, or for a refusal what would have become one.
    pub context: Context,
    /// Its reason, not yet redacted.
    pub reason: Option<String>,
    /// What happened.
    pub change: Change,
}

/// What an entry records.
#[derive(Clone, Debug)]
pub enum Change {
    /// A run changed its state.
    Transition {
        /// The run.
        run: RunId,
        /// The state before.
        from: Before,
        /// The state after.
        to: After,
        /// When the run's row was created, by whatever clock the application used; `None` where that is not a time.
        created_at: Option<Timestamp>,
        /// The span that caused the run.
        link: Option<SpanContext>,
    },
    /// A dispatch was refused before a row existed.
    Refusal {
        /// The run it collided with, and that run's root.
        inflight: Option<(RunId, RunId)>,
    },
}

/// The state before a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was no row.
    Absent,
    /// One that runspan knows.
    Known(Status),
    /// A status of the application's own.
    Unknown,
}

/// The state after a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// The row is deleted.
    Deleted,
    /// One that runspan knows.
    Known(Status),
    /// A status of the application's own.
    Unknown(String),
}

/// What is known of a run beside its status: the attributes of every span and record of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The workflow's name.
    pub workflow_name: String,
    /// `issue` or `pr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_type: Option<String>,
    /// The repository's owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_owner: Option<String>,
    /// The repository's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_repo: Option<String>,
    /// The or pull request's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_number: Option<i64>,
    /// The delivery that caused the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<String>,
    /// The parent and the root, for a run that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
}

impl Context {
    /// `acme/widgets#42`, where all its parts are known.
    pub fn target(&self) -> Option<String> {
        let (owner, repo, number) =
            (self.target_owner.as_ref()?, self.target_repo.as_ref()?, self.target_number?);
        Some(format!("{owner}/{repo}#{number}"))
    }

    /// The root of `run`, whose context this is: itself if it has no parent.
    pub fn root_of(&self, run: RunId) -> RunId {
        self.lineage.as_ref().map_or(run, |lineage| lineage.root)
    }

    /// The lineage of a child of `run`, whose context this is.
    pub fn lineage_of_child(&self, run: RunId) -> Lineage {
        let (root_workflow_name, root_delivery_id) = match &self.lineage {
            Some(lineage) => (lineage.root_workflow_name.clone(), lineage.root_delivery_id.clone()),
            None => (Some(self.workflow_name.clone()), self.delivery_id.clone()),
        };
        Lineage { parent: run, root: self.root_of(run), root_workflow_name, root_delivery_id }
    }

    /// The delivery that caused the root of a child.
    pub fn root_delivery_id(&self) -> Option<&str> {
        self.lineage.as_ref()?.root_delivery_id.as_deref()
    }

    /// The root's workflow.
    pub fn root_workflow_name(&self) -> Option<&str> {
        match &self.lineage {
            Some(lineage) => lineage.root_workflow_name.as_deref(),
            None => Some(&self.workflow_name),
        }
    }
}

/// Where a child run stands in its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The run that spawned it.
    pub parent: RunId,
    /// The run at the top.
    pub root: RunId,
    /// That run's workflow, where its row was still there.
    pub root_workflow_name: Option<String>,
    /// The delivery that caused that run, where its row was still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_delivery_id: Option<String>,
}

impl TryFrom<Row> for Entry {
    type Error = Unreadable;

    fn try_from(row: Row) -> Result<Self, Unreadable> {
        let change = match row.run_id {
            None if row.from_status.is_some() || row.to_status.is_some() => {
                return Err(Unreadable::Missing("run_id"));
            }
            None => Change::Refusal {
                inflight: row.inflight_run_id.map(|run| (run.into(), row.root_run_id.unwrap_or(run).into())),
            },
            Some(run) => Change::Transition {
                run: run.into(),
                from: row
                    .from_status
                    .as_deref()
                    .map_or(Before::Absent, |status| status.parse().map_or(Before::Unknown, Before::Known)),
                to: row.to_status.map_or(After::Deleted, |status| {
                    status.parse().map_or_else(|_| After::Unknown(status), After::Known)
                }),
                created_at: row.created_at.map(Timestamp::from_micros),
                link: row.traceparent.and_then(|header| header.parse().ok()),
            },
        };
        let lineage = match (&change, row.parent_run_id) {
            // A run cannot be its own parent, nor a span its own.
            (Change::Transition { run, .. }, Some(parent)) if parent != run.uuid() => Some(Lineage {
                parent: parent.into(),
                root: row.root_run_id.unwrap_or(parent).into(),
                root_workflow_name: row.root_workflow_name,
                root_delivery_id: row.root_delivery_id,
            }),
            _ => None,
        };
        Ok(Self {
            at: Timestamp::from_micros(row.at),
            reconciled: row.reconciled,
            context: Context {
                workflow_name: row.workflow_name.ok_or(Unreadable::Missing("workflow_name"))?,
                target_type: row.target_type,
                target_owner: row.target_owner,
                target_repo: row.target_repo,
                target_number: row.target_number,
                delivery_id: row.delivery_id,
                lineage,
            },
            reason: row.reason,
            change,
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn row() -> Row {
        Row {
            run_id: Some(Uuid::from_u128(7)),
            workflow_name: Some("triage".into()),
            from_status: Some("queued".into()),
            to_status: Some("running".into()),
            ..Row::default()
        }
    }

    #[test]
    fn a_row_that_cannot_be_parsed_names_the_cause() {
        let error = |row: Row| Entry::try_from(row).unwrap_err().to_string();
        assert_eq!(error(Row { run_id: None, ..row() }), "run_id is missing");
        assert_eq!(error(Row { workflow_name: None, ..row() }), "workflow_name is missing");
    }

    #[test]
    fn a_status_of_the_applications_own_is_no_error() {
        let change = |from: &str, to: &str| {
            let row = Row { from_status: Some(from.into()), to_status: Some(to.into()), ..row() };
            match Entry::try_from(row).unwrap().change {
                Change::Transition { from, to, .. } => (from, to),
                Change::Refusal { .. } => panic!("not a refusal"),
            }
        };
        assert_eq!(change("paused", "succeeded"), (Before::Unknown, After::Known(Status::Succeeded)));
        assert_eq!(
            change("running", "paused"),
            (Before::Known(Status::Running), After::Unknown("paused".to_owned()))
        );
        assert_eq!(change("paused", "canceled"), (Before::Unknown, After::Known(Status::Cancelled)));
    }

    #[test]
    fn a_run_is_not_its_own_parent() {
        let entry = Entry::try_from(Row { parent_run_id: Some(Uuid::from_u128(7)), ..row() }).unwrap();
        assert_eq!(entry.context.lineage, None);
    }

    #[test]
    fn an_invalid_traceparent_is_no_link() {
        let entry = Entry::try_from(Row { traceparent: Some("00-nonsense".into()), ..row() });
        assert!(matches!(entry.unwrap().change, Change::Transition { link: None, .. }));
    }
}
