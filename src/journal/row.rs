//! The columns of the journal, declared once.
//!
//! A trigger of each database writes them, each store reads them, and reconciliation writes some of them anew. All of that
//! SQL, and the [`Row`] that it is read into, is made from [`journal_columns`]: a column is one line there.

use uuid::Uuid;

/// Hands the declaration of the journal's columns to the macro `$apply`: name, kind and source of each, in the order in
/// which they are stored. The kinds are those of `row_type`.
macro_rules! journal_columns {
    ($apply:ident) => {
        $apply! {
            /// When the transition happened, in microseconds since the epoch.
            at: instant = Source::Now;
            /// When the run's row was created, in microseconds since the epoch.
            created_at: time = Source::Row("created_at");
            /// The run; absent on a refusal.
            run_id: key = Source::Row("id");
            /// The workflow's name.
            workflow_name: text = Source::Context("workflow_name");
            /// The status before; absent on an insert.
            from_status: text = Source::StatusBefore;
            /// The status after; absent on a delete.
            to_status: text = Source::StatusAfter;
            /// `issue` or `pr`.
            target_type: text = Source::Context("target_type");
            /// The repository's owner.
            target_owner: text = Source::Context("target_owner");
            /// The repository's name.
            target_repo: text = Source::Context("target_repo");
            /// The or pull request's number.
            target_number: number = Source::Context("target_number");
            /// The delivery that caused the run.
            delivery_id: text = Source::Context("delivery_id");
            /// The parent, if any.
            parent_run_id: id = Source::Row("parent_run_id");
            /// The root, if the run has a parent (on a refusal: the root of the run in flight).
            root_run_id: id = Source::RootId;
            /// The root's workflow.
            root_workflow_name: text = Source::RootName;
            /// `state.failedReason`, `state.incompleteReason`, or a refusal's reason.
            reason: text = Source::Reason;
            /// `state.traceparent`.
            traceparent: text = Source::Traceparent;
            /// On a refusal: the run in flight.
            inflight_run_id: key = Source::Inflight;
            /// Written by reconciliation, not by a trigger.
            reconciled: flag = Source::Reconciled;
            /// The delivery that caused the root, if the run has a parent.
            root_delivery_id: text = Source::RootDelivery;
        }
    };
}
pub(crate) use journal_columns;

/// What a column of each kind is read into.
macro_rules! row_type {
    // Microseconds; 0 where it is NULL.
    (instant) => { i64 };
    // Microseconds; absent where it is not a time.
    (time) => { Option<i64> };
    // A UUID; the entry is set aside where it is not one.
    (key) => { Option<Uuid> };
    // A UUID; absent where it is not one.
    (id) => { Option<Uuid> };
    (text) => { Option<String> };
    (number) => { Option<i64> };
    (flag) => { bool };
}

macro_rules! declare_row {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $source:expr;)*) => {
        /// A row of the journal, as stored.
        #[derive(Clone, Debug, Default)]
        pub struct Row {
            /// The position in the journal: rises with each transition of one run.
            pub seq: i64,
            $($(#[$doc])* pub $name: row_type!($kind),)*
        }
    };
}
journal_columns!(declare_row);

/// Where the value of a column comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The database's clock.
    Now,
    /// This column of the application's row.
    Row(&'static str),
    /// The same; a refusal, which has no row, has it as a parameter of that name.
    Context(&'static str),
    /// The row's status before the transition.
    StatusBefore,
    /// The row's status after it.
    StatusAfter,
    /// The root above the run, found by its parents.
    RootId,
    /// The workflow of that root.
    RootName,
    /// The delivery that caused that root.
    RootDelivery,
    /// A value of the row's state.
    Reason,
    /// A value of the row's state.
    Traceparent,
    /// A parameter of a refusal.
    Inflight,
    /// Whether reconciliation writes the entry.
    Reconciled,
}
