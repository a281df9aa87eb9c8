//! The lease: which relay may write, one at a time.
//!
//! Every transaction of a relay begins by locking the lease's row with its holder and epoch. So a relay that slept past its
//! lease changes nothing, whatever it believes.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;

/// The right to relay, held by this process until another takes it. Only a store makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(super) holder: String,
    pub(super) epoch: i64,
}

impl Lease {
    /// Who holds it.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Rises whenever the lease changes hands.
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }
}

/// The lease as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Who holds it, if anyone ever did.
    pub holder: Option<String>,
    /// Rises whenever the lease changes hands.
    pub epoch: i64,
    /// When it expires by the database's clock, in microseconds since the epoch.
    pub expires_at: i64,
    /// Whether it has expired, by the database's clock.
    pub expired: bool,
}

/// Takes, renews and releases the lease.
#[async_trait]
pub trait LeaseStore: Send + Sync + 'static {
    /// The lease as it stands.
    async fn lease(&self) -> Result<LeaseView, StoreError>;

    /// Takes the lease if it still is as `seen`.
    async fn take_lease(
        &self,
        seen: &LeaseView,
        holder: &str,
        term: Duration,
    ) -> Result<Option<Lease>, StoreError>;

    /// Prolongs the lease by `term` from now.
    async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<(), StoreError>;

    /// Gives the lease back, so that another may take it at once.
    async fn release_lease(&self, lease: &Lease) -> Result<(), StoreError>;
}
