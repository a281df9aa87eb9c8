//! Series → receiver: adds up the pending totals and exports the sums at every interval.
//!
//! The series are in the database, so an export is never lost for good: the next one has the current sums. All that has to
//! be known is whether an export arrived, for points that precede it (see [`crate::series`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::delivery_policy::{AfterExport, ExportOutcome, after_export};
use super::error::RelayError;
use super::status::SenderState;
use super::term::Term;
use crate::backoff::backoff;
use crate::otlp::Signal;
use crate::otlp::answer::Answer;
use crate::otlp::client::Client;
use crate::otlp::config::MetricsConfig;
use crate::otlp::encode::{MAX_REQUEST, Points};
use crate::run::Timestamp;
use crate::series::{InFlight, Ledger, MAX_WORKFLOWS, Notice, OTHER};
use crate::store::StoreError;

/// The signal, in the relay's own metrics.
const SIGNAL: &str = Signal::Metrics.as_str();

/// How many pending totals are read at once: each may hold as many series as a batch has entries, and more.
const READ_AT_ONCE: usize = 4;

/// How long an export in progress may still take after a clean stop, before it is cancelled and sent again.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How long the final export at a clean stop may take.
const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests are not made smaller than this, in bytes.
const MIN_REQUEST: usize = 64 * 1024;

pub(super) struct Exporter {
    pub(super) term: Arc<Term>,
    /// None: pending totals are added up and kept.
    pub(super) client: Option<Arc<Client>>,
    pub(super) config: MetricsConfig,
}

