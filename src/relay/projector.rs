//! Journal → outbox: read a batch, project it, commit it, all of it or nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::meter::Counts;
use super::monitor::Monitor;
use super::{RelayError, Settings};
use crate::journal::{Change, Entry};
use crate::otlp::encode::{self, Encoded, Encoder};
use crate::projection::{Projected, Tracked, project};
use crate::run::RunId;
use crate::store::{
    Batch, Channel, Commit, Lease, NewRequest, Position, Reconciled, Store, StoreError, StoreStatus,
};

/// The shortest pause between two looks at the journal: what arrives meanwhile shares a transaction.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// A transaction that was under way when the journal's positions were set back may commit so much later, for its entries
/// to be read in their order.
const LATE: Duration = Duration::from_secs(10);

/// How often entries are looked for whose positions were set back, while no others come.
const IDLE_LOOK: Duration = Duration::from_secs(2);

pub(super) struct Projector {
    pub(super) store: Arc<dyn Store>,
    pub(super) lease: Lease,
    pub(super) encoder: Encoder,
    pub(super) instance: String,
    pub(super) channels: Vec<Channel>,
    pub(super) settings: Settings,
    pub(super) monitor: Monitor,
    pub(super) counts: Counts,
    pub(super) stop: CancellationToken,
    /// To say that nothing more comes.
    pub(super) projected: CancellationToken,
}

/// A batch, as it was read.
struct Read {
    begun: Instant,
    /// Whether that was after the table was compared.
    is_compared: bool,
    batch: Batch,
}

/// A batch, projected: all that is left is to make it true.
struct Prepared {
    begun: Instant,
    is_compared: bool,
    commit: Commit,
}

/// When entries were looked for whose positions were set back.
struct Looked {
    last: Instant,
    everywhere: Option<Instant>,
    /// When they were last seen to be.
    set_back: Option<Instant>,
}

impl Default for Looked {
    fn default() -> Self {
        Self { last: Instant::now(), everywhere: None, set_back: None }
    }
}

/// What the two halves of the projector tell each other.
#[derive(Default)]
struct Comparison {
    /// The journal was found empty: what waited in it may have hidden something.
    journal_empty: Notify,
    /// The table was compared since; what that found is in the journal.
    is_done: AtomicBool,
}

