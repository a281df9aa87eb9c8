//! One SQLite file that its writers and the relay share: the embedded default.
//!
//! Write-ahead log, so that readers and the writer do not block each other; writes are `BEGIN IMMEDIATE` and
//! short, since while they last every other writer waits.

mod attach;
mod capture;
mod ids;
mod reconcile;
mod rows;
mod series;
mod sql;
mod stuck;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row as _, Sqlite, SqliteConnection, Transaction};

use self::ids::Ids;
use self::rows::{MOVE_ALL, SET_ASIDE, STATUS, open_run, read_row};
use self::sql::NOW;
use super::rows::{channel, count, stored};
use super::{
    Batch, Channel, Commit, Lease, LeaseView, Listed, NewRequest, Position, Reconciled, Request, Selection,
    Settlement, Store, StoreError, StoreStatus, Stuck, Trimmed, fits,
};
use crate::journal::Entry;
use crate::projection::Tracked;
use crate::run::{RunId, Timestamp};

/// How long a statement waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite file.
#[derive(Clone)]
pub(super) struct SqliteStore {
    path: PathBuf,
    pool: SqlitePool,
    requests: Ids,
    deltas: Ids,
}

impl SqliteStore {
    pub(super) fn new(path: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            // A mistyped path is an error, not an empty database.
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            // What a receiver has acknowledged must not be sent otherwise after a power cut. At a process kill
            // alone NORMAL would lose nothing either; the relay commits seldom enough to afford the sync.
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(6)
            .acquire_timeout(BUSY_TIMEOUT)
            .idle_timeout(Duration::from_mins(1))
            .connect_lazy_with(options);
        Self {
            path: path.to_owned(),
            pool,
            requests: Ids::new("runspan_outbox"),
            deltas: Ids::new("runspan_deltas"),
        }
    }

    /// Begins a transaction that no other writer can interrupt.
    async fn writing(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Begins a transaction that only the lease's holder can make.
    async fn fenced(&self, lease: &Lease) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let mut tx = self.writing().await?;
        sqlx::query("SELECT 1 FROM runspan_lease WHERE holder = ?1 AND epoch = ?2")
            .bind(&lease.holder)
            .bind(lease.epoch)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(StoreError::LeaseLost)?;
        Ok(tx)
    }

    /// That there is a file: SQLite's own words do not name it.
    fn file(&self) -> Result<(), StoreError> {
        if self.path.is_file() {
            return Ok(());
        }
        Err(StoreError::Unfit(format!(
            "there is no database file {}: create it with your table first, or name yours with --database-url \
             sqlite:PATH",
            self.path.display()
        )))
    }

