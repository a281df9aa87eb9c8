//! The lease's row.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _, Sqlite, Transaction};

use super::super::{Lease, LeaseStore, LeaseView, StoreError};
use super::SqliteStore;
use super::sql::NOW;

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn lease(&self) -> Result<LeaseView, StoreError> {
        let sql = format!("SELECT holder, epoch, expires_at, expires_at < {NOW} FROM runspan_lease");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.pool).await?;
        Ok(LeaseView {
            holder: row.try_get(0)?,
            epoch: row.try_get(1)?,
            expires_at: row.try_get(2)?,
            expired: row.try_get(3)?,
        })
    }

    async fn take_lease(
        &self,
        seen: &LeaseView,
        holder: &str,
        term: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let sql = format!(
            "UPDATE runspan_lease SET holder = ?3, epoch = epoch + 1, expires_at = {NOW} + ?4
             WHERE epoch = ?1 AND expires_at = ?2 RETURNING epoch"
        );
        let epoch = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(seen.epoch)
            .bind(seen.expires_at)
            .bind(holder)
            .bind(micros(term))
            .fetch_optional(&self.pool)
            .await?;
        Ok(epoch.map(|epoch| Lease { holder: holder.to_owned(), epoch }))
    }

    async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<(), StoreError> {
        let sql =
            format!("UPDATE runspan_lease SET expires_at = {NOW} + ?3 WHERE holder = ?1 AND epoch = ?2");
        let renewed = sqlx::query(AssertSqlSafe(sql))
            .bind(&lease.holder)
            .bind(lease.epoch)
            .bind(micros(term))
            .execute(&self.pool)
            .await?;
        if renewed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), StoreError> {
        let released =
            sqlx::query("UPDATE runspan_lease SET expires_at = 0 WHERE holder = ?1 AND epoch = ?2")
                .bind(&lease.holder)
                .bind(lease.epoch)
                .execute(&self.pool)
                .await?;
        if released.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
    }
}

fn micros(term: Duration) -> i64 {
    i64::try_from(term.as_micros()).unwrap_or(i64::MAX)
}

impl SqliteStore {
    /// Begins a transaction that only the lease's holder can make.
    pub(super) async fn fenced(&self, lease: &Lease) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let mut tx = self.writing().await?;
        sqlx::query("SELECT 1 FROM runspan_lease WHERE holder = ?1 AND epoch = ?2")
            .bind(&lease.holder)
            .bind(lease.epoch)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(StoreError::LeaseLost)?;
        Ok(tx)
    }
}
