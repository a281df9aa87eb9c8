//! Which database this is: what `service.instance.id` is made of, and whether another one has the same past.

use async_trait::async_trait;

use super::super::error::is_unavailable;
use super::super::{IdentityStore, StoreError};
use super::PgStore;

/// A failover or a restore begins a new timeline; a database restored from a dump has another oid. The timeline is that of the
/// log being written: the last checkpoint's may still be the one before.
const INSTANCE: &str = "
    SELECT format('%s-%s-%s', s.system_identifier,
               ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int, d.oid)
           || CASE WHEN is_copy THEN '-' || left(id, 8) ELSE '' END
    FROM pg_control_system() s, pg_database d, runspan.meta WHERE d.datname = current_database()";

/// Where these functions are revoked or not supported (Aurora): the history is taken as one.
const INSTANCE_BY_ID: &str = "
    SELECT format('%s-%s', id, d.oid) FROM pg_database d, runspan.meta WHERE d.datname = current_database()";

#[async_trait]
impl IdentityStore for PgStore {
    async fn instance(&self) -> Result<String, StoreError> {
        match sqlx::query_scalar(INSTANCE).fetch_one(&self.pool).await {
            Err(error) if is_unavailable(&error) => {
                tracing::debug!("the server does not tell its history: {error}");
                Ok(sqlx::query_scalar(INSTANCE_BY_ID).fetch_one(&self.pool).await?)
            }
            instance => Ok(instance?),
        }
    }

    /// Copies within a server (`CREATE DATABASE … TEMPLATE`, a restored dump) are certain: the original is there.
    async fn check_original(&self) -> Result<(), StoreError> {
        let instance = self.instance().await?;
        let last: Option<String> =
            sqlx::query_scalar("SELECT instance FROM runspan.commits ORDER BY id DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await?;
        let Some((server, database)) = last.as_deref().and_then(server_and_database) else { return Ok(()) };
        if server_and_database(&instance).is_none_or(|(same, own)| same != server || own == database) {
            return Ok(());
        }
        let original: Option<String> =
            sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE oid::text = $1")
                .bind(database)
                .fetch_optional(&self.pool)
                .await?;
        original
            .map_or(Ok(()), |original| Err(StoreError::Copied { original: format!("database {original:?}") }))
    }

    async fn reset_identity(&self) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        // The lease first, as every relay does: none commits in between, and the one that has it loses it.
        sqlx::query("UPDATE runspan.lease SET holder = NULL, epoch = epoch + 1, expires_at = 'epoch'")
            .execute(&mut *tx)
            .await?;
        for table in ["journal", "set_aside", "open_runs", "commits", "outbox", "series", "deltas"] {
            // Safe: this function's own text.
            sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM runspan.{table}")))
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("UPDATE runspan.meta SET id = replace(gen_random_uuid()::text, '-', ''), is_copy = true")
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

/// The server (its system identifier, or an id) and the database (its oid) in an instance, without the timeline.
fn server_and_database(instance: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = instance.split('-').collect();
    match parts.as_slice() {
        [server, _, database] | [server, _, database, _] | [server, database] => Some((server, database)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_names_server_and_database() {
        assert_eq!(server_and_database("7412-3-16384"), Some(("7412", "16384")));
        assert_eq!(server_and_database("7412-3-16384-0a1b2c3d"), Some(("7412", "16384")));
        assert_eq!(server_and_database("0a1b2c3d-16384"), Some(("0a1b2c3d", "16384")));
        assert_eq!(server_and_database("one"), None);
    }
}
