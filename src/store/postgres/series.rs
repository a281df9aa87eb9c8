//! The durable metrics in PostgreSQL.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::rows::{
    count, decode_recorded, decode_totals, encode_change, encode_series, in_flight, stored,
};
use super::super::{Lease, PendingTotals, SeriesStore, StoreError};
use super::PgStore;
use super::pool::Session;
use super::rows::{text, time};
use crate::run::Timestamp;
use crate::series::{Change, InFlight, Recorded, Totals};

#[async_trait]
impl SeriesStore for PgStore {
    async fn recorded(&self) -> Result<Option<Recorded>, StoreError> {
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT head, totals FROM runspan.series").fetch_optional(&self.pool).await?;
        row.map(|(head, totals)| decode_recorded(&head, &totals)).transpose()
    }

    async fn pending_totals(
        &self,
        lease: &Lease,
        after: i64,
        limit: usize,
    ) -> Result<PendingTotals, StoreError> {
        let rows = sqlx::query(
            "SELECT clock_timestamp(), d.id, d.delta,
                    (SELECT count(*) FROM runspan.deltas WHERE id <= $3)
             FROM runspan.lease LEFT JOIN LATERAL (
                 SELECT id, delta FROM runspan.deltas WHERE id > $3 ORDER BY id LIMIT $4) d ON true
             WHERE holder = $1 AND epoch = $2 ORDER BY d.id",
        )
        .bind(&lease.holder)
        .bind(lease.epoch)
        .bind(after)
        .bind(stored(limit))
        .fetch_all(&self.pool)
        .await?;
        let first = rows.first().ok_or(StoreError::LeaseLost)?;
        let mut pending = PendingTotals {
            now: Timestamp::from_micros(time(first, 0)?.unwrap_or_default()),
            totals: Vec::new(),
            up_to: count(first.try_get(3)?),
        };
        for row in &rows {
            if let (Some(id), Some(delta)) = (row.try_get(1)?, row.try_get(2)?) {
                pending.totals.push((id, decode_totals(delta)?));
            }
        }
        Ok(pending)
    }

    async fn record(&self, lease: &Lease, change: &Change) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        sqlx::query("DELETE FROM runspan.deltas WHERE id = ANY($1)")
            .bind(&change.removed)
            .execute(&mut *tx)
            .await?;
        for (id, totals) in &change.merged {
            sqlx::query("INSERT INTO runspan.deltas (id, delta) OVERRIDING SYSTEM VALUE VALUES ($1, $2)")
                .bind(id)
                .bind(encode_series(totals)?)
                .execute(&mut *tx)
                .await?;
        }
        let [totals, usual] = encode_change(change)?;
        // The first change has totals. What was usual stays so until a new history (of another database or buckets)
        // says otherwise.
        sqlx::query(
            "INSERT INTO runspan.series AS known (head, totals, usual)
             VALUES ($1, coalesce($2, ''), coalesce($3::jsonb, '{}'))
             ON CONFLICT (singleton) DO UPDATE SET
                 head = $1, totals = coalesce($2, known.totals), usual = known.usual || coalesce($3::jsonb, '{}')",
        )
        .bind(encode_series(&change.head)?)
        .bind(totals)
        .bind(usual)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn in_flight(&self) -> Result<Vec<InFlight>, StoreError> {
        let sql = "SELECT workflow_name, status, runs, oldest_age FROM runspan.in_flight()";
        let mut all = Vec::new();
        for row in self.pool.fetch_texts(|| sqlx::query(sql)).await? {
            let [workflow, status] = [0, 1].map(|index| text(&row, index));
            let (workflow, status) = (workflow?.unwrap_or_default(), status?.unwrap_or_default());
            all.extend(in_flight((workflow, status, row.try_get(2)?, row.try_get(3)?)));
        }
        Ok(all)
    }

    async fn skipped_entries(&self) -> Result<u64, StoreError> {
        // Whoever drops the sequence by hand loses this number, and no other.
        let sql = "SELECT coalesce(pg_sequence_last_value(to_regclass('runspan.journal_skipped')), 0)";
        Ok(sqlx::query_scalar::<_, i64>(sql).fetch_one(&self.pool).await?.unsigned_abs())
    }
}

/// Appends what a batch added.
pub(super) async fn append(tx: &mut Session, totals: &Totals) -> Result<(), StoreError> {
    if totals.is_empty() {
        return Ok(());
    }
    let delta = encode_series(totals)?;
    // Not by the sequence, which may be set back: the content of an export must not grow while it is in progress. The
    // number of the commit that it is part of does not go back. Both were by sequences once: the second, if these differ.
    for next in ["SELECT max(id) FROM runspan.commits", "SELECT max(id) FROM runspan.deltas"] {
        // Safe: this module's own text.
        let sql = AssertSqlSafe(format!(
            "INSERT INTO runspan.deltas (id, delta) OVERRIDING SYSTEM VALUE
             SELECT coalesce(({next}), 0) + 1, $1 ON CONFLICT (id) DO NOTHING"
        ));
        if sqlx::query(sql).bind(&delta).execute(&mut *tx).await?.rows_affected() == 1 {
            break;
        }
    }
    Ok(())
}
