//! Series → receiver: adds up the pending totals and exports the sums at every interval.
//!
//! The series are in the database, so an export is never lost for good: the next one has the current sums. All that has to
//! be known is whether an export arrived, for points that precede it (see [`crate::series`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::delivery_policy::{AfterExport, ExportOutcome, ExportPolicy};
use super::error::RelayError;
use super::status::{SenderState, Warnings};
use super::term::Term;
use crate::backoff::backoff;
use crate::otlp::Signal;
use crate::otlp::answer::Answer;
use crate::otlp::client::Client;
use crate::otlp::config::MetricsConfig;
use crate::otlp::encode::Points;
use crate::outage::{Outage, Report, Severity};
use crate::run::Timestamp;
use crate::series::{InFlight, Ledger, MAX_WORKFLOWS, Notice, OTHER, one_point_each};
use crate::store::StoreError;

/// The signal, in the relay's own metrics.
const SIGNAL: &str = Signal::Metrics.as_str();

/// How many pending totals are read at once: each may hold as many series as a batch has entries, and more.
const READ_AT_ONCE: usize = 4;

/// How long an export in progress may still take after a clean stop, before it is cancelled and sent again.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How long the final export at a clean stop may take.
const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait before it is sent again in other requests.
const FINAL_EXPORT_BACKOFF: Duration = Duration::from_millis(200);

pub(super) struct Exporter {
    pub(super) term: Arc<Term>,
    /// None: pending totals are added up and kept.
    pub(super) client: Option<Arc<Client>>,
    pub(super) config: MetricsConfig,
}

/// What the exports of a term share.
#[derive(Default)]
struct Progress {
    policy: ExportPolicy,
    /// The sequence of the pending totals was set back.
    is_set_back: bool,
    warnings: Warnings,
    outage: Outage,
}

