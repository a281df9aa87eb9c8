//! PostgreSQL 14 or newer: many writers, standby relays, no extension.

pub(super) mod as_owner;
mod attach;
mod capture;
mod functions;
mod grants;
mod inspect;
mod outbox;
mod pool;
mod purge;
mod rows;
mod series;
mod stuck;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgRow};

use self::as_owner::Roles;
use self::outbox::Origin;
use self::pool::{Pool, Tx};
use self::rows::{open_run, read_row};
use super::rows::{channel, count, stored};
use super::{
    Batch, Channel, Commit, Lease, LeaseView, Listed, Pending, Position, Reconciled, Request, Selection,
    Settlement, Store, StoreError, StoreStatus, Stuck, Trimmed, fits,
};
use crate::journal::Entry;
use crate::projection::Tracked;
use crate::run::{RunId, Timestamp};

/// Below a lease's term: a relay that was stopped inside a transaction must not keep the lease's row locked.
const IDLE_IN_TRANSACTION: &str = "5s";

/// So many rows of the application's are locked at once, for a few milliseconds.
const ADOPTED_AT_ONCE: usize = 100;

/// A call of `runspan.catch_up()` that makes this many entries may have left some (the LIMIT in `relay_functions.sql`).
const CAUGHT_UP_AT_ONCE: i64 = 10_000;

/// SQLSTATE `undefined_table`, and `invalid_schema_name`.
const MISSING: [&str; 2] = ["42P01", "3F000"];

/// A PostgreSQL database.
#[derive(Clone)]
pub(super) struct PgStore {
    pool: Pool,
}

