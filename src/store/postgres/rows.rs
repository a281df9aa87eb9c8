//! Decodes rows of PostgreSQL and encodes values.

use std::borrow::Cow;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::super::rows::{decode_open_run, encode_open_run};
use super::super::{StoreError, columns};
use super::pool::Session;
use crate::journal::{Row, journal_columns};
use crate::projection::Tracked;
use crate::run::RunId;

/// The entries of what is unread, with the beginning of the very snapshot that sees them and a transaction id drawn
/// after it (and only if there are any: an empty journal costs none).
pub(super) static READ: LazyLock<String> = LazyLock::new(|| {
    let columns = columns::names();
    format!(
        "SELECT seq, {columns},
                (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) AS xmin,
                (SELECT pg_current_xact_id()::text::bigint) AS bound
         FROM unnest($1::bigint[], $2::bigint[]) unread (above, below) CROSS JOIN LATERAL (
             SELECT * FROM runspan.journal WHERE seq > above AND seq < below ORDER BY seq LIMIT $3) entry
         ORDER BY seq LIMIT $3"
    )
});

macro_rules! declare_read_row {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $source:expr;)*) => {
        /// Reads a row of [`READ`].
        pub(super) fn read_row(row: &PgRow) -> Result<Row, StoreError> {
            Ok(Row {
                seq: row.try_get(0)?,
                $($name: read::$kind(row, const { 1 + columns::index(stringify!($name)) })?,)*
            })
        }
    };
}
journal_columns!(declare_read_row);

/// A value of each kind of column.
mod read {
    use sqlx::Row as _;

    use super::{PgRow, StoreError, Uuid};

    pub(super) fn instant(row: &PgRow, index: usize) -> Result<i64, StoreError> {
        Ok(time(row, index)?.unwrap_or_default())
    }

    pub(super) fn key(row: &PgRow, index: usize) -> Result<Option<Uuid>, StoreError> {
        Ok(row.try_get(index)?)
    }

    pub(super) use super::{text, time};
    pub(super) use key as id;

    pub(super) fn number(row: &PgRow, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(row.try_get(index)?)
    }

    pub(super) fn flag(row: &PgRow, index: usize) -> Result<bool, StoreError> {
        Ok(row.try_get::<Option<bool>, _>(index)?.unwrap_or_default())
    }
}

/// A text of the application's. A database in `SQL_ASCII` keeps whatever bytes it is given, and cuts them anywhere: what
/// is no UTF-8 is replaced, and stops nothing.
struct Lossy(String);

impl Type<Postgres> for Lossy {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(ty)
    }
}

impl<'r> Decode<'r, Postgres> for Lossy {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // What is kept of it goes back to the database, whose encoding may have no U+FFFD.
        Ok(Self(match String::from_utf8_lossy(value.as_bytes()?) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(repaired) => repaired.replace(char::REPLACEMENT_CHARACTER, "?"),
        }))
    }
}

/// A text of the application's, if there is one.
pub(super) fn text(row: &PgRow, index: usize) -> Result<Option<String>, StoreError> {
    Ok(row.try_get::<Option<Lossy>, _>(index)?.map(|text| text.0))
}

/// A time as PostgreSQL sends it: microseconds since 2000, the least and the greatest of which are infinite.
///
/// Asked for `extract(epoch …)` it computes each in decimal digits.
struct Sent(i64);

impl Type<Postgres> for Sent {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for Sent {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(Decode::<Postgres>::decode(value)?))
    }
}

/// A time in microseconds since the Unix epoch; `None` if it is infinite or too far away for that.
pub(super) fn time(row: &PgRow, index: usize) -> Result<Option<i64>, StoreError> {
    const YEAR_2000: i64 = 946_684_800_000_000;
    Ok(match row.try_get(index)? {
        None | Some(Sent(i64::MIN | i64::MAX)) => None,
        Some(Sent(micros)) => micros.checked_add(YEAR_2000),
    })
}

pub(super) fn open_run(row: &PgRow) -> Result<(RunId, Tracked), StoreError> {
    let run = row.try_get(0)?;
    Ok((run, decode_open_run(run, row.try_get(1)?)?))
}

pub(super) async fn write_open_runs(
    tx: &mut Session,
    opened: &[(RunId, Tracked)],
    closed: &[RunId],
) -> Result<(), StoreError> {
    if !opened.is_empty() {
        let ids: Vec<RunId> = opened.iter().map(|(run, _)| *run).collect();
        let statuses: Vec<&str> = opened.iter().map(|(_, open)| open.status().as_str()).collect();
        let states = opened
            .iter()
            .map(|(run, open)| encode_open_run(*run, open))
            .collect::<Result<Vec<String>, _>>()?;
        sqlx::query(
            "INSERT INTO runspan.open_runs (run_id, status, state)
             SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])
             ON CONFLICT (run_id) DO UPDATE SET status = excluded.status, state = excluded.state",
        )
        .bind(ids)
        .bind(statuses)
        .bind(states)
        .execute(&mut *tx)
        .await?;
    }
    if !closed.is_empty() {
        sqlx::query("DELETE FROM runspan.open_runs WHERE run_id = ANY($1)").bind(closed).execute(tx).await?;
    }
    Ok(())
}
