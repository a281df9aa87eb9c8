//! Entries that were set aside.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::{Selection, SetAside, SetAsideStore, StoreError, columns, rows};
use super::PgStore;
use crate::run::Timestamp;

#[async_trait]
impl SetAsideStore for PgStore {
    async fn list_set_aside(&self, limit: usize) -> Result<Vec<SetAside>, StoreError> {
        let sql = "SELECT seq, set_aside_at, error, entry::text FROM runspan.set_aside ORDER BY seq LIMIT $1";
        let entries = self.pool.fetch_texts(|| sqlx::query(sql).bind(rows::stored(limit))).await?;
        entries
            .iter()
            .map(|row| {
                Ok(SetAside {
                    seq: row.try_get(0)?,
                    set_aside_at: Timestamp::from(row.try_get::<chrono::DateTime<chrono::Utc>, _>(1)?)
                        .to_string(),
                    error: super::rows::text(row, 2)?.unwrap_or_default(),
                    entry: rows::decode_entry(&super::rows::text(row, 3)?.unwrap_or_default())?,
                })
            })
            .collect()
    }

    async fn retry_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        let columns = columns::names();
        let sql = format!(
            "WITH again AS (DELETE FROM runspan.set_aside WHERE $1 OR seq = ANY($2) RETURNING seq AS place, entry)
             INSERT INTO runspan.journal ({columns})
             SELECT {columns} FROM again, jsonb_populate_record(NULL::runspan.journal, entry) ORDER BY place"
        );
        self.of_set_aside(sql, selection).await
    }

    async fn discard_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.of_set_aside("DELETE FROM runspan.set_aside WHERE $1 OR seq = ANY($2)".to_owned(), selection)
            .await
    }
}

impl PgStore {
    async fn of_set_aside(&self, sql: String, selection: &Selection) -> Result<u64, StoreError> {
        let (all, seqs) = match selection {
            Selection::All => (true, &[][..]),
            Selection::Ids(seqs) => (false, seqs.as_slice()),
        };
        // Safe: this module's own text and the columns' names.
        Ok(sqlx::query(AssertSqlSafe(sql)).bind(all).bind(seqs).execute(&self.pool).await?.rows_affected())
    }
}
