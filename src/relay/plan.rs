//! What one transaction changes for a batch of the journal. Pure: no clock, no database, no network.
//!
//! The relay, the integration tests and the benches all project through here, so what is tested is what runs.

use std::collections::{HashMap, HashSet};

use crate::journal::{Change, Entry};
use crate::otlp::encode::{self, Encoder};
use crate::projection::{Projected, Record, Settings, Span, Tracked, project};
use crate::run::RunId;
use crate::store::{Batch, Channel, Commit};

/// A projected batch.
#[derive(Debug)]
pub struct Plan {
    /// What to commit. Its requests are those of [`encode`](Plan::encode).
    pub commit: Commit,
    /// The spans that ended.
    pub spans: Vec<Span>,
    /// The log records.
    pub records: Vec<Record>,
}

/// Projects `batch` over the runs that are open before it. Entries that cannot be parsed are set aside.
pub fn plan(batch: Batch, open: HashMap<RunId, Tracked>, settings: &Settings) -> Plan {
    let mut commit = Commit { position: batch.position, ..Commit::default() };
    let mut entries = Vec::with_capacity(batch.entries.len());
    for (seq, entry) in batch.entries {
        commit.consumed.push(seq);
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) => commit.set_aside.push((seq, error.to_string())),
        }
    }
    let Projected { spans, records, opened, closed, totals } = project(open, entries, settings);
    Plan { commit: Commit { opened, closed, totals, ..commit }, spans, records }
}

impl Plan {
    /// Encodes spans and records into the requests of `channels`.
    pub fn encode(&mut self, encoder: &Encoder, channels: &[Channel]) {
        for &channel in channels {
            self.commit.requests.extend(match channel {
                Channel::Traces => encoder.spans(&self.spans),
                Channel::Logs => encoder.records(&self.records),
                Channel::Stdout => encode::lines(&self.records).into_iter().collect(),
            });
        }
    }
}

/// The runs that a batch may change: those of its entries, and their parents.
pub fn runs_of(batch: &Batch) -> HashSet<RunId> {
    let entries = batch.entries.iter().filter_map(|(_, entry)| entry.as_ref().ok());
    entries.flat_map(runs_of_entry).collect()
}

fn runs_of_entry(entry: &Entry) -> impl Iterator<Item = RunId> + use<> {
    let run = match entry.change {
        Change::Transition { run, .. } => Some(run),
        Change::Refusal { .. } => None,
    };
    let parent = run.and(entry.context.lineage.as_ref()).map(|lineage| lineage.parent);
    run.into_iter().chain(parent)
}

/// Replaces in `open` what `commit`, which is not committed yet, makes of the runs. Returns those of `runs` that it
/// leaves to the database.
pub(super) fn overlay(
    commit: &Commit,
    mut runs: HashSet<RunId>,
    open: &mut HashMap<RunId, Tracked>,
) -> HashSet<RunId> {
    open.extend(commit.opened.iter().filter(|(run, _)| runs.remove(run)).cloned());
    for run in &commit.closed {
        runs.remove(run);
    }
    runs
}
