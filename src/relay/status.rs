//! The state of a relay while it runs: its tasks write it; health, gauges and `until_idle` read it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use crate::store::{CaptureProblem, Channel, StoreStatus};

/// The state of a relay, shared by its tasks and its observers.
#[derive(Clone)]
pub struct RelayStatus {
    state: Arc<watch::Sender<Snapshot>>,
    outbox: Arc<HashMap<Channel, Notify>>,
}

/// The state of a relay at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The lease's epoch, while it is held.
    pub lease_epoch: Option<i64>,
    /// Whether `OTEL_SDK_DISABLED` switches this relay off.
    pub is_disabled: bool,
    /// Whether another relay holds the lease, and this one is its standby.
    pub stands_by: bool,
    /// `service.instance.id` of the database, once it has answered.
    pub database: Option<String>,
    /// The state of journal and outbox at the last poll; `None` if the database did not answer.
    pub status: Option<StoreStatus>,
    /// Whether transitions reached the journal at the last poll; `None` while unknown.
    pub capture: Option<Capture>,
    /// Why the database cannot be used at the moment.
    pub database_problem: Option<String>,
    /// Whether the journal was empty at the last read after a reconciliation.
    pub journal_empty: bool,
    /// The senders.
    pub senders: HashMap<Channel, SenderState>,
    /// The exporter of metrics, once it has tried.
    pub metrics: Option<SenderState>,
    /// When a receiver last acknowledged a request.
    pub acknowledged_at: Option<SystemTime>,
    /// Spans and records that were acknowledged.
    pub delivered_items: u64,
    /// Spans and records that a receiver rejected (`partial_success`).
    pub rejected_items: u64,
}

/// Whether transitions reach the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Why they do not, or why the table cannot be reconciled; empty while capture works.
    pub problems: Vec<CaptureProblem>,
    /// While capture works: since when this relay has seen it work. Otherwise when it last did, if it has. By the clock
    /// of the relay's host.
    pub since: Option<SystemTime>,
}

impl Capture {
    /// Whether capture works.
    pub const fn is_live(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The state of a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderState {
    /// Sending.
    Busy,
    /// Nothing is pending.
    Idle,
    /// The last attempt failed and is retried; the reason.
    Waiting(String),
    /// The receiver refuses all that is pending until someone fixes it; its answer.
    Refused(String),
}

/// The last warning of a receiver, so that one that comes with each answer is logged once.
#[derive(Debug, Default)]
pub(super) struct Warnings(String);

impl Warnings {
    /// Whether a warning differs from the last one.
    pub(super) fn insert(&mut self, warning: &str) -> bool {
        let is_new = self.0 != warning;
        warning.clone_into(&mut self.0);
        is_new
    }
}

impl RelayStatus {
    pub(super) fn new(channels: impl Iterator<Item = Channel> + Clone) -> Self {
        let state = Snapshot {
            senders: channels.clone().map(|channel| (channel, SenderState::Busy)).collect(),
            ..Snapshot::default()
        };
        Self {
            state: Arc::new(watch::Sender::new(state)),
            outbox: Arc::new(channels.map(|channel| (channel, Notify::new())).collect()),
        }
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        self.state.borrow().clone()
    }

    /// For an observer that must not keep the status alive.
    pub(super) fn downgrade(&self) -> Weak<watch::Sender<Snapshot>> {
        Arc::downgrade(&self.state)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.state.subscribe()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.state.send_modify(change);
    }

    pub(super) fn sender(&self, channel: Channel, state: SenderState) {
        self.update(|snapshot| {
            snapshot.senders.insert(channel, state);
        });
    }

    /// Wakes the senders of these channels.
    pub(super) fn requests_arrived(&self, channels: impl Iterator<Item = Channel>) {
        channels.filter_map(|channel| self.outbox.get(&channel)).for_each(Notify::notify_one);
    }

    /// Waits for a new request of this channel. Cancel safe.
    pub(super) async fn request_arrives(&self, channel: Channel) {
        match self.outbox.get(&channel) {
            Some(arrival) => arrival.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Snapshot {
    /// Whether nothing is left to do, or nothing more can be done.
    pub(super) fn is_idle(&self) -> bool {
        let is_done = |state: &SenderState| matches!(state, SenderState::Idle | SenderState::Refused(_));
        self.lease_epoch.is_some() && self.journal_empty && self.senders.values().all(is_done)
    }

    /// The answer of a receiver that refuses everything.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.senders.values().find_map(|state| match state {
            SenderState::Refused(why) => Some(why.as_str()),
            _ => None,
        })
    }
}
