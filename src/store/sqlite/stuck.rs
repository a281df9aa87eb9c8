//! Reads the stuck runs from the table.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::super::StoreError;
use super::super::rows::stored;
use super::super::stuck::{Stuck, StuckRun};
use super::{capture, rows, sql};
use crate::run::{RunId, Timestamp};

pub(super) async fn stuck(pool: &SqlitePool, limit: usize) -> Result<Stuck, StoreError> {
    let mut connection = pool.acquire().await?;
    let Some(table) = capture::attached_table(&mut connection).await? else { return Ok(Stuck::default()) };
    // Safe: built from this crate's own text and a quoted name.
    let sql = AssertSqlSafe(sql::stuck(&sql::quoted(&table)));
    let rows = sqlx::query(sql).bind(stored(limit)).fetch_all(&mut *connection).await?;
    Ok(Stuck {
        count: rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>(11))?.unsigned_abs(),
        runs: rows.iter().map(run).collect::<Result<_, _>>()?,
    })
}

fn run(row: &SqliteRow) -> Result<StuckRun, StoreError> {
    let id: String = row.try_get(0)?;
    let run_id = id.parse().map_err(|error: uuid::Error| StoreError::Corrupt {
        what: format!("the run {id:?}"),
        cause: error.to_string(),
    })?;
    let parent: Option<RunId> = rows::text(row, 9)?.and_then(|id| id.parse().ok());
    Ok(StuckRun {
        run_id,
        workflow_name: rows::text(row, 1)?.unwrap_or_default(),
        target: rows::text(row, 2)?,
        target_owner: rows::text(row, 3)?,
        target_repo: rows::text(row, 4)?,
        status: row.try_get(5)?,
        since: row.try_get::<Option<i64>, _>(6)?.map(|micros| Timestamp::from_micros(micros).to_string()),
        age_seconds: row.try_get(7)?,
        usual_seconds: row.try_get(8)?,
        parent_run_id: parent,
        delivery_id: rows::text(row, 10)?,
    })
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;

    #[tokio::test]
    async fn the_runs_in_flight_are_found_by_their_index() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        crate::runs::migrate(&mut connection).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql::schema(0))).execute(&mut connection).await.unwrap();
        let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", sql::stuck("workflow_runs")));
        let steps = sqlx::query(explained).bind(50).fetch_all(&mut connection).await.unwrap();
        let steps: Vec<String> = steps.iter().map(|step| step.get(3)).collect();
        assert!(
            steps.iter().any(|step| step == "SCAN w USING INDEX idx_workflow_runs_inflight"),
            "{steps:#?}"
        );
        assert!(steps.iter().any(|step| step.starts_with("SEARCH o USING ")), "{steps:#?}");
    }
}
