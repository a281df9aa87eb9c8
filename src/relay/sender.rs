//! Outbox → receiver, for one channel: the oldest request, again and again, until it is acknowledged.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::judge::{Facts, Judge, Verdict};
use super::meter::Counts;
use super::monitor::{Monitor, SenderState};
use super::projector::new_request;
use super::{RelayError, Settings, Sink, patience};
use crate::otlp::Signal;
use crate::otlp::answer::Answer;
use crate::otlp::encode;
use crate::store::{Channel, Lease, Request, Settlement, Store, StoreError};

/// How often an outbox that seems empty is looked at all the same: `runspan outbox retry` does not ring.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// Requests that have waited longer are a backlog, and paced.
const FRESH_SECONDS: f64 = 60.0;

pub(super) struct Sender {
    pub(super) store: Arc<dyn Store>,
    pub(super) lease: Lease,
    pub(super) channel: Channel,
    pub(super) sink: Arc<Sink>,
    pub(super) settings: Settings,
    pub(super) monitor: Monitor,
    pub(super) counts: Counts,
    pub(super) stop: CancellationToken,
}

impl Sender {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let mut judge = Judge::default();
        let mut patience = patience(self.settings.longest_backoff);
        // Requests in doubt are passed over for a while.
        let mut after = None;
        // Those that were sent in vain, and will be again.
        let mut unanswered = HashSet::new();
        // The request behind the one being sent, read meanwhile.
        let mut following: Option<Request> = None;
        while !self.stop.is_cancelled() {
            let request = match following.take() {
                Some(request) => Some(request),
                None => self.store.next_request(self.channel, after).await?,
            };
            let Some(request) = request else {
                after = None;
                match judge.nothing_left() {
                    Some(said) => self.refused(said, &mut patience).await,
                    None => self.rest().await,
                }
                continue;
            };
            let started = Instant::now();
            let facts = Facts { id: request.id, place: request.place, items: request.items };
            let wire = match encode::unpack(&request.body) {
                Ok(wire) => wire,
                Err(error) => {
                    self.give_up(&request, &error.to_string()).await?;
                    continue;
                }
            };
            let ahead = self.store.next_request(self.channel, Some((request.place, request.id)));
            if !unanswered.insert(request.id) {
                self.counts.resent(self.channel.as_str());
            }
            let (answer, next) = tokio::join!(self.send(&request, wire), ahead);
            let answer = answer?;
            let said = answer.cause().map(ToString::to_string).unwrap_or_default();
            let verdict = judge.judge(facts, &answer);
            if matches!(verdict, Verdict::Delivered | Verdict::Halve | Verdict::Dead) {
                unanswered.remove(&request.id);
            }
            match verdict {
                Verdict::Delivered => {
                    self.delivered(&request, &answer).await?;
                    // What was passed over is tried again, from the front.
                    following = next?.filter(|_| after.is_none());
                    after = None;
                    patience = super::patience(self.settings.longest_backoff);
                    self.pace(&request, started).await;
                }
                Verdict::Keep(wait) => {
                    let wait = wait.or_else(|| patience.next()).unwrap_or(self.settings.longest_backoff);
                    let state = if matches!(answer, Answer::Misconfigured(_)) {
                        tracing::error!(retry_in_ms = wait.as_millis(), "{said}");
                        SenderState::Refused(said)
                    } else {
                        tracing::warn!(retry_in_ms = wait.as_millis(), "{said}");
                        SenderState::Waiting(said)
                    };
                    self.monitor.sender(self.channel, state);
                    let _ = tokio::time::timeout(wait, self.stop.cancelled()).await;
                }
                Verdict::Halve => self.halve(&request, &said).await?,
                Verdict::Dead => self.give_up(&request, &said).await?,
                Verdict::TryOthers => {
                    tracing::warn!(request = request.id, "{said}; trying the next request");
                    after = Some((request.place, request.id));
                }
                Verdict::TryOthersLater => {
                    after = Some((request.place, request.id));
                    self.refused(said, &mut patience).await;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, request: &Request, wire: bytes::Bytes) -> Result<Answer, RelayError> {
        let begun = Instant::now();
        let answer = self.sink.send(wire).await?;
        self.counts.answered(self.channel.as_str(), request.items, &answer, begun.elapsed());
        Ok(answer)
    }

    async fn delivered(&self, request: &Request, answer: &Answer) -> Result<(), StoreError> {
        self.store.settle(&self.lease, &[Settlement::Delivered { id: request.id }]).await?;
        let mut thrown_away = 0;
        if let Answer::Accepted { rejected, message } = answer {
            thrown_away = *rejected;
            if *rejected > 0 {
                tracing::error!(channel = %self.channel, rejected, "the receiver threw some away: {message}");
            } else if !message.is_empty() {
                tracing::warn!(channel = %self.channel, "the receiver warns: {message}");
            }
        }
        self.monitor.update(|state| {
            state.acknowledged_at = Some(SystemTime::now());
            state.delivered_items += request.items as u64;
            state.rejected_items += thrown_away;
            state.senders.insert(self.channel, SenderState::Busy);
        });
        Ok(())
    }

    async fn halve(&self, request: &Request, said: &str) -> Result<(), StoreError> {
        let halves = match self.channel.signal().map(|signal| encode::halve(signal, &request.body)) {
            Some(Ok(Some(halves))) => halves,
            Some(Err(error)) => return self.give_up(request, &error.to_string()).await,
            Some(Ok(None)) | None => return self.give_up(request, said).await,
        };
        tracing::warn!(request = request.id, items = request.items, "{said}; trying its halves");
        let settlement = Settlement::Halved {
            id: request.id,
            place: request.place,
            created_at: request.created_at,
            halves: halves.map(|half| new_request(self.channel, half)),
        };
        self.store.settle(&self.lease, &[settlement]).await
    }

    async fn give_up(&self, request: &Request, said: &str) -> Result<(), StoreError> {
        tracing::error!(channel = %self.channel, request = request.id, "given up, see `runspan outbox`: {said}");
        let settlement = Settlement::Dead { id: request.id, answer: said.to_owned() };
        self.store.settle(&self.lease, &[settlement]).await
    }

    /// Nothing of what waits is taken: waits for something new to try, or for a while.
    async fn refused(&self, said: String, patience: &mut impl Iterator<Item = Duration>) {
        let wait = patience.next().unwrap_or(self.settings.longest_backoff);
        tracing::error!(
            channel = %self.channel,
            retry_in_ms = wait.as_millis(),
            "the receiver refuses every request, so the fault is not a request's; all are kept: {said}"
        );
        self.monitor.sender(self.channel, SenderState::Refused(said));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.monitor.request_arrives(self.channel) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Nothing waits.
    async fn rest(&self) {
        self.monitor.sender(self.channel, SenderState::Idle);
        tokio::select! {
            () = tokio::time::sleep(IDLE_LOOK) => {}
            () = self.monitor.request_arrives(self.channel) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Waits until the next request is due, see [`spread`].
    async fn pace(&self, request: &Request, started: Instant) {
        let due = started + spread(request, self.settings.max_runs_per_second);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// How long a request has to itself, so that a backlog of spans arrives at `rate` runs per second: backends limit
/// how many traces they take at once, and some drop what is above the limit behind a success (Grafana Tempo's
/// `max_traces_per_user`). Fresh requests, and records, are not spread.
fn spread(request: &Request, rate: u32) -> Duration {
    if rate == 0 || request.channel != Channel::Traces || request.age_seconds < FRESH_SECONDS {
        return Duration::ZERO;
    }
    Duration::from_secs(1) * u32::try_from(request.runs).unwrap_or(u32::MAX) / rate
}

impl Channel {
    /// The OTLP signal of the channel; standard output has none.
    fn signal(self) -> Option<Signal> {
        match self {
            Self::Traces => Some(Signal::Traces),
            Self::Logs => Some(Signal::Logs),
            Self::Stdout => None,
        }
    }
}

impl Sink {
    async fn send(&self, body: bytes::Bytes) -> Result<Answer, RelayError> {
        match self {
            Self::Otlp(client) => Ok(client.send(body).await),
            Self::Stdout => {
                let written = tokio::task::spawn_blocking(move || {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&body).and_then(|()| out.flush())
                });
                written.await.map_err(|_| RelayError::Panicked)?.map_err(RelayError::Stdout)?;
                Ok(Answer::Accepted { rejected: 0, message: String::new() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Timestamp;

    #[test]
    fn only_a_backlog_of_spans_is_spread() {
        let request = |channel, age_seconds| Request {
            id: 1,
            place: 1,
            channel,
            created_at: Timestamp::from_micros(0),
            age_seconds,
            items: 2_000,
            runs: 1_000,
            body: bytes::Bytes::new(),
        };
        assert_eq!(spread(&request(Channel::Traces, 61.0), 500), Duration::from_secs(2));
        assert_eq!(spread(&request(Channel::Traces, 61.0), 0), Duration::ZERO);
        assert_eq!(spread(&request(Channel::Traces, 59.0), 500), Duration::ZERO);
        assert_eq!(spread(&request(Channel::Logs, 61.0), 500), Duration::ZERO);
    }
}