impl Projector {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let comparison = Comparison::default();
        tokio::try_join!(self.project(&comparison), self.compare(&comparison))?;
        Ok(())
    }

    async fn project(&self, comparison: &Comparison) -> Result<(), StoreError> {
        let mut position = self.store.position(&self.instance).await?;
        let (mut trimmed, mut looked) = (Instant::now(), Looked::default());
        let mut pause = BUSY_POLL;
        // Of a backlog, one batch is committed while the next is projected and the one behind that is read.
        let (mut ahead, mut behind) = (None, None);
        while !self.stop.is_cancelled() {
            let prepared = if let Some(prepared) = ahead.take() {
                prepared
            } else {
                let read = match behind.take() {
                    Some(read) => read,
                    None => self.next_alone(comparison, &mut position, &mut looked).await?,
                };
                self.prepare(read, None).await?
            };
            let read = prepared.commit.consumed.len();
            if read == 0 {
                comparison.journal_empty.notify_one();
                self.monitor.update(|state| state.journal_empty = prepared.is_compared);
                pause = (pause * 2).min(self.settings.idle_poll);
            } else {
                self.monitor.update(|state| state.journal_empty = false);
                if read < self.settings.batch || position.is_scattered() {
                    self.commit(&prepared).await?;
                    // What is read and not committed is still in the journal: it must not be looked at again.
                    if behind.is_none() {
                        position.gather();
                    }
                } else {
                    let next = async {
                        let read = self.next(behind.take(), comparison, &mut position).await?;
                        let next = self.prepare(read, Some(&prepared.commit));
                        tokio::try_join!(next, self.next(None, comparison, &mut position))
                    };
                    let (committed, next) = tokio::join!(self.commit(&prepared), next);
                    committed?;
                    let (next, read) = next?;
                    (ahead, behind) = (Some(next), Some(read));
                }
                pause = BUSY_POLL;
                if trimmed.elapsed() > self.settings.trim_every {
                    self.trim().await?;
                    trimmed = Instant::now();
                }
            }
            if read < self.settings.batch {
                self.unless_stopped(tokio::time::sleep(pause)).await;
            }
        }
        self.projected.cancel();
        Ok(())
    }

    /// Compares the table with the journal: at once, once the journal was empty, and every so often. Beside the
    /// projection: with a million runs in flight it takes seconds.
    async fn compare(&self, comparison: &Comparison) -> Result<(), StoreError> {
        let every = self.settings.reconcile_every;
        let mut was_empty = false;
        while !self.stop.is_cancelled() {
            // It takes minutes where there are many runs, in steps that may be broken off between any two.
            if let Some(compared) = self.unless_stopped(self.reconcile()).await {
                compared?;
            }
            if was_empty {
                comparison.is_done.store(true, Ordering::Relaxed);
                self.unless_stopped(tokio::time::sleep(every)).await;
            } else {
                let empty = tokio::time::timeout(every, comparison.journal_empty.notified());
                was_empty = self.unless_stopped(empty).await.is_some_and(|empty| empty.is_ok());
            }
        }
        Ok(())
    }

    async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(wait).await
    }

    /// The next batch, where nothing is under way: all that was read before is gone from the journal.
    ///
    /// So an entry that is there, and that no read would find, has a position that was read long ago: somebody has set the
    /// sequence back (`setval`, a logical cut-over). It is looked for after the read, as it may have been committed just
    /// before it, and then all is read anew: in its order, for an end must not come before its beginning.
    async fn next_alone(
        &self,
        comparison: &Comparison,
        position: &mut Position,
        looked: &mut Looked,
    ) -> Result<Read, StoreError> {
        let before = position.clone();
        let read = self.next(None, comparison, position).await?;
        if read.batch.entries.is_empty() && looked.last.elapsed() < IDLE_LOOK {
            return Ok(read);
        }
        looked.last = Instant::now();
        if !self.bring_forward(&before, looked).await? {
            return Ok(read);
        }
        *position = before;
        self.next(None, comparison, position).await
    }

    /// Moves the entries that no read would find to where one does; whether there were any.
    ///
    /// Those that were committed late are looked for only once in a while, and where the last look at the database has seen
    /// an entry: the first one lies behind whatever dead rows PostgreSQL has not cleaned.
    async fn bring_forward(&self, position: &Position, looked: &mut Looked) -> Result<bool, StoreError> {
        let is_due = looked.everywhere.is_none_or(|last| last.elapsed() >= self.settings.look_every);
        let has_entries = |status: &StoreStatus| status.journal_entries > 0;
        let is_new = looked.set_back.is_none_or(|last| last.elapsed() > LATE);
        let everywhere =
            !is_new || is_due && self.monitor.snapshot().status.as_ref().is_some_and(has_entries);
        if everywhere {
            looked.everywhere = Some(Instant::now());
        }
        match self.store.bring_forward(position, everywhere).await {
            Ok(None) => Ok(false),
            Ok(Some(entries)) => {
                looked.set_back = Some(Instant::now());
                if !is_new {
                    return Ok(entries > 0);
                }
                tracing::warn!(
                    entries,
                    read_up_to = position.highest(),
                    "the positions of the journal were set back (its sequence, by setval() or a restore): entries that \
                     no read would find are moved to where one does"
                );
                Ok(entries > 0)
            }
            // An older runspan attached here, or the relay's role lacks a grant: what is not hidden is read all the same.
            Err(error) if error.refusal().is_some() => {
                tracing::debug!("cannot look for entries whose positions were set back: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The batch that is read already, or else the next one: `position` moves behind it.
    async fn next(
        &self,
        already: Option<Read>,
        comparison: &Comparison,
        position: &mut Position,
    ) -> Result<Read, StoreError> {
        if let Some(read) = already {
            return Ok(read);
        }
        let begun = Instant::now();
        let is_compared = comparison.is_done.load(Ordering::Relaxed);
        let batch = self.store.read(position.clone(), self.settings.batch).await?;
        position.clone_from(&batch.position);
        Ok(Read { begun, is_compared, batch })
    }

    /// Projects a batch, over what the batch before it leaves, if that is under way still: the runs that it changes are
    /// as it will have made them.
    async fn prepare(&self, read: Read, before: Option<&Commit>) -> Result<Prepared, StoreError> {
        let Read { begun, is_compared, batch: Batch { entries: read, position } } = read;
        let mut commit = Commit { position, ..Commit::default() };
        if read.is_empty() {
            return Ok(Prepared { begun, is_compared, commit });
        }
        let mut entries = Vec::with_capacity(read.len());
        for (seq, entry) in read {
            commit.consumed.push(seq);
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    tracing::error!(seq, "an entry cannot be understood and is set aside: {error}");
                    commit.set_aside.push((seq, error.to_string()));
                }
            }
        }
        let open = self.open_runs(runs_of(&entries), before).await?;
        let (encoder, channels) = (self.encoder.clone(), self.channels.clone());
        let settings = self.settings.projection.clone();
        // Encoding a batch takes tens of milliseconds: not on a thread that others wait for.
        let projected = tokio::task::spawn_blocking(move || {
            let projected = project(open, entries, &settings);
            let requests = encode_all(&encoder, &channels, &projected);
            (projected, requests)
        });
        let Ok((projected, requests)) = projected.await else {
            return Err(StoreError::Corrupt {
                what: "a batch of the journal".to_owned(),
                cause: "projecting it panicked".to_owned(),
            });
        };
        commit.opened = projected.opened;
        commit.closed = projected.closed;
        commit.requests = requests;
        commit.totals = projected.totals;
        Ok(Prepared { begun, is_compared, commit })
    }

    /// Those of `runs` that are open once `before` is committed.
    async fn open_runs(
        &self,
        mut runs: HashSet<RunId>,
        before: Option<&Commit>,
    ) -> Result<HashMap<RunId, Tracked>, StoreError> {
        let mut open = HashMap::new();
        if let Some(before) = before {
            open.extend(before.opened.iter().filter(|(run, _)| runs.remove(run)).cloned());
            before.closed.iter().for_each(|run| {
                runs.remove(run);
            });
        }
        let runs: Vec<RunId> = runs.into_iter().collect();
        open.extend(self.store.open_runs(&runs).await?);
        Ok(open)
    }

    async fn commit(&self, Prepared { begun, commit, .. }: &Prepared) -> Result<(), StoreError> {
        self.store.commit(&self.lease, &self.instance, commit).await?;
        self.monitor.requests_arrived(commit.requests.iter().map(|request| request.channel));
        self.counts.cycle(begun.elapsed());
        Ok(())
    }

    async fn reconcile(&self) -> Result<(), StoreError> {
        match self.store.reconcile().await {
            Ok(Reconciled { entries: 0, .. }) => {}
            Ok(Reconciled { entries, vanished }) => {
                self.counts.reconciled(entries);
                tracing::warn!(entries, "the journal had missed transitions; the table told of them");
                if vanished > 0 {
                    tracing::error!(
                        runs = vanished,
                        "the rows of {vanished} runs in flight are gone without a DELETE that the triggers saw \
                         (TRUNCATE, a dropped or detached partition, disabled triggers); these runs end as `deleted`"
                    );
                }
            }
            // The table may be renamed or gone, or hold what cannot be read. That stops nothing of what is
            // journalled and stored.
            Err(error) => match error.refusal() {
                Some(said) => tracing::error!(
                    "the table cannot be compared with the journal, so what it missed stays missing: {said}"
                ),
                None => return Err(error),
            },
        }
        Ok(())
    }

    async fn trim(&self) -> Result<(), StoreError> {
        let trimmed = self.store.trim(&self.lease, self.settings.max_outbox).await?;
        if trimmed.requests > 0 {
            self.counts.dropped(trimmed.items);
            tracing::error!(
                requests = trimmed.requests,
                items = trimmed.items,
                max_bytes = self.settings.max_outbox,
                "the outbox is full: the oldest requests are dropped and their spans and records lost"
            );
        }
        Ok(())
    }
}

/// The runs that these entries may change: their own, and their parents.
fn runs_of(entries: &[Entry]) -> HashSet<RunId> {
    let mut runs = HashSet::new();
    for entry in entries {
        if let Change::Transition { run, .. } = entry.change {
            runs.insert(run);
            runs.extend(entry.context.lineage.as_ref().map(|lineage| lineage.parent));
        }
    }
    runs
}

fn encode_all(encoder: &Encoder, channels: &[Channel], projected: &Projected) -> Vec<NewRequest> {
    channels
        .iter()
        .flat_map(|&channel| {
            let parts = match channel {
                Channel::Traces => encoder.spans(&projected.spans),
                Channel::Logs => encoder.records(&projected.records),
                Channel::Stdout => encode::lines(&projected.records).into_iter().collect(),
            };
            parts.into_iter().map(move |part| new_request(channel, part))
        })
        .collect()
}

pub(super) fn new_request(channel: Channel, encoded: Encoded) -> NewRequest {
    let Encoded { items, runs, body } = encoded;
    NewRequest { channel, items, runs, body }
}