impl Exporter {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let term = &self.term;
        let mut ledger = self.open().await?;
        let mut is_set_back = false;
        self.warn_if_buckets_change(&ledger);
        let mut request_size = MAX_REQUEST;
        let mut waits = backoff(self.config.interval);
        while !term.projected.is_cancelled() {
            let began = Instant::now();
            let grace = async {
                term.projected.cancelled().await;
                tokio::time::sleep(SHUTDOWN_GRACE).await;
            };
            let exported = tokio::select! {
                exported = self.export(&mut ledger, &mut request_size, &mut is_set_back) => exported?,
                () = grace => break,
            };
            let wait = if let Some(asked) = exported {
                waits.next().unwrap_or(self.config.interval).min(self.config.interval).max(asked)
            } else {
                waits = backoff(self.config.interval);
                self.config.interval
            };
            let _ = tokio::time::timeout_at(began + wait, term.projected.cancelled()).await;
        }
        // An export that was cancelled is recorded, and comes first. The time-out is for whoever waits for this process.
        let last = tokio::time::timeout(FINAL_EXPORT_TIMEOUT, async {
            // What was being recorded when it was cancelled may still be committed: between two reads of the series it
            // would be missing from both. Whoever can change the lease's row comes after that commit.
            term.store.renew_lease(&term.lease, term.settings.lease_term).await?;
            let mut ledger = self.open().await?;
            self.export(&mut ledger, &mut request_size, &mut is_set_back).await
        });
        let last = last.await;
        if last.unwrap_or(Ok(Some(Duration::ZERO)))?.is_some() {
            tracing::warn!("final metrics export failed; the next relay will export current totals");
        }
        Ok(())
    }

    async fn open(&self) -> Result<Ledger, StoreError> {
        let (ledger, before) = Ledger::open(self.term.store.recorded().await?, &self.term.instance);
        if let Some(before) = before {
            tracing::warn!(
                before,
                now = self.term.instance,
                "the database has a new history (failover or restore): its metrics continue in new series"
            );
        }
        Ok(ledger)
    }

    fn warn_if_buckets_change(&self, ledger: &Ledger) {
        if let Some(before) =
            ledger.buckets().filter(|before| **before != self.term.settings.projection.buckets)
        {
            let now = &self.term.settings.projection.buckets;
            tracing::warn!(
                "the histogram buckets changed from {before} to {now}: the histograms start over, and quantiles over a \
                 range with both are too high"
            );
        }
    }

    /// Adds up what is pending and exports it. Unless all of it was exported: the wait that the receiver asks for.
    async fn export(
        &self,
        ledger: &mut Ledger,
        request_size: &mut usize,
        is_set_back: &mut bool,
    ) -> Result<Option<Duration>, StoreError> {
        loop {
            let now = self.receive(ledger, is_set_back).await?;
            let Some(client) = &self.client else {
                self.term.store.record(&self.term.lease, &ledger.change()).await?;
                return Ok(None);
            };
            // An export whose outcome is unknown comes first, unchanged.
            let is_repeated = ledger.attempt().is_some();
            ledger.begin(now, self.config.interval, self.term.store.skipped_entries().await?);
            self.term.store.record(&self.term.lease, &ledger.change()).await?;
            let mut requests =
                self.term.encoder.series(&ledger.series(), self.config.exemplars, *request_size);
            if let Some(attempt) = ledger.attempt().filter(|_| !is_repeated)
                && let Some(rows) = self.in_flight().await?
            {
                let rows = ledger.in_flight(rows);
                requests.extend(self.term.encoder.in_flight(&rows, attempt.at(), *request_size));
            }
            let outcome = self.send(client, requests, is_repeated, request_size).await;
            match outcome {
                ExportOutcome::Acknowledged => ledger.acknowledged(),
                ExportOutcome::NotDelivered(_) => ledger.forget(),
                ExportOutcome::TooLarge => continue,
                ExportOutcome::Unknown(asked) => return Ok(Some(asked)),
            }
            self.term.store.record(&self.term.lease, &ledger.change()).await?;
            if let ExportOutcome::NotDelivered(asked) = outcome {
                return Ok(Some(asked));
            }
            if !is_repeated {
                return Ok(None);
            }
        }
    }

    /// Receives what is pending; the database's time after it.
    ///
    /// Some may be hidden if the sequence that numbers them was set back (`setval`, a logical cut-over). Then the ledger is
    /// opened again, which reads all of them; what it had not recorded is still in the database. Not while an export is in
    /// progress: only this ledger knows which totals that export contains.
    async fn receive(&self, ledger: &mut Ledger, is_set_back: &mut bool) -> Result<Timestamp, StoreError> {
        let mut is_reopened = false;
        loop {
            let fresh = self.term.store.pending_totals(&self.term.lease, ledger.last(), READ_AT_ONCE).await?;
            if fresh.up_to != ledger.stored() && ledger.attempt().is_none() && !is_reopened {
                is_reopened = true;
                // This repeats until the new numbers have passed the old ones: one line is enough.
                if !std::mem::replace(is_set_back, true) {
                    tracing::warn!(
                        expected = ledger.stored(),
                        found = fresh.up_to,
                        "the sequence of runspan.deltas was set back (setval() or a restore): reading all pending totals \
                         again"
                    );
                }
                *ledger = self.open().await?;
                continue;
            }
            let is_all = fresh.totals.len() < READ_AT_ONCE;
            for notice in ledger.receive(fresh.totals) {
                match notice {
                    Notice::Renamed(name) => tracing::warn!(
                        "a workflow name is too long for a metric attribute or has control characters: its metrics are \
                         exported as {name:?}"
                    ),
                    Notice::Full => tracing::warn!(
                        "more than {MAX_WORKFLOWS} workflow names: the metrics of all others are exported as {OTHER:?}"
                    ),
                }
            }
            if is_all {
                return Ok(fresh.now);
            }
        }
    }

    /// The runs in flight, if there is a table and it can be read. Otherwise these two metrics have no points: zeros would
    /// mean that nothing is in flight.
    async fn in_flight(&self) -> Result<Option<Vec<InFlight>>, StoreError> {
        let read = async {
            match self.term.store.attached_table().await? {
                Some(_) => self.term.store.in_flight().await.map(Some),
                None => Ok(None),
            }
        };
        let read = read.await;
        if let Some(answer) = read.as_ref().err().and_then(StoreError::refusal) {
            tracing::error!("cannot read the table, so the metrics of runs in flight are missing: {answer}");
            return Ok(None);
        }
        read
    }

    /// Sends requests in order, until one is not accepted.
    async fn send(
        &self,
        client: &Client,
        requests: Vec<Points>,
        is_repeated: bool,
        request_size: &mut usize,
    ) -> ExportOutcome {
        let mut refused = None;
        // Whether any of it may have arrived already.
        let mut is_untouched = !is_repeated;
        let term = &self.term;
        for request in requests {
            if is_repeated {
                term.counts.resent(SIGNAL);
            }
            let began = Instant::now();
            let answer = client.send(request.wire).await;
            term.counts.answered(SIGNAL, request.items, &answer, began.elapsed());
            let can_shrink = *request_size > MIN_REQUEST;
            let next = after_export(&answer, is_untouched, can_shrink, self.config.interval);
            let cause = log_answer(&answer, next);
            match next {
                AfterExport::Continue => is_untouched = false,
                AfterExport::Skip => {
                    refused = cause;
                    is_untouched = false;
                }
                AfterExport::End(outcome) => {
                    if outcome == ExportOutcome::TooLarge {
                        *request_size /= 2;
                        return outcome;
                    }
                    let is_refused = matches!(answer, Answer::Misconfigured(_));
                    let state = if is_refused { SenderState::Refused } else { SenderState::Waiting };
                    term.status.update(|snapshot| snapshot.metrics = cause.map(state));
                    return outcome;
                }
            }
        }
        term.status.update(|state| {
            state.metrics = Some(refused.map_or(SenderState::Idle, SenderState::Refused));
        });
        ExportOutcome::Acknowledged
    }
}

/// Logs an answer that is not plain success; why it is not.
fn log_answer(answer: &Answer, next: AfterExport) -> Option<String> {
    if let Answer::Accepted { rejected, message } = answer {
        if *rejected > 0 {
            tracing::error!(signal = SIGNAL, rejected, "receiver rejected items: {message}");
        } else if !message.is_empty() {
            tracing::warn!(signal = SIGNAL, "receiver warning: {message}");
        }
    }
    let cause = answer.cause()?.to_string();
    match (answer, next) {
        (Answer::Rejected(_), _) => tracing::error!("{cause}; the next export has the current totals"),
        (_, AfterExport::End(ExportOutcome::TooLarge)) => tracing::warn!("{cause}; trying smaller requests"),
        (_, AfterExport::Skip) => tracing::error!("{cause}; these points are left out"),
        (Answer::Misconfigured(_), _) => tracing::error!("{cause}"),
        _ => tracing::warn!("{cause}"),
    }
    Some(cause)
}
