//! Counts what a purge would discard.

use sqlx::PgConnection;

use super::super::admin::PurgeLoss;
use super::super::{StoreError, rows};
use super::as_owner::{Roles, read_as_owner};
use super::{PgStore, grants};

/// What is counted, and where. A table that was dropped holds nothing.
const COUNTED: [(&str, &str); 5] = [
    ("journal", "true"),
    ("outbox", "dead IS NULL"),
    ("outbox", "dead IS NOT NULL"),
    ("set_aside", "true"),
    ("open_runs", "true"),
];

/// What a purge would remove; nothing where there is no schema.
pub(super) async fn loss(store: &PgStore) -> Result<Option<PurgeLoss>, StoreError> {
    let mut tx = store.pool.begin_admin().await?;
    let Roles { owner: Some(owner), is_owner, .. } = Roles::of(&mut *tx).await? else { return Ok(None) };
    let mut loss = PurgeLoss::default();
    grants::of_purge(&mut tx, &mut loss).await?;
    let query = counts(&mut tx).await?;
    let counts = if is_owner {
        // Safe: this module's own text.
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT {query}"))).fetch_one(&mut *tx).await?
    } else {
        read_as_owner(store.pool.detached().await?, &owner, &query).await?
    };
    let counts: Option<String> = counts;
    let counts: [i64; 5] = rows::decode_counts(counts.as_deref().unwrap_or_default())?;
    [loss.entries, loss.waiting, loss.dead, loss.set_aside, loss.open_runs] = counts;
    Ok(Some(loss))
}

/// An expression that yields a JSON list of all counts.
async fn counts(connection: &mut PgConnection) -> Result<String, StoreError> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('runspan') AND relkind = 'r'",
    )
    .fetch_all(connection)
    .await?;
    let counts = COUNTED.map(|(table, condition)| {
        if tables.iter().any(|there| there == table) {
            format!("(SELECT count(*) FROM runspan.{table} WHERE {condition})")
        } else {
            "0".to_owned()
        }
    });
    Ok(format!("json_build_array({})::text", counts.join(", ")))
}
