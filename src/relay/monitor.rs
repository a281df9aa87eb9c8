//! What a relay tells of itself while it runs.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use crate::store::{CaptureProblem, Channel, StoreStatus};

/// A relay's view of itself, shared by its tasks and whoever looks on.
#[derive(Clone)]
pub struct Monitor {
    state: Arc<watch::Sender<Snapshot>>,
    outbox: Arc<HashMap<Channel, Notify>>,
}

/// How a relay stands.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The lease's epoch, while it is held.
    pub lease_epoch: Option<i64>,
    /// Whether another relay holds the lease.
    pub stands_by: bool,
    /// Which database it is, once that has said so: its `service.instance.id`.
    pub database: Option<String>,
    /// How journal and outbox stood a few seconds ago, unless the database did not answer then.
    pub status: Option<StoreStatus>,
    /// Whether transitions reach the journal, as it was a few seconds ago; `None` while that is unknown.
    pub capture: Option<Capture>,
    /// Why the database cannot be used at the moment.
    pub database_problem: Option<String>,
    /// Whether the journal was empty when it was last looked at.
    pub journal_empty: bool,
    /// The senders.
    pub senders: HashMap<Channel, SenderState>,
    /// What the exporter of the metrics is at, once it has tried.
    pub metrics: Option<SenderState>,
    /// When a receiver last acknowledged a request.
    pub acknowledged_at: Option<SystemTime>,
    /// Spans and records that were acknowledged.
    pub delivered_items: u64,
    /// Spans and records that a receiver took and threw away (`partial_success`).
    pub rejected_items: u64,
}

/// Whether transitions reach the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Why they do not, or why the table cannot be compared with the journal; empty while all is well.
    pub problems: Vec<CaptureProblem>,
    /// While all is well: since when it has been seen so. Else when it was last seen so, if this relay has seen it. By
    /// the clock of the relay's host.
    pub since: Option<SystemTime>,
}

impl Capture {
    /// Whether all is well.
    pub const fn is_live(&self) -> bool {
        self.problems.is_empty()
    }
}

/// What a sender is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderState {
    /// At work.
    Busy,
    /// Nothing waits.
    Idle,
    /// The receiver does not answer well: this is why.
    Waiting(String),
    /// The receiver takes none of what waits until someone mends it: this is what it says.
    Refused(String),
}

impl Monitor {
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

    /// How the relay stands now.
    pub fn snapshot(&self) -> Snapshot {
        self.state.borrow().clone()
    }

    /// For who looks on for no longer than somebody else does.
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

    /// There is something new in the outbox.
    pub(super) fn requests_arrived(&self, channels: impl Iterator<Item = Channel>) {
        channels.filter_map(|channel| self.outbox.get(&channel)).for_each(Notify::notify_one);
    }

    /// Waits until there is something new in the outbox for this channel. Cancel safe.
    pub(super) async fn request_arrives(&self, channel: Channel) {
        match self.outbox.get(&channel) {
            Some(arrival) => arrival.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Snapshot {
    /// Whether nothing is to be done, or nothing can be.
    pub(super) fn is_idle(&self) -> bool {
        let at_rest = |state: &SenderState| matches!(state, SenderState::Idle | SenderState::Refused(_));
        self.lease_epoch.is_some() && self.journal_empty && self.senders.values().all(at_rest)
    }

    /// What a receiver that takes nothing says.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.senders.values().find_map(|state| match state {
            SenderState::Refused(why) => Some(why.as_str()),
            _ => None,
        })
    }
}