impl PgStore {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self { pool: Pool::new(options) }
    }

    /// Begins a transaction that only the lease's holder can make: the lease's row stays locked until it ends.
    async fn fenced(&self, lease: &Lease) -> Result<Tx, StoreError> {
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

#[async_trait]
impl Store for PgStore {
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
            .map_err(|error| match error.as_database_error().and_then(DatabaseError::code) {
                Some(code) if MISSING.contains(&code.as_ref()) => StoreError::NotAttached,
                _ => error.into(),
            })?
            .ok_or(StoreError::NotAttached)?;
        fits(version)
    }

    async fn instance(&self) -> Result<String, StoreError> {
        // A failover or a restore begins a new timeline; a database restored from a dump has another oid. The
        // timeline is that of the log being written: the last checkpoint's may still be the one before.
        Ok(sqlx::query_scalar(
            "SELECT format('%s-%s-%s', s.system_identifier,
                        ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int, d.oid)
             FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()",
        )
        .fetch_one(&self.pool)
        .await?)
    }

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
        sqlx::query("UPDATE runspan.lease SET expires_at = 'epoch' WHERE holder = $1 AND epoch = $2")
            .bind(&lease.holder)
            .bind(lease.epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn position(&self, instance: &str) -> Result<Position, StoreError> {
        let row = sqlx::query(
            "SELECT instance, low, pending_seq, pending_bound FROM runspan.commits ORDER BY id DESC LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(Position::default()) };
        // After a failover or a restore sequences may have gone back: a mark from before could hide entries.
        if row.try_get::<&str, _>(0)? != instance {
            return Ok(Position::default());
        }
        let pending = match (row.try_get(2)?, row.try_get(3)?) {
            (Some(seq), Some(bound)) => Some(Pending { seq, bound }),
            _ => None,
        };
        Ok(Position::from_mark(row.try_get(1)?, pending))
    }

    async fn read(&self, position: Position, limit: usize) -> Result<Batch, StoreError> {
        let (above, below) = unread(&position);
        let read = || sqlx::query(rows::READ.as_str()).bind(&above).bind(&below).bind(stored(limit));
        let rows = self.pool.fetch_texts(read).await?;
        let Some(last) = rows.last() else { return Ok(Batch { entries: Vec::new(), position }) };
        let (xmin, bound) = (last.try_get("xmin")?, last.try_get("bound")?);
        let entry = |row: &PgRow| -> Result<_, StoreError> {
            let row = read_row(row)?;
            Ok((row.seq, Entry::try_from(row)))
        };
        let entries = rows.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let seqs: Vec<i64> = entries.iter().map(|(seq, _)| *seq).collect();
        Ok(Batch { position: position.advance(&seqs, xmin, bound), entries })
    }

    async fn open_runs(&self, runs: &[RunId]) -> Result<HashMap<RunId, Tracked>, StoreError> {
        let ids: Vec<uuid::Uuid> = runs.iter().map(|run| run.uuid()).collect();
        sqlx::query("SELECT run_id, state FROM runspan.open_runs WHERE run_id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(open_run)
            .collect()
    }

    async fn commit(&self, lease: &Lease, instance: &str, commit: &Commit) -> Result<(), StoreError> {
        let mut tx = self.fenced(lease).await?;
        if !commit.set_aside.is_empty() {
            let (seqs, errors): (Vec<i64>, Vec<&str>) =
                commit.set_aside.iter().map(|(seq, error)| (*seq, error.as_str())).unzip();
            sqlx::query(
                // A position may come again, if somebody has set the sequence back.
                "INSERT INTO runspan.set_aside (seq, error, entry)
                 SELECT CASE WHEN EXISTS (SELECT FROM runspan.set_aside s WHERE s.seq = j.seq)
                             THEN greatest((SELECT max(s.seq) FROM runspan.set_aside s), max(j.seq) OVER ())
                                  + row_number() OVER (ORDER BY j.seq)
                             ELSE j.seq END,
                     e.error, to_jsonb(j)
                 FROM runspan.journal j JOIN unnest($1::bigint[], $2::text[]) e (seq, error) USING (seq)",
            )
            .bind(seqs)
            .bind(errors)
            .execute(&mut *tx)
            .await?;
        }
        if !commit.consumed.is_empty() {
            // By key: a range would also remove what commits late in between.
            let deleted = sqlx::query("DELETE FROM runspan.journal WHERE seq = ANY($1)")
                .bind(&commit.consumed)
                .execute(&mut *tx)
                .await?
                .rows_affected();
            if deleted != commit.consumed.len() as u64 {
                let deleted = usize::try_from(deleted).unwrap_or(usize::MAX);
                return Err(StoreError::JournalChanged { read: commit.consumed.len(), deleted });
            }
        }
        rows::write_open_runs(&mut tx, &commit.opened, &commit.closed).await?;
        for (before, request) in commit.requests.iter().enumerate() {
            outbox::insert(&mut tx, request, Origin::Commit(before)).await?;
        }
        series::append(&mut tx, &commit.totals).await?;
        // Not by the sequence, which somebody may set back: the newest has to have the greatest id.
        sqlx::query(
            "WITH next AS (
                 INSERT INTO runspan.commits (id, instance, low, pending_seq, pending_bound) OVERRIDING SYSTEM VALUE
                 SELECT coalesce(max(id), 0) + 1, $1, $2, $3, $4 FROM runspan.commits RETURNING id)
             DELETE FROM runspan.commits USING next WHERE commits.id < next.id AND next.id % 100 = 0",
        )
        .bind(instance)
        .bind(commit.position.low)
        .bind(commit.position.pending.map(|pending| pending.seq))
        .bind(commit.position.pending.map(|pending| pending.bound))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn bring_forward(&self, position: &Position, everywhere: bool) -> Result<Option<u64>, StoreError> {
        let (above, below) = unread(position);
        // Without the lease: whoever reads an entry at one place consumes it there or not at all.
        let moved: Option<i64> = sqlx::query_scalar("SELECT runspan.bring_forward($1, $2, $3)")
            .bind(above)
            .bind(below)
            .bind(everywhere)
            .fetch_one(&self.pool)
            .await?;
        Ok(moved.map(i64::unsigned_abs))
    }

    async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        let mut all = Reconciled::default();
        let mut tx = self.pool.begin().await?;
        // Not as rows: there may be a million.
        let missed: Vec<_> = sqlx::query_scalar::<_, uuid::Uuid>("SELECT runspan.missed_runs()")
            .fetch(&mut *tx)
            .try_collect()
            .await?;
        tx.commit().await?;
        for runs in missed.chunks(ADOPTED_AT_ONCE) {
            let runs: Vec<String> = runs.iter().map(ToString::to_string).collect();
            let adopt = format!("SELECT runspan.adopt('{{{}}}'::pg_catalog.uuid[])", runs.join(","));
            let adopted: i64 =
                self.pool.at_once(&adopt).await?.first().map_or(Ok(0), |row| row.try_get(0))?;
            all.entries += adopted.unsigned_abs();
        }
        loop {
            let mut tx = self.pool.begin().await?;
            let (entries, vanished): (i64, i64) =
                sqlx::query_as("SELECT entries, vanished FROM runspan.catch_up()")
                    .fetch_one(&mut *tx)
                    .await?;
            tx.commit().await?;
            all.entries += entries.unsigned_abs();
            all.vanished += vanished.unsigned_abs();
            if entries < CAUGHT_UP_AT_ONCE {
                return Ok(all);
            }
        }
    }

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
            outbox::settle(&mut tx, settlement).await?;
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

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let row = sqlx::query(rows::STATUS).fetch_one(&self.pool).await?;
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

    async fn list(&self, limit: usize) -> Result<Vec<Listed>, StoreError> {
        sqlx::query(
            "SELECT id, channel, created_at, items, bytes, dead
             FROM runspan.outbox ORDER BY place, id LIMIT $1",
        )
        .bind(stored(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| {
            Ok(Listed {
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

/// What is yet to be read, as the statements take it.
fn unread(position: &Position) -> (Vec<i64>, Vec<i64>) {
    position.unread().iter().map(|unread| (unread.above, unread.below)).unzip()
}
