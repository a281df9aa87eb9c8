//! The journal's columns as SQL: what each dialect makes of [`journal_columns`].

use crate::journal::{Source, journal_columns};
use crate::run::Status;

/// How many characters of a name are kept.
pub(super) const TEXT_LIMIT: usize = 1024;
/// How many characters of a reason are kept. Redaction reads as many bytes.
pub(super) const REASON_LIMIT: usize = 8192;
/// How many characters of a traceparent are kept: more than the longest valid one has.
pub(super) const TRACEPARENT_LIMIT: usize = 128;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Time,
    Id,
    Text,
    Number,
    Flag,
}

/// A column of the journal.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) source: Source,
}

macro_rules! kind {
    (instant) => {
        Kind::Time
    };
    (time) => {
        Kind::Time
    };
    (key) => {
        Kind::Id
    };
    (id) => {
        Kind::Id
    };
    (text) => {
        Kind::Text
    };
    (number) => {
        Kind::Number
    };
    (flag) => {
        Kind::Flag
    };
}

macro_rules! declare_columns {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $source:expr;)*) => {
        /// The journal's columns, but for those that the database fills in: position and transaction.
        pub(super) const COLUMNS: &[Column] = &[
            $(Column { name: stringify!($name), kind: kind!($kind), source: $source },)*
        ];
    };
}
journal_columns!(declare_columns);

impl Column {
    /// The column of the application's row that it comes from.
    pub(super) const fn origin(&self) -> Option<&'static str> {
        match self.source {
            Source::Row(origin) | Source::Context(origin) => Some(origin),
            _ => None,
        }
    }

    /// Whether a refusal has it too.
    pub(super) const fn is_context(&self) -> bool {
        matches!(self.source, Source::Context(_))
    }
}

/// The names of the journal's columns, as a list.
pub(super) fn names() -> String {
    list(COLUMNS.iter().map(|column| column.name))
}

/// Where in [`COLUMNS`] a column stands; checked when it is compiled.
pub(super) const fn index(name: &str) -> usize {
    let mut index = 0;
    while index < COLUMNS.len() {
        if is_same(COLUMNS[index].name.as_bytes(), name.as_bytes()) {
            return index;
        }
        index += 1;
    }
    panic!("the journal has no such column")
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// The columns that the application's table needs: those of the declaration, and those that its status and its times come
/// from.
pub(super) fn required() -> impl Iterator<Item = &'static str> {
    let (times, others): (Vec<_>, Vec<_>) = COLUMNS
        .iter()
        .filter_map(|column| Some((column.kind, column.origin()?)))
        .partition(|(kind, _)| *kind == Kind::Time);
    let names = |columns: Vec<(Kind, &'static str)>| columns.into_iter().map(|(_, name)| name);
    names(others).chain(["status", "state"]).chain(names(times)).chain(["updated_at"])
}

/// What a statement writes into each column. A column without a value is left out, and NULL.
pub(super) struct Values<'a> {
    pub(super) now: &'a str,
    /// The value of a column that comes from the application's row, given that column's name.
    pub(super) row: &'a dyn Fn(&Column, &str) -> Option<String>,
    pub(super) before: Option<&'a str>,
    pub(super) after: Option<&'a str>,
    pub(super) root_id: Option<&'a str>,
    pub(super) root_name: Option<&'a str>,
    pub(super) root_delivery: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) inflight: Option<&'a str>,
    pub(super) reconciled: &'a str,
}

/// Both lists of an INSERT into the journal.
pub(super) struct Insert {
    pub(super) columns: String,
    pub(super) values: String,
}

impl Values<'_> {
    pub(super) fn insert(&self) -> Insert {
        let (columns, values): (Vec<_>, Vec<_>) =
            COLUMNS.iter().filter_map(|column| Some((column.name, self.of(column)?))).unzip();
        Insert { columns: list(columns), values: list(values) }
    }

    fn of(&self, column: &Column) -> Option<String> {
        let value = match column.source {
            Source::Row(origin) | Source::Context(origin) => return (self.row)(column, origin),
            Source::Now => Some(self.now),
            Source::StatusBefore => self.before,
            Source::StatusAfter => self.after,
            Source::RootId => self.root_id,
            Source::RootName => self.root_name,
            Source::RootDelivery => self.root_delivery,
            Source::Reason => self.reason,
            Source::Traceparent => self.traceparent,
            Source::Inflight => self.inflight,
            Source::Reconciled => Some(self.reconciled),
        };
        value.map(str::to_owned)
    }
}

/// The statuses of runs in flight, as a list of SQL literals.
pub(super) fn in_flight() -> String {
    list(
        Status::ALL
            .into_iter()
            .filter(|status| status.outcome().is_none())
            .map(|status| literal(status.as_str())),
    )
}

/// All statuses, as a list of SQL literals.
pub(super) fn statuses() -> String {
    list(Status::ALL.map(Status::as_str).into_iter().chain([Status::CANCELED]).map(literal))
}

fn literal(status: &str) -> String {
    format!("'{status}'")
}

fn list(parts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    parts.into_iter().map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns that the schema gives the journal: by its `CREATE TABLE`, and by what was added to it.
    fn created(schema: &str, table: &str) -> Vec<String> {
        let added = format!("ALTER TABLE {table} ADD COLUMN ");
        let added = schema.lines().filter_map(|line| line.strip_prefix(&added)?.split_whitespace().next());
        let (_, body) = schema.split_once(&format!("CREATE TABLE {table} (\n")).unwrap();
        let (body, _) = body.split_once("\n)").unwrap();
        let names = body.lines().filter_map(|line| line.split_whitespace().next());
        let names = names.filter(|name| !["--", "xid", "seq"].contains(name)).chain(added);
        names.map(|name| name.replace(',', "")).collect()
    }

    #[test]
    fn declaration_and_schemas_have_the_same_columns() {
        let declared: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
        let postgres = concat!(include_str!("postgres/schema.sql"), include_str!("postgres/schema_3.sql"));
        assert_eq!(created(postgres, "runspan.journal"), declared);
        let sqlite = concat!(include_str!("sqlite/schema.sql"), include_str!("sqlite/schema_3.sql"));
        assert_eq!(created(sqlite, "runspan_journal"), declared);
    }

    #[test]
    fn a_refusal_has_a_parameter_for_each_column_of_its_context() {
        let functions = include_str!("postgres/functions.sql");
        let (_, refusal) = functions.split_once("FUNCTION runspan.dispatch_refused(").unwrap();
        let (parameters, _) = refusal.split_once(") RETURNS").unwrap();
        for column in COLUMNS.iter().filter(|column| column.is_context()) {
            assert!(parameters.contains(&format!("    {} ", column.name)), "{}", column.name);
        }
    }

    #[test]
    fn index_is_the_place_in_the_declaration() {
        assert_eq!(const { index("at") }, 0);
        assert_eq!(COLUMNS[const { index("traceparent") }].name, "traceparent");
        assert_eq!(const { index("root_delivery_id") }, COLUMNS.len() - 1);
    }
}
