//! Journal and open runs.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::rows::stored;
use super::super::set_aside::MAX_SET_ASIDE;
use super::super::{Batch, Commit, JournalStore, Lease, Position, Reconciled, StoreError};
use super::rows::{MOVE_ALL, SET_ASIDE, open_run, read_row};
use super::{SqliteStore, capture, outbox, reconcile, rows, series, sql};
use crate::journal::Entry;
use crate::projection::Tracked;
use crate::run::RunId;

#[async_trait]
impl JournalStore for SqliteStore {
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
            sqlx::query(
                "DELETE FROM runspan_set_aside
                 WHERE seq <= (SELECT seq FROM runspan_set_aside ORDER BY seq DESC LIMIT 1 OFFSET ?1)",
            )
            .bind(MAX_SET_ASIDE)
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
            outbox::insert(&mut tx, id, id, None, request).await?;
        }
        series::append(&mut tx, &self.deltas, &commit.totals).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        reconcile::reconcile(self).await
    }

    /// The triggers look at the journal itself.
    async fn make_room(&self) -> Result<(), StoreError> {
        Ok(())
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
}

impl SqliteStore {
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
