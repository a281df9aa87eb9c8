//! Journal and open runs.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::rows::stored;
use super::super::set_aside::MAX_SET_ASIDE;
use super::super::{Batch, Commit, JournalStore, Lease, Pending, Position, Reconciled, StoreError};
use super::outbox::Origin;
use super::rows::{open_run, read_row};
use super::{PgStore, outbox, reconcile, rows, series};
use crate::journal::Entry;
use crate::projection::Tracked;
use crate::run::RunId;

#[async_trait]
impl JournalStore for PgStore {
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
        sqlx::query("SELECT run_id, state FROM runspan.open_runs WHERE run_id = ANY($1)")
            .bind(runs)
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
                // A position may come again if the sequence was set back.
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
            sqlx::query(
                "DELETE FROM runspan.set_aside
                 WHERE seq <= (SELECT seq FROM runspan.set_aside ORDER BY seq DESC OFFSET $1 LIMIT 1)",
            )
            .bind(MAX_SET_ASIDE)
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
        // Not by the sequence, which may be set back: the newest must have the greatest id.
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

    async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        reconcile::reconcile(&self.pool).await
    }

    async fn make_room(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT runspan.make_room()").execute(&self.pool).await?;
        Ok(())
    }

    async fn bring_forward(&self, position: &Position, everywhere: bool) -> Result<Option<u64>, StoreError> {
        let (above, below) = unread(position);
        // Without the lease: a relay that has read an entry at one position consumes it there or not at all.
        let moved: Option<i64> = sqlx::query_scalar("SELECT runspan.bring_forward($1, $2, $3)")
            .bind(above)
            .bind(below)
            .bind(everywhere)
            .fetch_one(&self.pool)
            .await?;
        Ok(moved.map(i64::unsigned_abs))
    }
}

/// The unread ranges, as parameters of a statement.
fn unread(position: &Position) -> (Vec<i64>, Vec<i64>) {
    position.unread().iter().map(|unread| (unread.above, unread.below)).unzip()
}
