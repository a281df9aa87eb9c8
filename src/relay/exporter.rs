//! Series → receiver: adds up what the projector appended, and tells of it every interval.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::meter::Counts;
use super::monitor::{Monitor, SenderState};
use super::{RelayError, Settings, patience};
use crate::otlp::Signal;
use crate::otlp::answer::{Answer, Kind};
use crate::otlp::client::Client;
use crate::otlp::config::MetricsConfig;
use crate::otlp::encode::{Encoder, MAX_REQUEST, Points};
use crate::run::Timestamp;
use crate::series::{InFlight, Ledger, MAX_WORKFLOWS, Notice, OTHER};
use crate::store::{Lease, Store, StoreError};

/// What its requests are, in the relay's own metrics.
const SIGNAL: &str = Signal::Metrics.as_str();

/// How many pending totals are read at once: each may hold as many series as a batch has entries, and more.
const READ_AT_ONCE: usize = 4;

/// How long one that is under way at a clean stop may still take, before it is broken off and has to be sent again.
const PATIENCE_AT_A_STOP: Duration = Duration::from_secs(2);

/// How long the export at a clean stop may take.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The smallest request that a receiver is asked to take.
const LEAST_REQUEST: usize = 64 * 1024;

pub(super) struct Exporter {
    pub(super) store: Arc<dyn Store>,
    pub(super) lease: Lease,
    /// None: what is pending is added up and kept.
    pub(super) client: Option<Arc<Client>>,
    pub(super) config: MetricsConfig,
    pub(super) encoder: Encoder,
    pub(super) instance: String,
    pub(super) settings: Settings,
    pub(super) monitor: Monitor,
    pub(super) counts: Counts,
    /// Once the projector has ended, for good reasons.
    pub(super) projected: CancellationToken,
}

/// What became of an export.
enum Fate {
    /// The receiver has it, or will not have it, ever.
    Told,
    /// It surely did not arrive. The receiver asks to wait so long.
    Lost(Duration),
    /// Nobody knows: it has to be sent again as it was. The receiver asks to wait so long.
    Unknown(Duration),
    /// The same, but at once, in smaller requests.
    TooLarge,
}

