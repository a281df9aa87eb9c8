//! Reconciliation, by the functions of `relay_functions.sql`: in short steps, so that no writer waits.

use futures_util::TryStreamExt as _;
use sqlx::Row as _;

use super::super::error::is_full;
use super::super::{Reconciled, StoreError};
use super::pool::Pool;
use crate::run::RunId;

/// How many rows of the application's are locked at once, for a few milliseconds.
const ADOPTED_AT_ONCE: usize = 100;

/// A call of `runspan.catch_up()` that makes this many entries may have left some (its LIMIT).
const CAUGHT_UP_AT_ONCE: i64 = 10_000;

pub(super) async fn reconcile(pool: &Pool) -> Result<Reconciled, StoreError> {
    let mut all = Reconciled::default();
    let mut tx = pool.begin().await?;
    // Not as rows: there may be a million.
    let missed: Vec<_> =
        sqlx::query_scalar::<_, RunId>("SELECT runspan.missed_runs()").fetch(&mut *tx).try_collect().await?;
    tx.commit().await?;
    for runs in missed.chunks(ADOPTED_AT_ONCE) {
        let runs: Vec<String> = runs.iter().map(ToString::to_string).collect();
        let adopt = format!("SELECT runspan.adopt('{{{}}}'::pg_catalog.uuid[])", runs.join(","));
        let adopted = match pool.at_once(&adopt).await {
            // The rest is recovered when there is room.
            Err(error) if is_full(&error) => return Ok(all),
            adopted => adopted?,
        };
        let adopted: i64 = adopted.first().map_or(Ok(0), |row| row.try_get(0))?;
        all.entries += adopted.unsigned_abs();
    }
    loop {
        let mut tx = pool.begin().await?;
        let (entries, vanished): (i64, i64) = match sqlx::query_as(
            "SELECT entries, vanished FROM runspan.catch_up()",
        )
        .fetch_one(&mut *tx)
        .await
        {
            Err(error) if is_full(&error) => return Ok(all),
            made => made?,
        };
        tx.commit().await?;
        all.entries += entries.unsigned_abs();
        all.vanished += vanished.unsigned_abs();
        if entries < CAUGHT_UP_AT_ONCE {
            return Ok(all);
        }
    }
}
