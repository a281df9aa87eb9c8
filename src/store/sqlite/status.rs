//! The state of the file.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::error::check_schema_version;
use super::super::{CaptureProblem, StatusStore, StoreError, StoreStatus, Stuck};
use super::capture::{Placed, attached_table};
use super::sql::{NOW, quoted};
use super::{SqliteStore, attach, stuck};

/// How journal and outbox stand, in one statement.
const STATUS: &str = "
    SELECT j.entries, ({now} - j.oldest) / 1e6,
           o.waiting, o.bytes, ({now} - o.oldest) / 1e6, o.dead,
           (SELECT count(*) FROM runspan_set_aside),
           (SELECT count(*) FROM runspan_open_runs),
           (SELECT skipped FROM runspan_meta), (SELECT max_journal_entries FROM runspan_meta)
    FROM (SELECT count(*) AS entries, min(at) AS oldest FROM runspan_journal) j,
         (SELECT count(*) FILTER (WHERE dead IS NULL) AS waiting,
                 coalesce(sum(bytes) FILTER (WHERE dead IS NULL), 0) AS bytes,
                 min(created_at) FILTER (WHERE dead IS NULL) AS oldest,
                 count(*) FILTER (WHERE dead IS NOT NULL) AS dead
          FROM runspan_outbox) o";

#[async_trait]
impl StatusStore for SqliteStore {
    async fn check(&self) -> Result<(), StoreError> {
        self.file()?;
        let mut connection = self.pool.acquire().await?;
        check_schema_version(attach::installed_version(&mut connection).await?)
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let row = sqlx::query(AssertSqlSafe(STATUS.replace("{now}", NOW))).fetch_one(&self.pool).await?;
        Ok(StoreStatus {
            journal_entries: row.try_get(0)?,
            journal_oldest_seconds: row.try_get(1)?,
            waiting_requests: row.try_get(2)?,
            waiting_bytes: row.try_get(3)?,
            waiting_oldest_seconds: row.try_get(4)?,
            dead_requests: row.try_get(5)?,
            set_aside_entries: row.try_get(6)?,
            open_runs: row.try_get(7)?,
            skipped_entries: row.try_get(8)?,
            journal_limit: row.try_get(9)?,
        })
    }

    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError> {
        stuck::stuck(&self.pool, limit).await
    }

    async fn attached_table(&self) -> Result<Option<String>, StoreError> {
        self.file()?;
        let mut connection = self.pool.acquire().await?;
        Ok(attached_table(&mut connection).await?.map(|name| quoted(&name)))
    }

    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError> {
        self.file()?;
        let mut snapshot = self.pool.begin().await?;
        Ok(Placed::read(&mut snapshot).await?.problems())
    }
}
