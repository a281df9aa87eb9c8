//! Reconciliation: compares the table with journal and open runs, concurrently with writers.
//!
//! SQLite has one write lock for the whole file. The comparison reads a snapshot, which takes no lock and may last as
//! long as the table is large; what it finds is written in short transactions with pauses between them, so that an
//! application that waits 50 ms for the lock gets it.

use std::time::Duration;

use sqlx::sqlite::SqliteSynchronous;
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
use tokio::time::Instant;

use super::{SqliteStore, capture, sql};
use crate::store::{Reconciled, StoreError};

/// How many rows a transaction writes.
const MOST_ROWS: i64 = 200;
const LEAST_ROWS: i64 = 10;

/// A transaction that held the lock for longer is followed by a smaller one.
const HOLD: Duration = Duration::from_millis(8);

/// SQLite tries a lock again after 1, 2, 5, 10, 15 and 20 ms: a writer that waits for 50 ms tries at least once every 20 ms.
const PAUSE: Duration = Duration::from_millis(25);

/// What the comparison found and has not written yet is in a temporary table of this connection.
struct Comparison {
    connection: SqliteConnection,
    /// Not quoted.
    table: String,
    /// Entries up to here have been looked at.
    seen: i64,
    /// What was found up to here is written.
    written: i64,
    rows: i64,
}

/// Nothing to reconcile with, once the triggers (and so the table) are gone.
pub(super) async fn reconcile(store: &SqliteStore) -> Result<Reconciled, StoreError> {
    let mut total = Reconciled::default();
    let is_full: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM runspan_journal_full)")
        .fetch_one(&store.pool)
        .await?;
    if is_full {
        return Ok(total);
    }
    let Some(mut comparison) = Comparison::new(store).await? else { return Ok(total) };
    while let Some(last) = comparison.next().await? {
        let Some(part) = comparison.write(last).await? else { break };
        total.entries += part.entries;
        total.vanished += part.vanished;
        tokio::time::sleep(PAUSE).await;
    }
    comparison.connection.close().await?;
    Ok(total)
}

impl Comparison {
    async fn new(store: &SqliteStore) -> Result<Option<Self>, StoreError> {
        // What is lost in a power cut is found again, so no transaction holds the lock while it waits for the disk.
        // A connection of its own: the relay's have to wait.
        let options = store.pool.connect_options().as_ref().clone().synchronous(SqliteSynchronous::Normal);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let mut snapshot = connection.begin().await?;
        let Some(table) = capture::attached_table(&mut snapshot).await? else { return Ok(None) };
        let seen = last_entry(&mut snapshot).await?;
        // Safe: built from this crate's own text and a quoted name.
        let find = AssertSqlSafe(sql::find(&sql::quoted(&table)));
        sqlx::raw_sql(find).execute(&mut *snapshot).await?;
        snapshot.commit().await?;
        Ok(Some(Self { connection, table, seen, written: 0, rows: MOST_ROWS }))
    }

    /// The last place of the next transaction; nothing once all is written.
    async fn next(&mut self) -> Result<Option<i64>, StoreError> {
        // Most of what has come since the last transaction is looked at without the lock.
        self.seen = forget(&mut self.connection, self.seen).await?;
        Ok(sqlx::query_scalar(
            "SELECT max(place) FROM (
                 SELECT place FROM temp.runspan_found WHERE place > ?1 ORDER BY place LIMIT ?2)",
        )
        .bind(self.written)
        .bind(self.rows)
        .fetch_one(&mut self.connection)
        .await?)
    }

    /// Writes what was found up to `last`; nothing if the table is another one by now.
    async fn write(&mut self, last: i64) -> Result<Option<Reconciled>, StoreError> {
        let table = sql::quoted(&self.table);
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let began = Instant::now();
        if capture::attached_table(&mut tx).await?.as_ref() != Some(&self.table) {
            return Ok(None);
        }
        forget(&mut tx, self.seen).await?;
        // Safe: built from this crate's own text and a quoted name.
        let missing = AssertSqlSafe(sql::missing(&table, "?1", "?2"));
        let missing =
            sqlx::query(missing).bind(self.written).bind(last).execute(&mut *tx).await?.rows_affected();
        let changed =
            AssertSqlSafe(format!("{} RETURNING to_status IS NULL", sql::changed(&table, "?1", "?2")));
        let changed = sqlx::query(changed).bind(self.written).bind(last).fetch_all(&mut *tx).await?;
        let vanished = changed.iter().map(|row| row.try_get(0)).collect::<Result<Vec<bool>, _>>()?;
        let seen = last_entry(&mut tx).await?;
        tx.commit().await?;
        let held = began.elapsed();
        self.rows = if held > HOLD { self.rows / 2 } else { self.rows * 2 }.clamp(LEAST_ROWS, MOST_ROWS);
        (self.seen, self.written) = (seen, last);
        Ok(Some(Reconciled {
            entries: missing + changed.len() as u64,
            vanished: vanished.into_iter().filter(|is_gone| *is_gone).count() as u64,
        }))
    }
}

/// Forgets what was found of runs that the journal has heard of since; up to which entry that is so.
async fn forget(connection: &mut SqliteConnection, seen: i64) -> Result<i64, StoreError> {
    let last = last_entry(connection).await?;
    let sql = format!(
        "DELETE FROM temp.runspan_found
         WHERE run IN (SELECT {} FROM runspan_journal WHERE seq > ?1 AND run_id IS NOT NULL)",
        sql::canonical("run_id")
    );
    // Safe: this crate's own text.
    sqlx::query(AssertSqlSafe(sql)).bind(seen).execute(connection).await?;
    Ok(last)
}

async fn last_entry(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM runspan_journal").fetch_one(connection).await?)
}
