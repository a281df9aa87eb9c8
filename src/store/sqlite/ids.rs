//! Ids that rise whatever becomes of SQLite's own counter.
//!
//! `sqlite_sequence` is a table that anyone may change, and a script that sets it back is no rare one. An id that is given
//! twice would collide with a request that waits, or lie before the place up to which this process has read.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::store::StoreError;

/// The ids of one of runspan's tables.
#[derive(Clone)]
pub(super) struct Ids {
    table: &'static str,
    /// The highest one that this process has given or read.
    highest: Arc<AtomicI64>,
}

impl Ids {
    pub(super) fn new(table: &'static str) -> Self {
        Self { table, highest: Arc::default() }
    }

    /// Notes an id that was read.
    pub(super) fn seen(&self, id: i64) {
        self.highest.fetch_max(id, Ordering::Relaxed);
    }

    /// The next id, above any that is in the table and any that this process knows. For the holder of the write lock.
    pub(super) async fn next(&self, tx: &mut SqliteConnection) -> Result<i64, StoreError> {
        let table = self.table;
        let sql = format!(
            "SELECT 1 + max(?1, coalesce((SELECT max(id) FROM {table}), 0),
                 coalesce((SELECT max(CAST(seq AS INTEGER)) FROM sqlite_sequence WHERE name = '{table}'), 0))"
        );
        let highest = self.highest.load(Ordering::Relaxed);
        // Safe: the table's name is this crate's own.
        let id = sqlx::query_scalar(AssertSqlSafe(sql)).bind(highest).fetch_one(tx).await?;
        self.seen(id);
        Ok(id)
    }
}
