//! Reads the view `runspan.stuck`.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::StoreError;
use super::super::rows::stored;
use super::super::stuck::{Stuck, StuckRun};
use super::pool::Pool;
use super::rows::{text, time};
use crate::run::Timestamp;

pub(super) async fn stuck(pool: &Pool, limit: usize) -> Result<Stuck, StoreError> {
    let sql = "SELECT run_id, workflow_name, target, target_owner, target_repo, status, since, age_seconds,
                usual_seconds, parent_run_id, delivery_id, count(*) OVER ()
         FROM runspan.stuck ORDER BY age_seconds DESC, run_id LIMIT $1";
    let rows = pool.fetch_texts(|| sqlx::query(sql).bind(stored(limit))).await?;
    Ok(Stuck {
        count: rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>(11))?.unsigned_abs(),
        runs: rows.iter().map(run).collect::<Result<_, _>>()?,
    })
}

fn run(row: &PgRow) -> Result<StuckRun, StoreError> {
    Ok(StuckRun {
        run_id: row.try_get(0)?,
        workflow_name: text(row, 1)?.unwrap_or_default(),
        target: text(row, 2)?,
        target_owner: text(row, 3)?,
        target_repo: text(row, 4)?,
        status: row.try_get(5)?,
        since: time(row, 6)?.map(|micros| Timestamp::from_micros(micros).to_string()),
        age_seconds: row.try_get(7)?,
        usual_seconds: row.try_get(8)?,
        parent_run_id: row.try_get(9)?,
        delivery_id: text(row, 10)?,
    })
}
