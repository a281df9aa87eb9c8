//! The state of the database.

use async_trait::async_trait;
use sqlx::Row as _;

use super::super::error::{check_schema_version, is_missing};
use super::super::{CaptureProblem, StatusStore, StoreError, StoreStatus, Stuck};
use super::as_owner::Roles;
use super::capture::{self, triggers};
use super::{PgStore, stuck};

/// How journal and outbox stand, in one statement. Every few seconds by each relay, so by index: a table that is empty again
/// stays as large as it was. More than 10,000 entries or runs are not counted: entries by their positions, runs by the
/// statistics.
const STATUS: &str = "
    SELECT CASE WHEN j.counted > 10000 THEN (SELECT max(seq) FROM runspan.journal) - f.seq + 1 ELSE j.counted END,
           extract(epoch FROM clock_timestamp() - f.at)::float8,
           w.requests, w.bytes, extract(epoch FROM clock_timestamp() - w.oldest)::float8,
           (SELECT count(*) FROM runspan.outbox WHERE dead IS NOT NULL),
           (SELECT count(*) FROM (SELECT seq FROM runspan.set_aside ORDER BY seq LIMIT 10001) s),
           (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM runspan.journal_skipped),
           CASE WHEN r.counted > 10000
                THEN (SELECT greatest(reltuples::bigint, r.counted) FROM pg_class WHERE oid = 'runspan.open_runs'::regclass)
                ELSE r.counted END,
           (SELECT max_journal_entries FROM runspan.meta)
    FROM (SELECT count(*) AS counted FROM (SELECT seq FROM runspan.journal ORDER BY seq LIMIT 10001) e) j
         LEFT JOIN (SELECT seq, at FROM runspan.journal ORDER BY seq LIMIT 1) f ON true,
         (SELECT count(*) AS counted FROM (SELECT run_id FROM runspan.open_runs ORDER BY run_id LIMIT 10001) e) r,
         (SELECT count(*) AS requests, coalesce(sum(bytes), 0)::bigint AS bytes, min(created_at) AS oldest
          FROM runspan.outbox WHERE dead IS NULL) w";

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
            .map_err(|error| if is_missing(&error) { StoreError::NotAttached } else { error.into() });
        match version {
            Ok(version) => check_schema_version(version.ok_or(StoreError::NotAttached)?),
            Err(error) => Err(self.name_missing_rights(error).await),
        }
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
            journal_limit: row.try_get(9)?,
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