impl Exporter {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let mut ledger = self.open().await?;
        let mut is_set_back = false;
        self.say_if_buckets_change(&ledger);
        let mut request_size = MAX_REQUEST;
        let mut waits = patience(self.config.interval);
        while !self.projected.is_cancelled() {
            let began = Instant::now();
            let too_long = async {
                self.projected.cancelled().await;
                tokio::time::sleep(PATIENCE_AT_A_STOP).await;
            };
            let exported = tokio::select! {
                exported = self.export(&mut ledger, &mut request_size, &mut is_set_back) => exported?,
                () = too_long => break,
            };
            let wait = if let Some(asked) = exported {
                waits.next().unwrap_or(self.config.interval).min(self.config.interval).max(asked)
            } else {
                waits = patience(self.config.interval);
                self.config.interval
            };
            let _ = tokio::time::timeout_at(began + wait, self.projected.cancelled()).await;
        }
        // One that was broken off is written down, and comes first. Not longer than this: whoever stops this process may
        // not wait for it.
        let last = tokio::time::timeout(LAST_WORD, async {
            // What was being written down when it was broken off may yet be committed: between two looks at the
            // series it would be missing from both. Who can change the lease's row comes after it.
            self.store.renew_lease(&self.lease, self.settings.lease_term).await?;
            let mut ledger = self.open().await?;
            self.export(&mut ledger, &mut request_size, &mut is_set_back).await
        });
        let last = last.await;
        if last.unwrap_or(Ok(Some(Duration::ZERO)))?.is_some() {
            tracing::warn!("the last metrics were not exported: the next relay will tell of them");
        }
        Ok(())
    }

    async fn open(&self) -> Result<Ledger, StoreError> {
        let (ledger, before) = Ledger::open(self.store.recorded().await?, &self.instance);
        if let Some(before) = before {
            tracing::warn!(
                before,
                now = self.instance,
                "the database has another history than the one its metrics were counted in (a failover, or a \
                 restore): new series begin"
            );
        }
        Ok(ledger)
    }

    fn say_if_buckets_change(&self, ledger: &Ledger) {
        if let Some(told) = ledger.buckets().filter(|told| **told != self.settings.projection.buckets) {
            let now = &self.settings.projection.buckets;
            tracing::warn!(
                "the histograms' buckets change from {told} to {now}: they begin anew, and quantiles over a time with \
                 both are too high"
            );
        }
    }

    /// Adds up what is pending, and tells of it. Unless all of it is told: how long the receiver asks to wait.
    async fn export(
        &self,
        ledger: &mut Ledger,
        request_size: &mut usize,
        is_set_back: &mut bool,
    ) -> Result<Option<Duration>, StoreError> {
        loop {
            let now = self.receive(ledger, is_set_back).await?;
            let Some(client) = &self.client else {
                self.store.record(&self.lease, &ledger.change()).await?;
                return Ok(None);
            };
            // One whose fate is unknown comes first, as it was.
            let is_repeated = ledger.attempt().is_some();
            ledger.begin(now, self.config.interval, self.store.skipped_entries().await?);
            self.store.record(&self.lease, &ledger.change()).await?;
            let mut requests = self.encoder.series(&ledger.series(), self.config.exemplars, *request_size);
            if let Some(attempt) = ledger.attempt().filter(|_| !is_repeated)
                && let Some(rows) = self.in_flight().await?
            {
                let rows = ledger.in_flight(rows);
                requests.extend(self.encoder.in_flight(&rows, attempt.at(), *request_size));
            }
            let fate = self.send(client, requests, is_repeated, request_size).await;
            match fate {
                Fate::Told => ledger.acknowledged(),
                Fate::Lost(_) => ledger.forget(),
                Fate::TooLarge => continue,
                Fate::Unknown(asked) => return Ok(Some(asked)),
            }
            self.store.record(&self.lease, &ledger.change()).await?;
            if let Fate::Lost(asked) = fate {
                return Ok(Some(asked));
            }
            if !is_repeated {
                return Ok(None);
            }
        }
    }

    /// Takes in what is pending; the database's time after it.
    ///
    /// Some may be hidden, since somebody has set back the numbers that they get (`setval`, a logical cut-over). Then the
    /// ledger is opened anew, which reads all of them; what it had not written down is in the database still. Not while
    /// an export is under way: only this ledger knows which of them that tells of.
    async fn receive(&self, ledger: &mut Ledger, is_set_back: &mut bool) -> Result<Timestamp, StoreError> {
        let mut is_opened_anew = false;
        loop {
            let fresh = self.store.fresh_totals(&self.lease, ledger.last(), READ_AT_ONCE).await?;
            if fresh.up_to != ledger.stored() && ledger.attempt().is_none() && !is_opened_anew {
                is_opened_anew = true;
                // Until the new numbers have passed the old ones it may come to this again: one line is enough.
                if !std::mem::replace(is_set_back, true) {
                    tracing::warn!(
                        expected = ledger.stored(),
                        found = fresh.up_to,
                        "the numbers of the pending metrics were set back (the sequence of runspan's deltas, by \
                         setval() or a restore): all that is pending is read anew"
                    );
                }
                *ledger = self.open().await?;
                continue;
            }
            let is_all = fresh.totals.len() < READ_AT_ONCE;
            for notice in ledger.receive(fresh.totals) {
                match notice {
                    Notice::Renamed(name) => tracing::warn!(
                        "a workflow's name is too long for a metric, or has control characters: its metrics are \
                         those of {name:?}"
                    ),
                    Notice::Full => tracing::warn!(
                        "there are more than {MAX_WORKFLOWS} workflow names: the metrics of all others are those of \
                         {OTHER:?}"
                    ),
                }
            }
            if is_all {
                return Ok(fresh.now);
            }
        }
    }

    /// The runs in flight, if there is a table and it can be read. One that cannot costs these two metrics, and nothing
    /// else: zeros would say that nothing is in flight.
    async fn in_flight(&self) -> Result<Option<Vec<InFlight>>, StoreError> {
        let read = async {
            match self.store.attached_table().await? {
                Some(_) => self.store.in_flight().await.map(Some),
                None => Ok(None),
            }
        };
        let read = read.await;
        if let Some(said) = read.as_ref().err().and_then(StoreError::refusal) {
            tracing::error!("the table cannot be read, so nobody knows what is in flight: {said}");
            return Ok(None);
        }
        read
    }

    /// Sends requests in order, until one is not taken.
    async fn send(
        &self,
        client: &Client,
        requests: Vec<Points>,
        is_repeated: bool,
        request_size: &mut usize,
    ) -> Fate {
        let mut refused = None;
        // Whether anything of it may be there already.
        let mut is_untouched = !is_repeated;
        for request in requests {
            if is_repeated {
                self.counts.resent(SIGNAL);
            }
            let begun = Instant::now();
            let answer = client.send(request.wire).await;
            self.counts.answered(SIGNAL, request.items, &answer, begun.elapsed());
            let said = answer.cause().map(ToString::to_string).unwrap_or_default();
            let (is_lost, asked) = match &answer {
                Answer::Accepted { rejected, message } => {
                    if *rejected > 0 {
                        tracing::error!(rejected, "the receiver threw some metric points away: {message}");
                    } else if !message.is_empty() {
                        tracing::warn!("the receiver of the metrics warns: {message}");
                    }
                    is_untouched = false;
                    continue;
                }
                // Receivers refuse some of a request's points and keep the others. To tell the same again would be
                // in vain, and to tell of less than what was kept would count it twice.
                Answer::Rejected(_) => {
                    tracing::error!("{said}; the next export tells the sums again");
                    refused = Some(said);
                    is_untouched = false;
                    continue;
                }
                Answer::TooLarge { after: None, .. } if *request_size > LEAST_REQUEST => {
                    *request_size /= 2;
                    tracing::warn!("{said}; trying smaller requests");
                    return Fate::TooLarge;
                }
                Answer::TooLarge { after: None, .. } => {
                    tracing::error!("{said}; these points are left out");
                    refused = Some(said);
                    is_untouched = false;
                    continue;
                }
                Answer::Misconfigured(cause) => {
                    tracing::error!("{said}");
                    // Nobody mends it within a moment. Of two stores behind a Collector one may refuse the credentials,
                    // and the other have taken the points.
                    (cause.kind() != Kind::Credentials, Some(self.config.interval))
                }
                Answer::Retry { cause, after } | Answer::TooLarge { cause, after } => {
                    tracing::warn!("{said}");
                    (cause.kind() == Kind::Unreachable, *after)
                }
            };
            let is_refused = matches!(answer, Answer::Misconfigured(_));
            let state = if is_refused { SenderState::Refused } else { SenderState::Waiting };
            self.monitor.update(|snapshot| snapshot.metrics = Some(state(said)));
            let asked = asked.unwrap_or_default();
            return if is_lost && is_untouched { Fate::Lost(asked) } else { Fate::Unknown(asked) };
        }
        self.monitor.update(|state| {
            state.metrics = Some(refused.map_or(SenderState::Idle, SenderState::Refused));
        });
        Fate::Told
    }
}
