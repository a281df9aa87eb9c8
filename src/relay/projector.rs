//! Projects the journal: reads a batch, converts it to requests and deltas, and commits all of it in one transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::RelayError;
use super::plan::{Plan, overlay, plan, runs_of};
use super::reader::{ReadBatch, Reader};
use super::term::Term;
use crate::store::{Channel, Commit, StoreError};

/// The shortest pause between two reads: entries that arrive meanwhile share a transaction.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// A projected batch, ready to commit.
struct Prepared {
    began: Instant,
    is_reconciled: bool,
    commit: Commit,
}

/// The batches of a backlog behind the one being committed. Each stage waits for a different resource (the database's
/// disk, a processor, the database's reads), so three at once are about as fast as the slowest alone.
#[derive(Default)]
struct Pipeline {
    projected: Option<Prepared>,
    read: Option<ReadBatch>,
}

pub(super) struct Projector {
    pub(super) term: Arc<Term>,
    pub(super) channels: Vec<Channel>,
}

impl Projector {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let term = &self.term;
        let mut reader = Reader::open(Arc::clone(term)).await?;
        let mut pipeline = Pipeline::default();
        let mut pause = BUSY_POLL;
        while !term.stop.is_cancelled() {
            let prepared = self.next(&mut pipeline, &mut reader).await?;
            // What is stored can be read, and the lease was written.
            term.status.update(|state| state.database_problem = None);
            let entries = prepared.commit.consumed.len();
            let is_full = entries >= term.settings.batch.get();
            if entries == 0 {
                term.journal_empty.notify_one();
                term.status.update(|state| state.journal_empty = prepared.is_reconciled);
                pause = (pause * 2).min(term.settings.idle_poll);
            } else {
                term.status.update(|state| state.journal_empty = false);
                pause = BUSY_POLL;
                if is_full && !reader.has_too_many_gaps() {
                    pipeline = self.commit_and_read_ahead(&prepared, pipeline.read, &mut reader).await?;
                } else {
                    self.commit(&prepared).await?;
                    if pipeline.read.is_none() {
                        reader.merge_gaps();
                    }
                }
            }
            if !is_full {
                term.pause(pause).await;
            }
        }
        term.projected.cancel();
        Ok(())
    }

    /// The next batch to commit.
    async fn next(&self, pipeline: &mut Pipeline, reader: &mut Reader) -> Result<Prepared, RelayError> {
        if let Some(prepared) = pipeline.projected.take() {
            return Ok(prepared);
        }
        let read = match pipeline.read.take() {
            Some(read) => read,
            None => reader.read_alone().await?,
        };
        self.prepare(read, None).await
    }

    /// Commits a full batch, while the next one is projected and the one behind that is read.
    async fn commit_and_read_ahead(
        &self,
        prepared: &Prepared,
        read: Option<ReadBatch>,
        reader: &mut Reader,
    ) -> Result<Pipeline, RelayError> {
        let ahead = async {
            let read = match read {
                Some(read) => read,
                None => reader.read().await?,
            };
            let behind = async { Ok(reader.read().await?) };
            tokio::try_join!(self.prepare(read, Some(&prepared.commit)), behind)
        };
        let (committed, ahead) = tokio::join!(self.commit(prepared), ahead);
        committed?;
        let (projected, read) = ahead?;
        Ok(Pipeline { projected: Some(projected), read: Some(read) })
    }

    /// Projects a batch over the open runs: those of the database, as `uncommitted` will have left them.
    async fn prepare(&self, read: ReadBatch, uncommitted: Option<&Commit>) -> Result<Prepared, RelayError> {
        let ReadBatch { began, is_reconciled, batch } = read;
        if batch.entries.is_empty() {
            let commit = Commit { position: batch.position, ..Commit::default() };
            return Ok(Prepared { began, is_reconciled, commit });
        }
        let mut open = HashMap::new();
        let mut runs = runs_of(&batch);
        if let Some(uncommitted) = uncommitted {
            runs = overlay(uncommitted, runs, &mut open);
        }
        let runs: Vec<_> = runs.into_iter().collect();
        open.extend(self.term.store.open_runs(&runs).await?);
        let (encoder, channels) = (self.term.encoder.clone(), self.channels.clone());
        let settings = self.term.settings.projection.clone();
        // Encoding a batch takes tens of milliseconds: not on a thread that others wait for.
        let planned = tokio::task::spawn_blocking(move || {
            let mut planned = plan(batch, open, &settings);
            planned.encode(&encoder, &channels);
            planned
        });
        let Plan { commit, warnings, .. } = planned.await.map_err(|_| RelayError::Panicked)?;
        for (seq, error) in &commit.set_aside {
            tracing::error!(seq, "cannot parse an entry of the journal; set aside: {error}");
        }
        self.term.warned.log(&warnings);
        Ok(Prepared { began, is_reconciled, commit })
    }

    async fn commit(&self, Prepared { began, commit, .. }: &Prepared) -> Result<(), StoreError> {
        let term = &self.term;
        term.store.commit(&term.lease, &term.instance, commit).await?;
        term.committed.notify_one();
        term.status.requests_arrived(commit.requests.iter().map(|request| request.channel));
        term.counts.cycle(began.elapsed());
        Ok(())
    }
}
