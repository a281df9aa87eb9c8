//! The lease's row.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::super::{Lease, LeaseStore, LeaseView, StoreError};
use super::PgStore;
use super::pool::Tx;

/// Below a lease's term: a relay that was stopped inside a transaction must not keep the lease's row locked.
const IDLE_IN_TRANSACTION: &str = "5s";

#[async_trait]
impl LeaseStore for PgStore {
    async fn lease(&self) -> Result<LeaseView, StoreError> {
        let row = sqlx::query(
            "SELECT holder, epoch, (extract(epoch FROM expires_at) * 1000000)::bigint,
                    expires_at < clock_timestamp()
             FROM runspan.lease",
        )
        .fetch_one(&self.pool)
        .await?;
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
        let mut tx = self.pool.begin().await?;
        let epoch = sqlx::query_scalar(
            "UPDATE runspan.lease
             SET holder = $3, epoch = epoch + 1, expires_at = clock_timestamp() + make_interval(secs => $4)
             WHERE epoch = $1 AND (extract(epoch FROM expires_at) * 1000000)::bigint = $2
             RETURNING epoch",
        )
        .bind(seen.epoch)
        .bind(seen.expires_at)
        .bind(holder)
        .bind(term.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(epoch.map(|epoch| Lease { holder: holder.to_owned(), epoch }))
    }

    async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let renewed = sqlx::query(
            "UPDATE runspan.lease SET expires_at = clock_timestamp() + make_interval(secs => $3)
             WHERE holder = $1 AND epoch = $2",
        )
        .bind(&lease.holder)
        .bind(lease.epoch)
        .bind(term.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        if renewed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), StoreError> {
        let released =
            sqlx::query("UPDATE runspan.lease SET expires_at = 'epoch' WHERE holder = $1 AND epoch = $2")
                .bind(&lease.holder)
                .bind(lease.epoch)
                .execute(&self.pool)
                .await?;
        if released.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
    }
}

impl PgStore {
    /// Begins a transaction that only the lease's holder can make: the lease's row stays locked until it ends.
    pub(super) async fn fenced(&self, lease: &Lease) -> Result<Tx, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "SELECT set_config('idle_in_transaction_session_timeout', $3, true),
                    set_config('synchronous_commit', 'on', true)
             FROM runspan.lease WHERE holder = $1 AND epoch = $2 FOR UPDATE",
        )
        .bind(&lease.holder)
        .bind(lease.epoch)
        .bind(IDLE_IN_TRANSACTION)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::LeaseLost)?;
        Ok(tx)
    }
}