    /// The roots of the runs that refusals collided with: the view's trigger leaves them to the reader.
    async fn find_roots(&self, rows: &mut [rows::Read]) -> Result<(), StoreError> {
        let without = |row: &&mut rows::Read| {
            row.as_ref().is_ok_and(|row| row.run_id.is_none() && row.inflight_run_id.is_some())
        };
        let mut refusals = rows.iter_mut().filter(without).peekable();
        if refusals.peek().is_none() {
            return Ok(());
        }
        let mut connection = self.pool.acquire().await?;
        let Some(table) = capture::attached_table(&mut connection).await? else { return Ok(()) };
        let sql = sql::root_of(&sql::quoted(&table));
        for row in refusals.flatten() {
            // Safe: built from this crate's own text and a quoted name.
            let root = sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(row.inflight_run_id.map(|run| run.hyphenated().to_string()))
                .fetch_optional(&mut *connection)
                .await?;
            row.root_run_id = match root {
                Some(root) => rows::text(&root, 0)?.and_then(|id| id.parse().ok()),
                None => None,
            };
        }
        Ok(())
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn check(&self) -> Result<(), StoreError> {
        self.file()?;
        let mut connection = self.pool.acquire().await?;
        fits(attach::installed_version(&mut connection).await?)
    }

    /// A random id, made at attach and kept in the file. A copied file is the same history, and an older copy
    /// put back in its place is not told from it.
    async fn instance(&self) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("SELECT instance FROM runspan_meta").fetch_one(&self.pool).await?)
    }

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
        sqlx::query("UPDATE runspan_lease SET expires_at = 0 WHERE holder = ?1 AND epoch = ?2")
            .bind(&lease.holder)
            .bind(lease.epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Always the beginning: with one writer at a time no entry can appear below another.
    async fn position(&self, _instance: &str) -> Result<Position, StoreError> {
        Ok(Position::default())
    }

    async fn read(&self, position: Position, limit: usize) -> Result<Batch, StoreError> {
        // One writer at a time: nothing appears late.
        let rows = sqlx::query(rows::READ.as_str())
            .bind(position.highest())
            .bind(stored(limit))
            .fetch_all(&self.pool)
            .await?;
        let seqs = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        let mut rows = rows.iter().map(read_row).collect::<Result<Vec<_>, StoreError>>()?;
        self.find_roots(&mut rows).await?;
        let entries = seqs.iter().copied().zip(rows.into_iter().map(|row| row.and_then(Entry::try_from)));
        Ok(Batch { position: position.advance(&seqs, 0, 0), entries: entries.collect() })
    }

    async fn open_runs(&self, runs: &[RunId]) -> Result<HashMap<RunId, Tracked>, StoreError> {
        sqlx::query(
            "SELECT run_id, state FROM runspan_open_runs WHERE run_id IN (SELECT value FROM json_each(?1))",
        )
        .bind(rows::json(&runs))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(open_run)
        .collect()
    }

    async fn commit(&self, lease: &Lease, _instance: &str, commit: &Commit) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        if !commit.set_aside.is_empty() {
            sqlx::query(AssertSqlSafe(SET_ASIDE.as_str()))
                .bind(rows::json(&commit.set_aside))
                .execute(&mut *tx)
                .await?;
        }
        if !commit.consumed.is_empty() {
            let sql = "DELETE FROM runspan_journal WHERE seq IN (SELECT value FROM json_each(?1))";
            let deleted =
                sqlx::query(sql).bind(rows::json(&commit.consumed)).execute(&mut *tx).await?.rows_affected();
            if deleted != commit.consumed.len() as u64 {
                let deleted = usize::try_from(deleted).unwrap_or(usize::MAX);
                return Err(StoreError::JournalChanged { read: commit.consumed.len(), deleted });
            }
        }
        rows::write_open_runs(&mut tx, &commit.opened, &commit.closed).await?;
        for request in &commit.requests {
            let id = self.requests.next(&mut tx).await?;
            insert_request(&mut tx, id, id, None, request).await?;
        }
        series::append(&mut tx, &self.deltas, &commit.totals).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        reconcile::reconcile(self).await
    }

    async fn bring_forward(&self, position: &Position, _everywhere: bool) -> Result<Option<u64>, StoreError> {
        let known = position.highest();
        let hidden = "SELECT count(*) FROM runspan_journal WHERE seq <= ?1";
        if sqlx::query_scalar::<_, i64>(hidden).bind(known).fetch_one(&self.pool).await? == 0 {
            return Ok(None);
        }
        let mut tx = self.writing().await?;
        let hidden: i64 = sqlx::query_scalar(hidden).bind(known).fetch_one(&mut *tx).await?;
        // The next position follows the greatest that was read or is there.
        let last: i64 = sqlx::query_scalar("SELECT max(?1, max(seq)) FROM runspan_journal")
            .bind(known)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM sqlite_sequence WHERE name = 'runspan_journal'").execute(&mut *tx).await?;
        sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES ('runspan_journal', ?1)")
            .bind(last)
            .execute(&mut *tx)
            .await?;
        sqlx::query(AssertSqlSafe(MOVE_ALL.as_str())).bind(last).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM runspan_journal WHERE seq <= ?1").bind(last).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(Some(hidden.unsigned_abs()))
    }

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
            // A trigger of SQLite's fails or writes; it has no third way.
            skipped_entries: 0,
            open_runs: row.try_get(7)?,
        })
    }

    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError> {
        stuck::stuck(&self.pool, limit).await
    }

    async fn list(&self, limit: usize) -> Result<Vec<Listed>, StoreError> {
        sqlx::query(
            "SELECT id, channel, created_at, items, bytes, dead FROM runspan_outbox ORDER BY place, id LIMIT ?1",
        )
        .bind(stored(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| {
            Ok(Listed {
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
                    insert_request(tx, id, *place, Some(*created_at), half).await?;
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

async fn insert_request(
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

fn micros(term: Duration) -> i64 {
    i64::try_from(term.as_micros()).unwrap_or(i64::MAX)
}
