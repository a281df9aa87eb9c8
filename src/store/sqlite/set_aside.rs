//! Entries that were set aside.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::columns::{self, COLUMNS};
use super::super::{Selection, SetAside, SetAsideStore, StoreError, rows};
use super::SqliteStore;
use super::rows::{json, text};
use crate::run::Timestamp;

/// Those that are chosen: all if `?1`, or those in the list `?2`.
const CHOSEN: &str = "?1 OR seq IN (SELECT value FROM json_each(?2))";

#[async_trait]
impl SetAsideStore for SqliteStore {
    async fn list_set_aside(&self, limit: usize) -> Result<Vec<SetAside>, StoreError> {
        sqlx::query("SELECT seq, set_aside_at, error, entry FROM runspan_set_aside ORDER BY seq LIMIT ?1")
            .bind(rows::stored(limit))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(SetAside {
                    seq: row.try_get(0)?,
                    set_aside_at: Timestamp::from_micros(row.try_get(1)?).to_string(),
                    error: row.try_get(2)?,
                    entry: rows::decode_entry(&text(row, 3)?.unwrap_or_default())?,
                })
            })
            .collect()
    }

    async fn retry_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        let values: Vec<String> =
            COLUMNS.iter().map(|column| format!("json_extract(entry, '$.{}')", column.name)).collect();
        let again = format!(
            "INSERT INTO runspan_journal ({}) SELECT {} FROM runspan_set_aside WHERE {CHOSEN} ORDER BY seq",
            columns::names(),
            values.join(", ")
        );
        self.of_set_aside(&[again, format!("DELETE FROM runspan_set_aside WHERE {CHOSEN}")], selection).await
    }

    async fn discard_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.of_set_aside(&[format!("DELETE FROM runspan_set_aside WHERE {CHOSEN}")], selection).await
    }
}

impl SqliteStore {
    /// Runs the statements in one transaction; how many rows the last one changed.
    async fn of_set_aside(&self, statements: &[String], selection: &Selection) -> Result<u64, StoreError> {
        let (all, seqs) = match selection {
            Selection::All => (true, &[][..]),
            Selection::Ids(seqs) => (false, seqs.as_slice()),
        };
        let mut tx = self.writing().await?;
        let mut changed = 0;
        for sql in statements {
            // Safe: this module's own text and the columns' names.
            let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(all).bind(json(&seqs));
            changed = query.execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(changed)
    }
}
