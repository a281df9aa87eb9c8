//! Which database this is, and whether it is a copy of another one.

use async_trait::async_trait;

use super::StoreError;

/// Distinguishes a database from its copies.
#[async_trait]
pub trait IdentityStore: Send + Sync + 'static {
    /// `service.instance.id`: identifies this database and this stretch of its history (a failover begins another).
    async fn instance(&self) -> Result<String, StoreError>;

    /// Fails with [`StoreError::Copied`] if this database is certainly a copy: it would send once more what the original has
    /// sent or will send.
    async fn check_original(&self) -> Result<(), StoreError>;

    /// Gives a copy an identity of its own, and discards what it has of the original: journal, open runs, outbox and metrics.
    async fn reset_identity(&self) -> Result<(), StoreError>;
}
