//! Outbox → receiver, for one channel: sends the oldest request until it is acknowledged.
//!
//! One sender per channel, so a receiver that is away stops no other signal.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::delivery_policy::{Decision, DeliveryPolicy, Facts};
use super::error::RelayError;
use super::sink::Sink;
use super::status::{SenderState, Warnings};
use super::term::Term;
use crate::backoff::backoff;
use crate::otlp::answer::Answer;
use crate::otlp::body::DecodeError;
use crate::otlp::encode;
use crate::outage::{Extent, Outage, Report, Severity};
use crate::store::{Channel, Request, Settlement, StoreError};

/// How often an empty outbox is polled: `runspan outbox retry` does not wake a sender.
const IDLE_POLL: Duration = Duration::from_secs(10);

/// Requests older than this are a backlog, and paced.
const FRESH_SECONDS: f64 = 60.0;

/// What an outage left behind, while it is sent.
struct Backlog {
    since: Instant,
    requests: u64,
}

pub(super) struct Sender {
    pub(super) term: Arc<Term>,
    pub(super) channel: Channel,
    pub(super) sink: Arc<Sink>,
}

impl Sender {
    pub(super) async fn run(self) -> Result<(), RelayError> {
        let mut policy = DeliveryPolicy::default();
        let longest = self.term.settings.longest_backoff;
        let mut waits = backoff(longest);
        let mut warnings = Warnings::default();
        let mut outage = Outage::default();
        let mut backlog: Option<Backlog> = None;
        // Suspect requests up to here are skipped for a while.
        let mut after = None;
        // Requests that were sent and not settled.
        let mut unsettled = HashSet::new();
        // The request behind the one being sent, read meanwhile.
        let mut following: Option<Request> = None;
        while !self.term.stop.is_cancelled() {
            let request = match following.take() {
                Some(request) => Some(request),
                None => self.term.store.next_request(self.channel, after).await?,
            };
            let Some(request) = request else {
                after = None;
                if let Some(answer) = policy.nothing_left() {
                    self.wait_refused(answer, &mut waits, &mut outage).await;
                } else {
                    self.log_sent(backlog.take());
                    self.wait_idle().await;
                }
                continue;
            };
            let started = Instant::now();
            let facts = Facts { id: request.id, place: request.place, items: request.items };
            let ahead = self.term.store.next_request(self.channel, Some((request.place, request.id)));
            if !unsettled.insert(request.id) {
                self.term.counts.resent(self.channel.as_str());
            }
            let (answer, next) = tokio::join!(self.send(&request), ahead);
            let answer = match answer? {
                Ok(answer) => answer,
                Err(error) => {
                    unsettled.remove(&request.id);
                    self.abandon(&request, &error.to_string()).await?;
                    continue;
                }
            };
            let cause = answer.cause().map(ToString::to_string).unwrap_or_default();
            let decision = policy.decide(facts, &answer);
            if matches!(decision, Decision::Delivered | Decision::Halve | Decision::Dead) {
                unsettled.remove(&request.id);
            }
            match decision {
                Decision::Delivered => {
                    self.delivered(&request, &answer, &mut warnings).await?;
                    if outage.log_recovery(self.channel.as_str()) {
                        backlog = Some(Backlog { since: Instant::now(), requests: 0 });
                    }
                    // A request that was stored since is not part of it.
                    let is_sent =
                        |left: &mut Backlog| request.age_seconds < left.since.elapsed().as_secs_f64();
                    self.log_sent(backlog.take_if(is_sent));
                    if let Some(left) = &mut backlog {
                        left.requests += 1;
                    }
                    // Skipped requests are tried again, from the front.
                    following = next?.filter(|_| after.is_none());
                    after = None;
                    waits = backoff(longest);
                    self.pace(&request, started).await;
                }
                Decision::Keep(asked) => {
                    // A receiver that asks for less than our own backoff, or for nothing, may be answering so to everyone.
                    let own = waits.next().unwrap_or(longest);
                    let wait = asked.unwrap_or_default().max(own);
                    let is_refused = matches!(answer, Answer::Misconfigured(_));
                    let severity = if is_refused { Severity::Misconfigured } else { Severity::Passing };
                    outage.log_failure(&cause, severity, Some(wait));
                    let state =
                        if is_refused { SenderState::Refused(cause) } else { SenderState::Waiting(cause) };
                    self.term.status.sender(self.channel, state);
                    self.term.pause(wait).await;
                }
                Decision::Halve => self.halve(&request, &cause).await?,
                Decision::Dead => self.abandon(&request, &cause).await?,
                Decision::TryOthers => {
                    // While everything is refused, that is logged.
                    if !outage.is_on() {
                        tracing::warn!(request = request.id, "{cause}; trying the next request");
                    }
                    after = Some((request.place, request.id));
                }
                Decision::TryOthersLater => {
                    after = Some((request.place, request.id));
                    self.wait_refused(cause, &mut waits, &mut outage).await;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, request: &Request) -> Result<Result<Answer, DecodeError>, RelayError> {
        let began = Instant::now();
        let answer = self.sink.send(&request.body).await?;
        if let Ok(answer) = &answer {
            self.term.counts.answered(self.channel.as_str(), request.items, answer, began.elapsed());
        }
        Ok(answer)
    }

    async fn delivered(
        &self,
        request: &Request,
        answer: &Answer,
        warnings: &mut Warnings,
    ) -> Result<(), StoreError> {
        self.term.store.settle(&self.term.lease, &[Settlement::Delivered { id: request.id }]).await?;
        let mut rejected_items = 0;
        if let Answer::Accepted { rejected, message } = answer {
            rejected_items = *rejected;
            if *rejected > 0 {
                tracing::error!(channel = %self.channel, rejected, "receiver rejected items: {message}");
            } else if !message.is_empty() && warnings.insert(message) {
                tracing::warn!(channel = %self.channel, "receiver warning: {message}");
            }
        }
        self.term.status.update(|state| {
            state.acknowledged_at = Some(SystemTime::now());
            state.delivered_items += request.items as u64;
            state.rejected_items += rejected_items;
            state.senders.insert(self.channel, SenderState::Busy);
        });
        Ok(())
    }

    async fn halve(&self, request: &Request, cause: &str) -> Result<(), StoreError> {
        let halves = match encode::halve(request.channel, &request.body) {
            Ok(Some(halves)) => halves,
            Ok(None) => return self.abandon(request, cause).await,
            Err(error) => return self.abandon(request, &error.to_string()).await,
        };
        tracing::warn!(request = request.id, items = request.items, "{cause}; trying its halves");
        let settlement = Settlement::Halved {
            id: request.id,
            place: request.place,
            created_at: request.created_at,
            halves,
        };
        self.term.store.settle(&self.term.lease, &[settlement]).await
    }

    async fn abandon(&self, request: &Request, cause: &str) -> Result<(), StoreError> {
        tracing::error!(channel = %self.channel, request = request.id, "request is dead, see `runspan outbox`: {cause}");
        let settlement = Settlement::Dead { id: request.id, answer: cause.to_owned() };
        self.term.store.settle(&self.term.lease, &[settlement]).await
    }

    /// Logs that nothing of an outage is left.
    fn log_sent(&self, backlog: Option<Backlog>) {
        if let Some(Backlog { since, requests }) = backlog {
            tracing::info!(
                channel = %self.channel,
                requests,
                took_ms = since.elapsed().as_millis(),
                "sent the requests that waited for the receiver"
            );
        }
    }

    /// The receiver refuses everything that is pending: waits for a new request, or for a backoff.
    async fn wait_refused(
        &self,
        answer: String,
        waits: &mut impl Iterator<Item = Duration>,
        outage: &mut Outage,
    ) {
        let wait = waits.next().unwrap_or(self.term.settings.longest_backoff);
        let (attempts, outage_ms) = match outage.failed(&answer, Instant::now()) {
            Report::Cause => (None, None),
            Report::Summary(Extent { attempts, duration }) => (Some(attempts), Some(duration.as_millis())),
            Report::Nothing => return self.wait_for_request(answer, wait).await,
        };
        tracing::error!(
            channel = %self.channel,
            retry_in_ms = wait.as_millis(),
            attempts,
            outage_ms,
            "receiver accepts none of the pending requests; keeping all: {answer}"
        );
        self.wait_for_request(answer, wait).await;
    }

    async fn wait_for_request(&self, answer: String, wait: Duration) {
        self.term.status.sender(self.channel, SenderState::Refused(answer));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.term.status.request_arrives(self.channel) => {}
            () = self.term.stop.cancelled() => {}
        }
    }

    /// Nothing is pending: waits for a new request.
    async fn wait_idle(&self) {
        self.term.status.sender(self.channel, SenderState::Idle);
        tokio::select! {
            () = tokio::time::sleep(IDLE_POLL) => {}
            () = self.term.status.request_arrives(self.channel) => {}
            () = self.term.stop.cancelled() => {}
        }
    }

    /// Waits until the next request is due, see [`spread`].
    async fn pace(&self, request: &Request, started: Instant) {
        let due = started + spread(request, self.term.settings.max_runs_per_second);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = self.term.stop.cancelled() => {}
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
