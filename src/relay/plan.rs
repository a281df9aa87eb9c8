//! What one transaction changes for a batch of the journal. Pure: no clock, no database, no network.
//!
//! The relay, the integration tests and the benches all project through here, so what is tested is what runs.

use std::collections::{HashMap, HashSet};

use crate::journal::{Change, Entry};
use crate::otlp::encode::{self, Encoder};
use crate::projection::{Projected, Record, Settings, Span, Tracked, Warning, project};
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
    /// What somebody should know about the entries.
    pub warnings: Vec<Warning>,
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
    let Projected { spans, records, opened, closed, totals, warnings } = project(open, entries, settings);
    Plan { commit: Commit { opened, closed, totals, ..commit }, spans, records, warnings }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::Settings;
    use crate::store::Position;

    fn queued(workflow: &str, run: RunId) -> Result<Entry, crate::journal::Unreadable> {
        Entry::try_from(crate::journal::Row {
            run_id: Some(run.uuid()),
            workflow_name: Some(workflow.to_owned()),
            to_status: Some("queued".to_owned()),
            ..Default::default()
        })
    }

    fn batch(entries: Vec<Result<Entry, crate::journal::Unreadable>>) -> Batch {
        Batch { entries: (1..).zip(entries).collect(), position: Position::default() }
    }

    #[test]
    fn an_entry_that_cannot_be_parsed_is_consumed_and_set_aside() {
        let run = RunId::generate();
        let unreadable = Entry::try_from(crate::journal::Row::default());
        let plan = plan(batch(vec![unreadable, queued("triage", run)]), HashMap::new(), &Settings::default());
        assert_eq!(plan.commit.consumed, [1, 2]);
        assert_eq!(plan.commit.set_aside.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1]);
        assert_eq!(plan.commit.opened.iter().map(|(run, _)| *run).collect::<Vec<_>>(), [run]);
    }

    #[test]
    fn an_uncommitted_batch_hides_what_the_database_has_of_its_runs() {
        let [opened, closed, other] = std::array::from_fn(|_| RunId::generate());
        let planned = plan(batch(vec![queued("triage", opened)]), HashMap::new(), &Settings::default());
        let uncommitted = Commit { closed: vec![closed], ..planned.commit };
        let mut open = HashMap::new();
        let left = overlay(&uncommitted, HashSet::from([opened, closed, other]), &mut open);
        assert_eq!(left, HashSet::from([other]));
        assert_eq!(open.into_keys().collect::<Vec<_>>(), [opened]);
    }
}
