//! The state of the database.

use async_trait::async_trait;
use sqlx::Row as _;

use super::super::error::{check_schema_version, is_missing};
use super::super::{CaptureProblem, StatusStore, StoreError, StoreStatus, Stuck};
use super::as_owner::Roles;
use super::capture::{self, triggers};
use super::{PgStore, stuck};

/// How journal and outbox stand, in one statement.
const STATUS: &str = "
    SELECT j.entries, extract(epoch FROM clock_timestamp() - j.oldest)::float8,
           o.waiting, o.bytes, extract(epoch FROM clock_timestamp() - o.oldest)::float8, o.dead,
           (SELECT count(*) FROM runspan.set_aside),
           (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM runspan.journal_skipped),
           (SELECT count(*) FROM runspan.open_runs)
    FROM (SELECT count(*) AS entries, min(at) AS oldest FROM runspan.journal) j,
         (SELECT count(*) FILTER (WHERE dead IS NULL) AS waiting,
                 coalesce(sum(bytes) FILTER (WHERE dead IS NULL), 0)::bigint AS bytes,
                 min(created_at) FILTER (WHERE dead IS NULL) AS oldest,
                 count(*) FILTER (WHERE dead IS NOT NULL) AS dead
          FROM runspan.outbox) o";

#[async_trait]
impl StatusStore for PgStore {
    async fn check(&self) -> Result<(), StoreError> {
        // Anew each time: schemas change hands.
        let roles = Roles::of(&self.pool.for_catalogue()).await?;
        if roles.owner.is_none() {
            return Err(StoreError::NotAttached);
        }
        roles.check().map_err(|error| sqlx::Error::Configuration(Box::new(error)))?;
        let version = sqlx::query_scalar::<_, i32>("SELECT version FROM runspan.meta")
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| if is_missing(&error) { StoreError::NotAttached } else { error.into() })?
            .ok_or(StoreError::NotAttached)?;
        check_schema_version(version)
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let row = sqlx::query(STATUS).fetch_one(&self.pool).await?;
        Ok(StoreStatus {
            journal_entries: row.try_get(0)?,
            journal_oldest_seconds: row.try_get(1)?,
            waiting_requests: row.try_get(2)?,
            waiting_bytes: row.try_get(3)?,
            waiting_oldest_seconds: row.try_get(4)?,
            dead_requests: row.try_get(5)?,
            set_aside_entries: row.try_get(6)?,
            skipped_entries: row.try_get(7)?,
            open_runs: row.try_get(8)?,
        })
    }

    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError> {
        stuck::stuck(&self.pool, limit).await
    }

    async fn attached_table(&self) -> Result<Option<String>, StoreError> {
        let triggers = triggers(&self.pool.for_catalogue()).await?;
        Ok(triggers.into_iter().next().map(|trigger| trigger.table))
    }

    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError> {
        capture::capture(self).await
    }
}
