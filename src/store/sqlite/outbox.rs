//! The outbox.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::super::rows::{channel, count, stored};
use super::super::{
    Channel, Lease, NewRequest, OutboxEntry, OutboxStore, Request, Selection, Settlement, StoreError, Trimmed,
};
use super::sql::NOW;
use super::{SqliteStore, rows};
use crate::run::Timestamp;

#[async_trait]
impl OutboxStore for SqliteStore {
    async fn next_request(
        &self,
        channel: Channel,
        after: Option<(i64, i64)>,
    ) -> Result<Option<Request>, StoreError> {
        let (place, id) = after.unwrap_or((0, 0));
        let sql = format!(
            "SELECT id, place, created_at, ({NOW} - created_at) / 1e6, items, runs, body
             FROM runspan_outbox
             WHERE channel = ?1 AND dead IS NULL AND (place, id) > (?2, ?3)
             ORDER BY place, id LIMIT 1"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(channel.as_str())
            .bind(place)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let request = Request {
            id: row.try_get(0)?,
            place: row.try_get(1)?,
            channel,
            created_at: Timestamp::from_micros(row.try_get(2)?),
            age_seconds: row.try_get(3)?,
            items: count(row.try_get(4)?),
            runs: count(row.try_get(5)?),
            body: row.try_get::<Vec<u8>, _>(6)?.into(),
        };
        self.requests.seen(request.id.max(request.place));
        Ok(Some(request))
    }

    async fn settle(&self, lease: &Lease, settlements: &[Settlement]) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        for settlement in settlements {
            self.settle_one(&mut tx, settlement).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn trim(&self, lease: &Lease, max_bytes: u64) -> Result<Trimmed, StoreError> {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let size: i64 = sqlx::query_scalar("SELECT coalesce(sum(bytes), 0) FROM runspan_outbox")
            .fetch_one(&self.pool)
            .await?;
        if size <= max_bytes {
            return Ok(Trimmed::default());
        }
        let mut tx = self.fenced(lease).await?;
        let dropped: Vec<i64> = sqlx::query_scalar(
            "DELETE FROM runspan_outbox WHERE id IN (
                 SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY place DESC, id DESC) AS newer_bytes
                                 FROM runspan_outbox)
                 WHERE newer_bytes > ?1)
             RETURNING items",
        )
        .bind(max_bytes)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Trimmed {
            requests: dropped.len() as u64,
            items: dropped.into_iter().map(i64::unsigned_abs).sum(),
        })
    }

    async fn list(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        sqlx::query(
            "SELECT id, channel, created_at, items, bytes, dead FROM runspan_outbox ORDER BY place, id LIMIT ?1",
        )
        .bind(stored(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| {
            Ok(OutboxEntry {
                id: row.try_get(0)?,
                channel: channel(row.try_get(1)?)?,
                created_at: Timestamp::from_micros(row.try_get(2)?).to_string(),
                items: row.try_get(3)?,
                bytes: row.try_get(4)?,
                dead: row.try_get(5)?,
            })
        })
        .collect()
    }

    async fn retry(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.for_dead("UPDATE runspan_outbox SET dead = NULL WHERE dead IS NOT NULL", selection).await
    }

    async fn discard(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.for_dead("DELETE FROM runspan_outbox WHERE dead IS NOT NULL", selection).await
    }
}

impl SqliteStore {
    async fn settle_one(&self, tx: &mut SqliteConnection, settlement: &Settlement) -> Result<(), StoreError> {
        match settlement {
            Settlement::Delivered { id } => {
                sqlx::query("DELETE FROM runspan_outbox WHERE id = ?1").bind(id).execute(tx).await?;
            }
            Settlement::Dead { id, answer } => {
                let sql = "UPDATE runspan_outbox SET dead = ?2 WHERE id = ?1";
                sqlx::query(sql).bind(id).bind(answer).execute(tx).await?;
            }
            Settlement::Halved { id, place, created_at, halves } => {
                let gone = sqlx::query("DELETE FROM runspan_outbox WHERE id = ?1")
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
                if gone.rows_affected() == 0 {
                    // Trimmed away meanwhile.
                    return Ok(());
                }
                for half in halves {
                    let id = self.requests.next(tx).await?;
                    insert(tx, id, *place, Some(*created_at), half).await?;
                }
            }
        }
        Ok(())
    }

    async fn for_dead(&self, sql: &str, selection: &Selection) -> Result<u64, StoreError> {
        let (all, ids) = match selection {
            Selection::All => (true, &[][..]),
            Selection::Ids(ids) => (false, ids.as_slice()),
        };
        // Safe: this module's own text.
        let sql = AssertSqlSafe(format!("{sql} AND (?1 OR id IN (SELECT value FROM json_each(?2)))"));
        Ok(sqlx::query(sql).bind(all).bind(rows::json(&ids)).execute(&self.pool).await?.rows_affected())
    }
}

/// Inserts a request.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    id: i64,
    place: i64,
    created_at: Option<Timestamp>,
    request: &NewRequest,
) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO runspan_outbox (id, place, channel, created_at, items, runs, bytes, body)
         VALUES (?1, ?2, ?3, coalesce(?4, {NOW}), ?5, ?6, ?7, ?8)"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(id)
        .bind(place)
        .bind(request.channel.as_str())
        .bind(created_at.map(Timestamp::micros))
        .bind(stored(request.items))
        .bind(stored(request.runs))
        .bind(stored(request.body.len()))
        .bind(request.body.as_ref())
        .execute(tx)
        .await?;
    Ok(())
}