impl Exporter {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let term = &self.term;
        let mut ledger = self.open().await?;
        self.warn_if_buckets_change(&ledger);
        let mut progress = Progress::default();
        progress.policy.begin(ledger.attempt().is_some());
        let mut waits = backoff(self.config.interval);
        while !term.projected.is_cancelled() {
            let mut began = Instant::now();
            let grace = async {
                term.projected.cancelled().await;
                tokio::time::sleep(SHUTDOWN_GRACE).await;
            };
            let exported = tokio::select! {
                exported = self.export(&mut ledger, &mut progress) => exported?,
                () = grace => {
                    progress.policy.interrupted();
                    break;
                }
            };
            let wait = if let Some(asked) = exported {
                began = Instant::now();
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
            let mut waits = backoff(FINAL_EXPORT_BACKOFF);
            loop {
                let exported = self.export(&mut ledger, &mut progress).await?;
                if exported.is_none() || !progress.policy.is_adapting() {
                    return Ok::<_, StoreError>(exported);
                }
                tokio::time::sleep(waits.next().unwrap_or(FINAL_EXPORT_BACKOFF)).await;
            }
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
        progress: &mut Progress,
    ) -> Result<Option<Duration>, StoreError> {
        loop {
            let now = self.receive(ledger, &mut progress.is_set_back).await?;
            let Some(client) = &self.client else {
                self.term.store.record(&self.term.lease, &ledger.change()).await?;
                return Ok(None);
            };
            // An export whose outcome is unknown comes first, unchanged.
            let is_repeated = ledger.attempt().is_some();
            if !is_repeated {
                progress.policy.begin(false);
            }
            let skipped = self.term.store.skipped_entries().await?;
            if let Some(ahead) = ledger.begin(now, self.config.interval, skipped) {
                tracing::warn!(
                    ahead_s = ahead.as_secs(),
                    "the database's clock was ahead at the last export of metrics: they continue in new series"
                );
            }
            self.term.store.record(&self.term.lease, &ledger.change()).await?;
            let size = progress.policy.attempt();
            let encoder = self.term.encoder.for_instance(&ledger.instance());
            let parts = if self.term.settings.one_point_per_series {
                one_point_each(ledger.series())
            } else {
                vec![ledger.series()]
            };
            let mut requests: Vec<Points> = Vec::new();
            for part in &parts {
                requests.extend(encoder.series(part, self.config.exemplars, size));
            }
            if let Some(attempt) = ledger.attempt().filter(|_| !is_repeated)
                && let Some(rows) = self.in_flight().await?
            {
                let rows = ledger.in_flight(rows);
                requests.extend(encoder.in_flight(&rows, attempt.at(), size));
            }
            let age =
                ledger.attempt().map_or(0, |attempt| now.micros().saturating_sub(attempt.at().micros()));
            let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
            let outcome = self.send(client, requests, is_repeated, age, progress).await;
            match outcome {
                ExportOutcome::Acknowledged => ledger.acknowledged(),
                ExportOutcome::NotDelivered(_) => ledger.forget(),
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

    /// Sends requests in order, until the policy ends this attempt.
    async fn send(
        &self,
        client: &Client,
        requests: Vec<Points>,
        is_repeated: bool,
        age: Duration,
        progress: &mut Progress,
    ) -> ExportOutcome {
        let term = &self.term;
        let mut rejected = None;
        let mut rejections: usize = 0;
        for request in requests {
            if is_repeated {
                term.counts.resent(SIGNAL);
            }
            let began = Instant::now();
            let bytes = request.wire.len();
            let answer = client.send(request.wire).await;
            term.counts.answered(SIGNAL, request.items, &answer, began.elapsed());
            let next = progress.policy.after_request(bytes, &answer, self.config.interval);
            if let Answer::Rejected(cause) = &answer {
                rejections += 1;
                rejected.get_or_insert_with(|| cause.to_string());
                continue;
            }
            log_answer(&answer, progress);
            if let AfterExport::End(outcome) = next {
                let is_refused = matches!(answer, Answer::Misconfigured(_));
                let state = if is_refused { SenderState::Refused } else { SenderState::Waiting };
                let cause = answer.cause().map(ToString::to_string);
                term.status.update(|snapshot| snapshot.metrics = cause.map(state));
                return outcome;
            }
        }
        let outcome = progress.policy.after_all(age);
        match &rejected {
            Some(cause) if matches!(outcome, ExportOutcome::Acknowledged) => {
                progress.outage.log_recovery(SIGNAL);
                log_rejection(cause, rejections, outcome);
            }
            // Sent again and rejected again: once per cause, and once per minute.
            Some(cause) => {
                if progress.outage.failed(cause, Instant::now()) != Report::Nothing {
                    log_rejection(cause, rejections, outcome);
                }
            }
            None => {
                progress.outage.log_recovery(SIGNAL);
            }
        }
        term.status.update(|state| {
            state.metrics = Some(rejected.map_or(SenderState::Idle, SenderState::Refused));
        });
        outcome
    }
}

/// Logs an answer that is not plain success.
fn log_answer(answer: &Answer, progress: &mut Progress) {
    if let Answer::Accepted { rejected, message } = answer {
        if *rejected > 0 {
            tracing::error!(signal = SIGNAL, rejected, "receiver rejected items: {message}");
        } else if !message.is_empty() && progress.warnings.insert(message) {
            tracing::warn!(signal = SIGNAL, "receiver warning: {message}");
        }
        return;
    }
    let Some(cause) = answer.cause() else { return };
    let is_refused = matches!(answer, Answer::Misconfigured(_));
    let severity = if is_refused { Severity::Misconfigured } else { Severity::Passing };
    progress.outage.log_failure(&cause.to_string(), severity, None);
}

/// Logs that requests of an export were rejected, once for all of them.
fn log_rejection(cause: &str, requests: usize, outcome: ExportOutcome) {
    match outcome {
        ExportOutcome::Acknowledged => {
            tracing::error!(
                requests,
                "{cause}; these points are left out, the next export has the current totals"
            );
        }
        ExportOutcome::NotDelivered(_) => {
            tracing::error!(
                requests,
                "{cause}; no point was accepted, the next export includes their increments"
            );
        }
        ExportOutcome::Unknown(_) => tracing::error!(requests, "{cause}; sending these points again"),
    }
}
