//! Where the triggers are, and where they are expected.

use sqlx::SqliteConnection;

use crate::store::{CaptureProblem, StoreError};

/// The triggers of the application's table.
pub(super) const TRIGGERS: [&str; 3] = ["runspan_inserted", "runspan_changed", "runspan_deleted"];

/// The view that records the attached table. An older runspan made none.
pub(super) const MARK: &str = "runspan_attached";

/// Where the triggers are, and where they are expected.
pub(super) struct Placed {
    /// Trigger and table, in the order of [`TRIGGERS`].
    triggers: Vec<(String, String)>,
    /// The table that was attached to, by the name that it had then.
    expected: Option<String>,
    /// How the table is spelled that has this name now, if there is one.
    named: Option<String>,
}

impl Placed {
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Self, StoreError> {
        let mut triggers: Vec<(String, String)> = sqlx::query_as(
            "SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'runspan_*'",
        )
        .fetch_all(&mut *connection)
        .await?;
        let place = |name: &str| TRIGGERS.iter().position(|trigger| *trigger == name);
        triggers.retain(|(name, _)| place(name).is_some());
        triggers.sort_by_key(|(name, _)| place(name));
        let is_marked: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name = ?1)",
        )
        .bind(MARK)
        .fetch_one(&mut *connection)
        .await?;
        let (mut expected, mut named) = (None, None);
        if is_marked {
            (expected, named) = sqlx::query_as(
                "SELECT table_name, (
                     SELECT name FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower(table_name))
                 FROM runspan_attached",
            )
            .fetch_one(connection)
            .await?;
        }
        Ok(Self { triggers, expected, named })
    }

    /// The table that has the triggers, as it is named now.
    pub(super) fn on(&self) -> Option<&str> {
        self.triggers.first().map(|(_, table)| table.as_str())
    }

    /// The name that was attached to.
    pub(super) fn expected(&self) -> Option<&str> {
        self.expected.as_deref()
    }

    /// The table that has the triggers, or had them.
    pub(super) fn table(&self) -> Option<&str> {
        self.on().or_else(|| self.expected())
    }

    /// Which of the triggers `table` lacks.
    pub(super) fn missing(&self, table: &str) -> Vec<&'static str> {
        let has = |trigger: &str| self.triggers.iter().any(|(name, on)| name == trigger && same(on, table));
        TRIGGERS.into_iter().filter(|trigger| !has(trigger)).collect()
    }

    /// Why transitions do not reach the journal. A table that was renamed keeps its triggers: that is none, unless
    /// another has taken its name.
    pub(super) fn problems(&self) -> Vec<CaptureProblem> {
        let lost = |table: &str| {
            let triggers = self.missing(table).join(", ");
            (!triggers.is_empty())
                .then(|| CaptureProblem::TriggersMissing { table: table.to_owned(), triggers })
        };
        let problem = match (self.on(), self.expected(), self.named.as_deref()) {
            (None, None, _) => Some(CaptureProblem::Detached),
            (None, Some(expected), None) => Some(CaptureProblem::TableMissing { table: expected.to_owned() }),
            (Some(attached), _, Some(named)) if !same(attached, named) => {
                Some(CaptureProblem::TableReplaced { table: named.to_owned(), attached: attached.to_owned() })
            }
            (Some(table), _, _) | (None, Some(_), Some(table)) => lost(table),
        };
        problem.into_iter().collect()
    }
}

/// The table whose triggers write the journal: SQLite keeps their names right when it is renamed.
pub(super) async fn attached_table(connection: &mut SqliteConnection) -> Result<Option<String>, StoreError> {
    Ok(Placed::read(connection).await?.on().map(ToOwned::to_owned))
}

/// Whether two names are one to SQLite.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}
