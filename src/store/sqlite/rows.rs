//! Rows to values and back.
//!
//! SQLite types values, not columns: what the application wrote may be anything, and must not stop the rest.

use std::sync::LazyLock;

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{decode_open_run, encode_open_run};
use super::sql::{COLUMNS, NOW, micros};
use crate::journal::{Row, Unreadable};
use crate::projection::Tracked;
use crate::run::RunId;

/// How much of a value that is no UUID an error repeats.
const MAX_SHOWN: usize = 64;

/// How journal and outbox stand, in one statement.
pub(super) const STATUS: &str = "
    SELECT j.entries, ({now} - j.oldest) / 1e6,
           o.waiting, o.bytes, ({now} - o.oldest) / 1e6, o.dead,
           (SELECT count(*) FROM runspan_set_aside),
           (SELECT count(*) FROM runspan_open_runs)
    FROM (SELECT count(*) AS entries, min(at) AS oldest FROM runspan_journal) j,
         (SELECT count(*) FILTER (WHERE dead IS NULL) AS waiting,
                 coalesce(sum(bytes) FILTER (WHERE dead IS NULL), 0) AS bytes,
                 min(created_at) FILTER (WHERE dead IS NULL) AS oldest,
                 count(*) FILTER (WHERE dead IS NOT NULL) AS dead
          FROM runspan_outbox) o";

/// Keeps entries aside, whole: `?1` holds pairs of position and error. JSON cannot hold a BLOB; its quoted form
/// (`X'…'`) it can. A position that is there already, since the journal's were set back, is replaced by one above all.
pub(super) static SET_ASIDE: LazyLock<String> = LazyLock::new(|| {
    let fields = COLUMNS.map(|column| {
        format!("'{column}', CASE typeof(j.{column}) WHEN 'blob' THEN quote(j.{column}) ELSE j.{column} END")
    });
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
    let columns = COLUMNS.join(", ");
    format!(
        "INSERT INTO runspan_journal ({columns})
         SELECT {columns} FROM runspan_journal WHERE seq <= ?1 ORDER BY seq"
    )
});

/// Entries after a position.
pub(super) fn read() -> String {
    format!(
        "SELECT seq, at, {}, CASE typeof(run_id) WHEN 'blob' THEN quote(run_id) ELSE run_id END, workflow_name,
                from_status, to_status, target_type, target_owner, target_repo,
                CASE typeof(target_number) WHEN 'integer' THEN target_number END, delivery_id, parent_run_id,
                root_run_id, root_workflow_name, reason, traceparent, inflight_run_id, reconciled
         FROM runspan_journal WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        micros("created_at")
    )
}

/// A row of the journal, or why it cannot be understood.
pub(super) type Read = Result<Row, Unreadable>;

pub(super) fn read_row(row: &SqliteRow) -> Result<Read, StoreError> {
    let mut unreadable = None;
    let mut id = |index, column| -> Result<Option<Uuid>, StoreError> {
        let Some(value) = text(row, index)? else { return Ok(None) };
        let id = uuid(&value);
        if id.is_none() {
            let value = value.chars().take(MAX_SHOWN).collect();
            unreadable.get_or_insert(Unreadable::NotUuid { column, value });
        }
        Ok(id)
    };
    let read = Row {
        seq: row.try_get(0)?,
        at: row.try_get::<Option<i64>, _>(1)?.unwrap_or_default(),
        created_at: row.try_get(2)?,
        run_id: id(3, "id")?,
        workflow_name: text(row, 4)?,
        from_status: text(row, 5)?,
        to_status: text(row, 6)?,
        target_type: text(row, 7)?,
        target_owner: text(row, 8)?,
        target_repo: text(row, 9)?,
        target_number: row.try_get(10)?,
        delivery_id: text(row, 11)?,
        // A run is worth more than its place in a tree.
        parent_run_id: text(row, 12)?.and_then(|id| uuid(&id)),
        root_run_id: text(row, 13)?.and_then(|id| uuid(&id)),
        root_workflow_name: text(row, 14)?,
        reason: text(row, 15)?,
        traceparent: text(row, 16)?,
        inflight_run_id: id(17, "inflight_run_id")?,
        reconciled: row.try_get::<Option<bool>, _>(18)?.unwrap_or_default(),
    };
    Ok(unreadable.map_or(Ok(read), Err))
}

/// Hyphenated, in one case: as [`reconcile`](super::super::Store::reconcile) finds the row again.
fn uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    let lower = id.hyphenated().to_string();
    (text == lower || text == lower.to_ascii_uppercase()).then_some(id)
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
