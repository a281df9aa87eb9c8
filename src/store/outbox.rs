//! The outbox: encoded requests, stored until they are acknowledged.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use super::{Lease, StoreError};
use crate::run::Timestamp;

/// Where a request is going. Each channel is sent by itself: one that is stuck stops no other.
// Stored in the outbox: for a new value bump SCHEMA_VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Spans, over OTLP.
    Traces,
    /// Log records, over OTLP.
    Logs,
    /// The same records as JSON lines, to standard output.
    Stdout,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Logs, Self::Stdout];

    /// As stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::Stdout => "stdout",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Channel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|channel| channel.as_str() == text)
            .ok_or_else(|| format!("unknown channel {text:?} (known: traces, logs, stdout)"))
    }
}

/// A request to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRequest {
    /// Where it is going.
    pub channel: Channel,
    /// How many spans or records it holds.
    pub items: usize,
    /// How many runs those tell of.
    pub runs: usize,
    /// The encoded request, gzipped.
    pub body: Bytes,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its key.
    pub id: i64,
    /// Its place in its channel: the halves of a request keep the place of the whole.
    pub place: i64,
    /// Where it is going.
    pub channel: Channel,
    /// When it was stored, by the database's clock.
    pub created_at: Timestamp,
    /// How long it has waited, in seconds, by the database's clock.
    pub age_seconds: f64,
    /// How many spans or records it holds.
    pub items: usize,
    /// How many runs those tell of.
    pub runs: usize,
    /// The encoded request, gzipped.
    pub body: Bytes,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Acknowledged: remove it.
    Delivered {
        /// The request.
        id: i64,
    },
    /// Too much at once: replace it by its halves.
    Halved {
        /// The request.
        id: i64,
        /// Its place, which the halves keep.
        place: i64,
        /// When it was stored, which the halves keep.
        created_at: Timestamp,
        /// The halves.
        halves: [NewRequest; 2],
    },
    /// The receiver will never take it: keep it, with the answer, out of the way.
    Dead {
        /// The request.
        id: i64,
        /// The receiver's answer.
        answer: String,
    },
}

/// What [`trim`](OutboxStore::trim) dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// How many requests.
    pub requests: u64,
    /// How many spans and records they held.
    pub items: u64,
}

/// A request, as `runspan outbox` lists it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboxEntry {
    /// Its key.
    pub id: i64,
    /// Where it is going.
    pub channel: Channel,
    /// When it was stored: RFC 3339.
    pub created_at: String,
    /// How many spans or records it holds.
    pub items: i64,
    /// Its size, gzipped.
    pub bytes: i64,
    /// The receiver's answer, if it is dead.
    pub dead: Option<String>,
}

/// Which dead requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// Those with these keys.
    Ids(Vec<i64>),
}

/// Sends and manages the requests of the outbox.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// The first waiting request of a channel after `after` (its place and id), with its body.
    async fn next_request(
        &self,
        channel: Channel,
        after: Option<(i64, i64)>,
    ) -> Result<Option<Request>, StoreError>;

    /// Writes down what became of requests.
    async fn settle(&self, lease: &Lease, settlements: &[Settlement]) -> Result<(), StoreError>;

    /// Drops the oldest requests until the rest is at most `max_bytes`.
    async fn trim(&self, lease: &Lease, max_bytes: u64) -> Result<Trimmed, StoreError>;

    /// The requests in the outbox, oldest first, at most `limit`.
    async fn list(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError>;

    /// Makes dead requests wait again; how many.
    async fn retry(&self, selection: &Selection) -> Result<u64, StoreError>;

    /// Removes dead requests for good; how many.
    async fn discard(&self, selection: &Selection) -> Result<u64, StoreError>;
}
