//! The durable metrics in SQLite.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::super::rows::{
    count, decode_recorded, decode_totals, encode_change, encode_series, in_flight, stored,
};
use super::super::{Lease, PendingTotals, SeriesStore, StoreError};
use super::ids::Ids;
use super::sql::NOW;
use super::{SqliteStore, capture, rows, sql};
use crate::run::Timestamp;
use crate::series::{Change, InFlight, Recorded, Totals};

#[async_trait]
impl SeriesStore for SqliteStore {
    async fn recorded(&self) -> Result<Option<Recorded>, StoreError> {
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT head, totals FROM runspan_series").fetch_optional(&self.pool).await?;
        row.map(|(head, totals)| decode_recorded(&head, &totals)).transpose()
    }

    async fn pending_totals(
        &self,
        lease: &Lease,
        after: i64,
        limit: usize,
    ) -> Result<PendingTotals, StoreError> {
        let sql = format!(
            "SELECT {NOW}, d.id, d.delta, (SELECT count(*) FROM runspan_deltas WHERE id <= ?3)
             FROM runspan_lease LEFT JOIN (
                 SELECT id, delta FROM runspan_deltas WHERE id > ?3 ORDER BY id LIMIT ?4) d ON true
             WHERE holder = ?1 AND epoch = ?2 ORDER BY d.id"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(&lease.holder)
            .bind(lease.epoch)
            .bind(after)
            .bind(stored(limit))
            .fetch_all(&self.pool)
            .await?;
        let first = rows.first().ok_or(StoreError::LeaseLost)?;
        let (now, up_to) = (Timestamp::from_micros(first.try_get(0)?), count(first.try_get(3)?));
        let mut pending = PendingTotals { now, totals: Vec::new(), up_to };
        for row in &rows {
            if let (Some(id), Some(delta)) = (row.try_get(1)?, row.try_get(2)?) {
                self.deltas.seen(id);
                pending.totals.push((id, decode_totals(delta)?));
            }
        }
        Ok(pending)
    }

    async fn record(&self, lease: &Lease, change: &Change) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        sqlx::query("DELETE FROM runspan_deltas WHERE id IN (SELECT value FROM json_each(?1))")
            .bind(rows::json(&change.removed))
            .execute(&mut *tx)
            .await?;
        for (id, totals) in &change.merged {
            sqlx::query("INSERT INTO runspan_deltas (id, delta) VALUES (?1, ?2)")
                .bind(id)
                .bind(encode_series(totals)?)
                .execute(&mut *tx)
                .await?;
        }
        let [totals, usual] = encode_change(change)?;
        // The first change has totals. What was usual stays so until a new history says otherwise.
        sqlx::query(
            "INSERT INTO runspan_series (singleton, head, totals, usual)
             VALUES (1, ?1, coalesce(?2, ''), coalesce(?3, '{}'))
             ON CONFLICT (singleton) DO UPDATE SET
                 head = ?1, totals = coalesce(?2, totals), usual = json_patch(usual, coalesce(?3, '{}'))",
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
        let mut connection = self.pool.acquire().await?;
        let Some(table) = capture::attached_table(&mut connection).await? else { return Ok(Vec::new()) };
        // Safe: built from this crate's own text and a quoted name.
        let sql = AssertSqlSafe(sql::in_flight(&sql::quoted(&table)));
        let mut all = Vec::new();
        for row in sqlx::query(sql).fetch_all(&mut *connection).await? {
            let workflow = rows::text(&row, 0)?.unwrap_or_default();
            all.extend(in_flight((workflow, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)));
        }
        Ok(all)
    }

    /// A trigger of SQLite's fails or writes; it has no third way.
    async fn skipped_entries(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}

/// Appends what a batch added.
pub(super) async fn append(tx: &mut SqliteConnection, ids: &Ids, totals: &Totals) -> Result<(), StoreError> {
    if !totals.is_empty() {
        let id = ids.next(tx).await?;
        sqlx::query("INSERT INTO runspan_deltas (id, delta) VALUES (?1, ?2)")
            .bind(id)
            .bind(encode_series(totals)?)
            .execute(tx)
            .await?;
    }
    Ok(())
}
