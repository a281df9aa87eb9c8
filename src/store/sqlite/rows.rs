//! Decodes rows of SQLite and encodes values.
//!
//! SQLite types values, not columns: what the application wrote may be anything, and must not stop the rest.

use std::sync::LazyLock;

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::super::StoreError;
use super::super::columns::{self, COLUMNS, Column, Kind};
use super::super::rows::{decode_open_run, encode_open_run};
use super::sql::{NOW, micros};
use crate::journal::{Row, Source, Unreadable, journal_columns};
use crate::projection::Tracked;
use crate::run::RunId;

/// How much of a value that is no UUID an error repeats.
const MAX_SHOWN: usize = 64;

/// Keeps entries aside, whole: `?1` holds pairs of position and error. JSON cannot hold a BLOB; its quoted form
/// (`X'…'`) it can. A position that is there already, since the journal's were set back, is replaced by one above all.
pub(super) static SET_ASIDE: LazyLock<String> = LazyLock::new(|| {
    let fields: Vec<String> = COLUMNS
        .iter()
        .map(|Column { name, .. }| {
            format!("'{name}', CASE typeof(j.{name}) WHEN 'blob' THEN quote(j.{name}) ELSE j.{name} END")
        })
        .collect();
    format!(
        "INSERT INTO runspan_set_aside (seq, error, entry, set_aside_at)
         SELECT CASE WHEN j.seq IN (SELECT seq FROM runspan_set_aside)
                THEN max((SELECT max(seq) FROM runspan_set_aside), max(j.seq) OVER ()) + row_number() OVER ()
                ELSE j.seq END,
             json_extract(e.value, '$[1]'), json_object('seq', j.seq, {}), {NOW}
         FROM json_each(?1) e JOIN runspan_journal j ON j.seq = json_extract(e.value, '$[0]')",
        fields.join(", ")
    )
});

/// Writes all entries up to the position `?1` once more, behind all others and in their order.
pub(super) static MOVE_ALL: LazyLock<String> = LazyLock::new(|| {
    let columns = columns::names();
    format!(
        "INSERT INTO runspan_journal ({columns})
         SELECT {columns} FROM runspan_journal WHERE seq <= ?1 ORDER BY seq"
    )
});

/// Entries after a position.
pub(super) static READ: LazyLock<String> = LazyLock::new(|| {
    let fields: Vec<String> = COLUMNS.iter().map(selected).collect();
    let fields = fields.join(", ");
    format!("SELECT seq, {fields} FROM runspan_journal WHERE seq > ?1 ORDER BY seq LIMIT ?2")
});

/// A column as it can be read, whatever the application wrote into it.
fn selected(Column { name, kind, source }: &Column) -> String {
    match kind {
        // Ours is a number already.
        Kind::Time if *source == Source::Now => (*name).to_owned(),
        Kind::Time => micros(name),
        Kind::Id => format!("CASE typeof({name}) WHEN 'blob' THEN quote({name}) ELSE {name} END"),
        Kind::Number => format!("CASE typeof({name}) WHEN 'integer' THEN {name} END"),
        Kind::Text | Kind::Flag => (*name).to_owned(),
    }
}

/// A row of the journal, or why it cannot be parsed.
pub(super) type Read = Result<Row, Unreadable>;

macro_rules! declare_read_row {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $source:expr;)*) => {
        /// Reads a row of [`READ`].
        pub(super) fn read_row(row: &SqliteRow) -> Result<Read, StoreError> {
            let mut reader = Reader { row, unreadable: None };
            let read = Row {
                seq: row.try_get(0)?,
                $($name: reader.$kind(const { columns::index(stringify!($name)) })?,)*
            };
            Ok(reader.unreadable.map_or(Ok(read), Err))
        }
    };
}
journal_columns!(declare_read_row);

/// Reads a value of each kind of column, given its index in the declaration.
struct Reader<'a> {
    row: &'a SqliteRow,
    /// The first value that an entry needs and that cannot be parsed.
    unreadable: Option<Unreadable>,
}

impl Reader<'_> {
    fn instant(&self, index: usize) -> Result<i64, StoreError> {
        Ok(self.time(index)?.unwrap_or_default())
    }

    fn time(&self, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.row.try_get(1 + index)?)
    }

    fn key(&mut self, index: usize) -> Result<Option<Uuid>, StoreError> {
        let Some(value) = self.text(index)? else { return Ok(None) };
        let id = uuid(&value);
        if id.is_none() {
            let column = COLUMNS[index].origin().unwrap_or(COLUMNS[index].name);
            let value = value.chars().take(MAX_SHOWN).collect();
            self.unreadable.get_or_insert(Unreadable::NotUuid { column, value });
        }
        Ok(id)
    }

    /// A run is worth more than its place in a tree.
    fn id(&self, index: usize) -> Result<Option<Uuid>, StoreError> {
        Ok(self.text(index)?.and_then(|id| uuid(&id)))
    }

    fn text(&self, index: usize) -> Result<Option<String>, StoreError> {
        text(self.row, 1 + index)
    }

    fn number(&self, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.row.try_get(1 + index)?)
    }

    fn flag(&self, index: usize) -> Result<bool, StoreError> {
        Ok(self.row.try_get::<Option<bool>, _>(1 + index)?.unwrap_or_default())
    }
}

/// In one case, with all hyphens or none: as [`reconcile`](super::super::JournalStore::reconcile) finds the row again.
fn uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    let spellings = [id.hyphenated().to_string(), id.simple().to_string()];
    spellings.iter().any(|lower| text == lower || text == lower.to_ascii_uppercase()).then_some(id)
}

/// Any value as text, even one that is no valid UTF-8.
pub(super) fn text(row: &SqliteRow, index: usize) -> Result<Option<String>, StoreError> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(index)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

pub(super) fn open_run(row: &SqliteRow) -> Result<(RunId, Tracked), StoreError> {
    let id: &str = row.try_get(0)?;
    let run = id.parse().map_err(|error: uuid::Error| StoreError::Corrupt {
        what: format!("the open run {id:?}"),
        cause: error.to_string(),
    })?;
    Ok((run, decode_open_run(run, row.try_get(1)?)?))
}

pub(super) async fn write_open_runs(
    tx: &mut SqliteConnection,
    opened: &[(RunId, Tracked)],
    closed: &[RunId],
) -> Result<(), StoreError> {
    if !opened.is_empty() {
        let rows = opened
            .iter()
            .map(|(run, open)| Ok((run, open.status().as_str(), encode_open_run(*run, open)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        sqlx::query(
            "INSERT INTO runspan_open_runs (run_id, status, state)
             SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
             FROM json_each(?1) WHERE true
             ON CONFLICT (run_id) DO UPDATE SET status = excluded.status, state = excluded.state",
        )
        .bind(json(&rows))
        .execute(&mut *tx)
        .await?;
    }
    if !closed.is_empty() {
        let sql = "DELETE FROM runspan_open_runs WHERE run_id IN (SELECT value FROM json_each(?1))";
        sqlx::query(sql).bind(json(&closed)).execute(tx).await?;
    }
    Ok(())
}

/// Many values as one parameter.
pub(super) fn json(values: &impl Serialize) -> String {
    serde_json::to_string(values).expect("lists of numbers and texts have a JSON form")
}
