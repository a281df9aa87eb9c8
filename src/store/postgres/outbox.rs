//! The outbox.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::rows::{channel, count, stored};
use super::super::{
    Channel, Lease, NewRequest, OutboxEntry, OutboxStore, Request, Selection, Settlement, StoreError, Trimmed,
};
use super::PgStore;
use super::pool::Session;
use crate::run::Timestamp;

/// Records the outcome of a request.
async fn settle_one(tx: &mut Session, settlement: &Settlement) -> Result<(), StoreError> {
    match settlement {
        Settlement::Delivered { id } => {
            sqlx::query("DELETE FROM runspan.outbox WHERE id = $1").bind(id).execute(tx).await?;
        }
        Settlement::Dead { id, answer } => {
            let sql = "UPDATE runspan.outbox SET dead = $2 WHERE id = $1";
            sqlx::query(sql).bind(id).bind(answer).execute(tx).await?;
        }
        Settlement::Halved { id, place, created_at, halves } => {
            let gone =
                sqlx::query("DELETE FROM runspan.outbox WHERE id = $1").bind(id).execute(&mut *tx).await?;
            if gone.rows_affected() == 0 {
                // Trimmed away meanwhile.
                return Ok(());
            }
            for half in halves {
                insert(tx, half, Origin::Half(*place, *created_at)).await?;
            }
        }
    }
    Ok(())
}

/// The number of places per commit. Not by the sequence, which may be set back: new requests would be sent before pending
/// ones. The number of the commit does not go back.
const PLACES_A_COMMIT: i64 = 1_000_000;

/// Where a request belongs.
pub(super) enum Origin {
    /// The projector made it: this many of the same commit come before it.
    Commit(usize),
    /// It is a half of the request that had this place.
    Half(i64, Timestamp),
}

/// Inserts a request.
pub(super) async fn insert(tx: &mut Session, request: &NewRequest, origin: Origin) -> Result<(), StoreError> {
    let (place, created_at) = match origin {
        Origin::Commit(before) => (stored(before), None),
        Origin::Half(place, created_at) => (place, Some(created_at)),
    };
    // The second one is for a sequence that was set back to where requests are still pending.
    for next in [
        "SELECT nextval(pg_get_serial_sequence('runspan.outbox', 'id')) AS id",
        "SELECT max(id) + 1 AS id FROM runspan.outbox",
    ] {
        // Safe: this module's own text.
        let sql = AssertSqlSafe(format!(
            "WITH next AS ({next})
             INSERT INTO runspan.outbox (id, place, channel, created_at, items, runs, bytes, body)
             OVERRIDING SYSTEM VALUE
             SELECT id,
                 CASE WHEN $7 IS NOT NULL THEN $6
                      ELSE $6 + {PLACES_A_COMMIT} * (SELECT coalesce(max(c.id), 0) + 1 FROM runspan.commits c) END,
                 $1, coalesce($7, clock_timestamp()), $2, $3, $4, $5 FROM next
             ON CONFLICT (id) DO NOTHING"
        ));
        let inserted = sqlx::query(sql)
            .bind(request.channel.as_str())
            .bind(stored(request.items))
            .bind(stored(request.runs))
            .bind(stored(request.body.len()))
            .bind(request.body.as_ref())
            .bind(place)
            .bind(created_at.and_then(|at| chrono::DateTime::from_timestamp_micros(at.micros())))
            .execute(&mut *tx)
            .await?;
        if inserted.rows_affected() == 1 {
            break;
        }
    }
    Ok(())
}

#[async_trait]
impl OutboxStore for PgStore {
    async fn next_request(
        &self,
        channel: Channel,
        after: Option<(i64, i64)>,
    ) -> Result<Option<Request>, StoreError> {
        let (place, id) = after.unwrap_or((0, 0));
        let row = sqlx::query(
            "SELECT id, place, created_at, extract(epoch FROM clock_timestamp() - created_at)::float8,
                    items, runs, body
             FROM runspan.outbox
             WHERE channel = $1 AND dead IS NULL AND (place, id) > ($2, $3)
             ORDER BY place, id LIMIT 1",
        )
        .bind(channel.as_str())
        .bind(place)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Request {
                id: row.try_get(0)?,
                place: row.try_get(1)?,
                channel,
                created_at: Timestamp::from(row.try_get::<chrono::DateTime<chrono::Utc>, _>(2)?),
                age_seconds: row.try_get(3)?,
                items: count(row.try_get(4)?),
                runs: count(row.try_get(5)?),
                body: row.try_get::<Vec<u8>, _>(6)?.into(),
            })
        })
        .transpose()
    }

    async fn settle(&self, lease: &Lease, settlements: &[Settlement]) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        for settlement in settlements {
            settle_one(&mut tx, settlement).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn trim(&self, lease: &Lease, max_bytes: u64) -> Result<Trimmed, StoreError> {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let size: i64 = sqlx::query_scalar("SELECT coalesce(sum(bytes), 0)::bigint FROM runspan.outbox")
            .fetch_one(&self.pool)
            .await?;
        if size <= max_bytes {
            return Ok(Trimmed::default());
        }
        let mut tx = self.fenced(lease).await?;
        let row = sqlx::query(
            "WITH dropped AS (
                 DELETE FROM runspan.outbox USING (
                     SELECT id, sum(bytes) OVER (ORDER BY place DESC, id DESC) AS newer_bytes
                     FROM runspan.outbox) o
                 WHERE outbox.id = o.id AND o.newer_bytes > $1 RETURNING items)
             SELECT count(*), coalesce(sum(items), 0)::bigint FROM dropped",
        )
        .bind(max_bytes)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Trimmed {
            requests: row.try_get::<i64, _>(0)?.unsigned_abs(),
            items: row.try_get::<i64, _>(1)?.unsigned_abs(),
        })
    }

    async fn list(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        sqlx::query(
            "SELECT id, channel, created_at, items, bytes, dead
             FROM runspan.outbox ORDER BY place, id LIMIT $1",
        )
        .bind(stored(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| {
            Ok(OutboxEntry {
                id: row.try_get(0)?,
                channel: channel(row.try_get(1)?)?,
                created_at: Timestamp::from(row.try_get::<chrono::DateTime<chrono::Utc>, _>(2)?).to_string(),
                items: row.try_get(3)?,
                bytes: row.try_get(4)?,
                dead: row.try_get(5)?,
            })
        })
        .collect()
    }

    async fn retry(&self, selection: &Selection) -> Result<u64, StoreError> {
        let sql = "UPDATE runspan.outbox SET dead = NULL WHERE dead IS NOT NULL AND ($1 OR id = ANY($2))";
        self.for_dead(sql, selection).await
    }

    async fn discard(&self, selection: &Selection) -> Result<u64, StoreError> {
        let sql = "DELETE FROM runspan.outbox WHERE dead IS NOT NULL AND ($1 OR id = ANY($2))";
        self.for_dead(sql, selection).await
    }
}

impl PgStore {
    async fn for_dead(&self, sql: &'static str, selection: &Selection) -> Result<u64, StoreError> {
        let (all, ids) = match selection {
            Selection::All => (true, &[][..]),
            Selection::Ids(ids) => (false, ids.as_slice()),
        };
        Ok(sqlx::query(sql).bind(all).bind(ids).execute(&self.pool).await?.rows_affected())
    }
}
