//! Which file this is: its id, and whether another file has the same past.

use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::super::{IdentityStore, StoreError};
use super::{BUSY_TIMEOUT, SqliteStore};

#[async_trait]
impl IdentityStore for SqliteStore {
    /// A random id, made at attach and kept in the file. A copied file is the same history, and an older copy
    /// put back in its place cannot be distinguished from it.
    async fn instance(&self) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("SELECT instance FROM runspan_meta").fetch_one(&self.pool).await?)
    }

    /// A file is a copy if the one that a relay last used is still there, is another file, and has the same id. A moved file
    /// and one that was put back in its place are not.
    async fn check_original(&self) -> Result<(), StoreError> {
        let Ok(path) = self.path.canonicalize() else { return Ok(()) };
        let (instance, last): (String, Option<String>) =
            sqlx::query_as("SELECT instance, path FROM runspan_meta").fetch_one(&self.pool).await?;
        let path = path.to_string_lossy().into_owned();
        match last {
            Some(last) if last == path => return Ok(()),
            Some(last) if !is_same_file(&last, &path) && has_instance(&last, &instance).await => {
                return Err(StoreError::Copied { original: last });
            }
            _ => {}
        }
        sqlx::query("UPDATE runspan_meta SET path = ?1").bind(path).execute(&self.pool).await?;
        Ok(())
    }

    async fn reset_identity(&self) -> Result<(), StoreError> {
        let mut tx = self.writing().await?;
        sqlx::raw_sql(
            "UPDATE runspan_lease SET holder = NULL, epoch = epoch + 1, expires_at = 0;
             DELETE FROM runspan_journal;
             DELETE FROM runspan_set_aside;
             DELETE FROM runspan_open_runs;
             DELETE FROM runspan_outbox;
             DELETE FROM runspan_series;
             DELETE FROM runspan_deltas;
             UPDATE runspan_meta SET instance = 'sqlite-' || lower(hex(randomblob(16))), path = NULL;",
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}

/// Whether two paths lead to one file, as hard links do.
fn is_same_file(one: &str, other: &str) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;

        let id = |path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        id(one) == id(other)
    }
    #[cfg(not(unix))]
    {
        one == other
    }
}

/// Whether the file at `path` is one of runspan's with this id. It is only read.
async fn has_instance(path: &str, instance: &str) -> bool {
    let options = SqliteConnectOptions::new()
        .filename(Path::new(path))
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT);
    let Ok(mut other) = options.connect().await else { return false };
    let found: Result<String, _> =
        sqlx::query_scalar("SELECT instance FROM runspan_meta").fetch_one(&mut other).await;
    let _ = other.close().await;
    found.is_ok_and(|found| found == instance)
}
