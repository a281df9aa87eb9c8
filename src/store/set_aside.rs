//! Entries of the journal that cannot be parsed: kept whole, with the reason, out of the way.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::{Selection, StoreError};

/// The most entries that are kept: the oldest are dropped.
pub(super) const MAX_SET_ASIDE: i64 = 10_000;

/// An entry that was set aside.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// Its key: its position in the journal, as a rule.
    pub seq: i64,
    /// When it was set aside: RFC 3339.
    pub set_aside_at: String,
    /// Why it cannot be parsed.
    pub error: String,
    /// Its columns.
    pub entry: Value,
}

/// Manages the entries that were set aside.
#[async_trait]
pub trait SetAsideStore: Send + Sync + 'static {
    /// The entries, oldest first, at most `limit`.
    async fn list_set_aside(&self, limit: usize) -> Result<Vec<SetAside>, StoreError>;

    /// Moves entries back into the journal, behind all others; how many.
    async fn retry_set_aside(&self, selection: &Selection) -> Result<u64, StoreError>;

    /// Drops entries; how many.
    async fn discard_set_aside(&self, selection: &Selection) -> Result<u64, StoreError>;
}
