//! What to do with a request, given the receiver's answer. Pure.
//!
//! One rule for all: what was not accepted was not delivered. Two kinds of requests are sent. Those of the outbox are kept
//! until they are acknowledged: [`DeliveryPolicy`]. Those of metrics are made anew from the series: [`ExportPolicy`].
//!
//! A request of the outbox is abandoned only when the receiver refuses *it*, not everything. The proof is an acceptance in
//! between: it was refused, something else was accepted, and it is refused again. A refused request without that proof is
//! suspect: it waits while those behind it are tried. Three unrelated suspects are not three invalid requests: the receiver
//! is at fault, and what follows is tried only now and then.
//!
//! A receiver that fails on a request (500, INTERNAL, UNKNOWN) says nothing about it, so one proof is not enough: while
//! others are accepted, and none of them fails, it has to fail [`FAULTS_OF_ONE`] times.
//!
//! "Too large" without a wait may as well mean "too busy". So it is sent again first, and halved if it is refused again:
//! see [`Sizes`].

mod export;
mod sizes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

pub(super) use self::export::{AfterExport, ExportOutcome, ExportPolicy};
use self::sizes::Sizes;
use crate::otlp::answer::Answer;

/// How often a request of many items may make the receiver fail before it is suspect.
const FAULTS: u32 = 3;
/// The same for a request of a single item, and again for abandoning it.
const FAULTS_OF_ONE: u32 = 10;
/// How many unrelated suspects show that the receiver is at fault.
const UNRELATED: usize = 3;

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) id: i64,
    /// The halves of a request share its place.
    pub(super) place: i64,
    pub(super) items: usize,
}

/// What to do with a request of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Delivered. Suspects are to be tried again.
    Delivered,
    /// Send it again after a backoff, or after this wait if it is longer.
    Keep(Option<Duration>),
    /// Send its halves.
    Halve,
    /// Abandon it.
    Dead,
    /// Leave it for now and try the next request.
    TryOthers,
    /// The same, after a backoff: the receiver seems to accept nothing.
    TryOthersLater,
}

/// The history of one channel that its decisions rest on.
#[derive(Debug, Default)]
pub(super) struct DeliveryPolicy {
    /// The places whose requests were refused.
    refused: BTreeMap<i64, RefusedRequest>,
    /// The requests that made the receiver fail.
    faults: HashMap<i64, Faults>,
    sizes: Sizes,
    suspects: Vec<Suspect>,
}

/// What was accepted since the request of a place was first refused.
#[derive(Clone, Copy, Debug, Default)]
struct RefusedRequest {
    /// Something, so the receiver works, and halving may find the invalid item.
    works: bool,
    /// Something since the last request of this place was abandoned, or failed.
    proof: bool,
}

/// How often a request made the receiver fail.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// In all.
    all: u32,
    /// While others were accepted, and none of them failed.
    proven: u32,
}

#[derive(Debug)]
struct Suspect {
    place: i64,
    answer: String,
}

impl DeliveryPolicy {
    pub(super) fn decide(&mut self, request: Facts, answer: &Answer) -> Decision {
        match answer {
            Answer::Accepted { .. } => self.accepted(request),
            Answer::Retry { cause, after } if cause.is_suspicious() => {
                match self.failed(request, cause.to_string()) {
                    Decision::Keep(_) => Decision::Keep(*after),
                    decision => decision,
                }
            }
            Answer::Retry { after, .. } | Answer::TooLarge { after: after @ Some(_), .. } => {
                Decision::Keep(*after)
            }
            Answer::Misconfigured(_) => Decision::Keep(None),
            Answer::TooLarge { after: None, .. } if request.items > 1 && self.sizes.refused(request) => {
                Decision::Halve
            }
            Answer::TooLarge { after: None, .. } => Decision::Keep(None),
            // The first refused request is halved: its halves may show whether an item or the receiver is at fault.
            Answer::Rejected(_) if request.items > 1 && self.suspects.is_empty() => {
                self.refused.entry(request.place).or_default();
                Decision::Halve
            }
            Answer::Rejected(cause) => {
                if let Some(decision) = self.halve_if_it_may_help(request) {
                    return decision;
                }
                // One proof abandons one request: the receiver may have stopped accepting anything since.
                if self.take_proof(request) {
                    Decision::Dead
                } else {
                    self.suspect(request, cause.to_string())
                }
            }
        }
    }

    /// Every pending request was tried: starts over. The last answer, if there are suspects.
    pub(super) fn nothing_left(&mut self) -> Option<String> {
        let last = self.suspects.pop()?.answer;
        self.suspects.clear();
        Some(last)
    }

    fn accepted(&mut self, request: Facts) -> Decision {
        self.sizes.accepted(request);
        if self.suspects.is_empty() {
            // Requests are sent in order: everything before is settled.
            self.refused = self.refused.split_off(&request.place);
            self.sizes.settled_before(request.place);
        }
        self.faults.remove(&request.id);
        self.suspects.clear();
        self.refused.values_mut().for_each(|refusal| *refusal = RefusedRequest { works: true, proof: true });
        Decision::Delivered
    }

    fn failed(&mut self, request: Facts, answer: String) -> Decision {
        let faults = self.faults.entry(request.id).or_default();
        faults.all = faults.all.saturating_add(1);
        let enough = if request.items > 1 { FAULTS } else { FAULTS_OF_ONE };
        if faults.all < enough {
            // It fails on others too: what it failed on before is not proven to be at fault.
            self.faults.values_mut().for_each(|faults| faults.proven = 0);
            self.refused.entry(request.place).or_default();
            return Decision::Keep(None);
        }
        if let Some(decision) = self.halve_if_it_may_help(request) {
            return decision;
        }
        if self.take_proof(request) {
            let faults = self.faults.entry(request.id).or_default();
            faults.proven += 1;
            if faults.proven >= FAULTS_OF_ONE {
                self.faults.remove(&request.id);
                return Decision::Dead;
            }
        }
        self.suspect(request, answer)
    }

    /// Whether the receiver accepted something since a request of this place was last abandoned or failed. A proof serves
    /// once.
    fn take_proof(&mut self, request: Facts) -> bool {
        std::mem::take(&mut self.refused.entry(request.place).or_default().proof)
    }

    fn halve_if_it_may_help(&mut self, request: Facts) -> Option<Decision> {
        let works = self.refused.entry(request.place).or_default().works;
        if !works || request.items == 1 {
            return None;
        }
        self.faults.remove(&request.id);
        Some(Decision::Halve)
    }

    fn suspect(&mut self, request: Facts, answer: String) -> Decision {
        self.suspects.push(Suspect { place: request.place, answer });
        let unrelated: BTreeSet<i64> = self.suspects.iter().map(|suspect| suspect.place).collect();
        if unrelated.len() < UNRELATED { Decision::TryOthers } else { Decision::TryOthersLater }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::otlp::Signal;
    use crate::otlp::answer::from_http;
    use crate::otlp::config::SignalConfig;
    use proptest::prelude::*;

    /// A request of the simulation: which items it holds.
    type Items = Range<usize>;

    pub(super) fn answer(status: u16) -> Answer {
        let config = SignalConfig::from_env(Signal::Traces, &|_| None).unwrap().unwrap();
        from_http(
            &config,
            http::StatusCode::from_u16(status).unwrap(),
            &http::HeaderMap::new(),
            b"",
            std::time::SystemTime::UNIX_EPOCH,
        )
    }

    /// Sends `queue` to a receiver that answers by content, as the sender would; the items delivered and the dead ones.
    fn simulate(
        mut queue: Vec<(Facts, Items)>,
        rounds: usize,
        receiver: impl Fn(usize, &Items) -> u16,
    ) -> (Vec<usize>, Vec<usize>) {
        let mut policy = DeliveryPolicy::default();
        let (mut delivered, mut dead) = (Vec::new(), Vec::new());
        let (mut next_id, mut attempts) = (1_000_000, 0);
        for _ in 0..rounds {
            let mut after = (0, 0);
            loop {
                queue.sort_by_key(|(facts, _)| (facts.place, facts.id));
                let behind = |(facts, _): &(Facts, Items)| (facts.place, facts.id) > after;
                let Some(index) = queue.iter().position(behind) else {
                    policy.nothing_left();
                    break;
                };
                let (facts, items) = queue[index].clone();
                attempts += 1;
                match policy.decide(facts, &answer(receiver(attempts, &items))) {
                    Decision::Delivered => {
                        delivered.extend(items);
                        queue.remove(index);
                        after = (0, 0);
                    }
                    Decision::Halve => {
                        queue.remove(index);
                        let middle = items.start + items.len() / 2;
                        for half in [items.start..middle, middle..items.end] {
                            next_id += 1;
                            queue.push((Facts { id: next_id, items: half.len(), ..facts }, half));
                        }
                    }
                    Decision::Dead => {
                        dead.extend(items);
                        queue.remove(index);
                    }
                    Decision::TryOthers | Decision::TryOthersLater => after = (facts.place, facts.id),
                    Decision::Keep(_) => {}
                }
            }
        }
        delivered.sort_unstable();
        dead.sort_unstable();
        (delivered, dead)
    }

    fn queue(sizes: &[usize]) -> Vec<(Facts, Items)> {
        let mut start = 0;
        sizes
            .iter()
            .zip(1..)
            .map(|(&items, id)| {
                start += items;
                (Facts { id, place: id, items }, start - items..start)
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn only_invalid_items_die_and_all_others_are_delivered(
            sizes in prop::collection::vec(1_usize..40, 1..8),
            poison in prop::collection::btree_set(0_usize..200, 0..9),
            fault: bool,
        ) {
            let total: usize = sizes.iter().sum();
            let poison: Vec<usize> = poison.into_iter().filter(|item| *item < total).collect();
            let status = if fault { 500 } else { 400 };
            let is_poison = |items: &Items| poison.iter().any(|item| items.contains(item));
            let mut sizes = sizes;
            // A valid item at the end.
            sizes.push(1);
            let (delivered, dead) =
                simulate(queue(&sizes), 40, |_, items| if is_poison(items) { status } else { 200 });
            let good: Vec<usize> = (0..=total).filter(|item| !poison.contains(item)).collect();
            prop_assert_eq!(delivered, good);
            // The last request may stay suspect: nothing was accepted after it.
            prop_assert!(dead.iter().all(|item| poison.contains(item)), "{:?}", dead);
        }

        #[test]
        fn a_receiver_that_fails_now_and_then_kills_nothing(
            sizes in prop::collection::vec(1_usize..3, 1..12),
            fails in prop::collection::vec(any::<bool>(), 1..600),
            period in 1_usize..30,
            is_regular: bool,
        ) {
            let total: usize = sizes.iter().sum();
            let status = |attempt: usize| {
                let fails = fails.get(attempt - 1);
                let is_failure = fails.is_some_and(|fails| if is_regular { !attempt.is_multiple_of(period) } else { *fails });
                if is_failure { 500 } else { 200 }
            };
            let (delivered, dead) = simulate(queue(&sizes), 200, |attempt, _| status(attempt));
            prop_assert_eq!(dead, Vec::<usize>::new());
            prop_assert_eq!(delivered, (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn a_receiver_that_refuses_everything_for_a_while_kills_nothing(
            sizes in prop::collection::vec(1_usize..40, 1..8),
            broken_for in 0_usize..200,
            status in prop::sample::select(vec![400_u16, 401, 404, 413, 429, 500, 503]),
        ) {
            let total: usize = sizes.iter().sum();
            let (delivered, dead) =
                simulate(queue(&sizes), 200, |attempt, _| if attempt <= broken_for { status } else { 200 });
            prop_assert_eq!(dead, Vec::<usize>::new());
            prop_assert_eq!(delivered, (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn a_request_dies_only_if_another_was_accepted_between_two_refusals(
            answers in prop::collection::vec(
                (0_i64..20, 1_usize..4, prop::sample::select(vec![
                    100_u16, 200, 204, 302, 400, 401, 404, 408, 413, 418, 429, 451, 500, 501, 503, 599, 999,
                ])),
                0..120,
            ),
        ) {
            let mut policy = DeliveryPolicy::default();
            // The places that were refused or made the receiver fail, and whether anything was accepted since.
            let mut refused = BTreeMap::<i64, bool>::new();
            let mut gone = BTreeSet::new();
            for (place, items, status) in answers {
                if gone.contains(&place) {
                    continue;
                }
                let decision = policy.decide(Facts { id: place, place, items }, &answer(status));
                match status {
                    200 | 204 => refused.values_mut().for_each(|taken| *taken = true),
                    400 | 500 => {
                        let taken = refused.entry(place).or_default();
                        if decision == Decision::Dead {
                            prop_assert!(*taken && items == 1, "{place} died of {status}");
                            gone.insert(place);
                        }
                    }
                    _ => prop_assert!(matches!(decision, Decision::Keep(_) | Decision::Halve), "{status}: {decision:?}"),
                }
                prop_assert_eq!(decision == Decision::Delivered, matches!(status, 200 | 204));
                if decision == Decision::Delivered {
                    gone.insert(place);
                }
            }
        }
    }

    #[test]
    fn a_failure_that_asks_for_a_wait_gets_it() {
        let config = SignalConfig::from_env(Signal::Traces, &|_| None).unwrap().unwrap();
        let headers = http::HeaderMap::from_iter([(http::header::RETRY_AFTER, "7".parse().unwrap())]);
        let failure = http::StatusCode::INTERNAL_SERVER_ERROR;
        let failure = from_http(&config, failure, &headers, b"", std::time::SystemTime::UNIX_EPOCH);
        let request = Facts { id: 1, place: 1, items: 1 };
        let decision = DeliveryPolicy::default().decide(request, &failure);
        assert_eq!(decision, Decision::Keep(Some(Duration::from_secs(7))));
    }

    #[test]
    fn after_failures_of_everything_one_more_kills_nothing_innocent_and_poison_still_dies() {
        let innocent = |attempt, _: &Items| if attempt <= 10 || attempt == 12 { 500 } else { 200 };
        assert_eq!(simulate(queue(&[1, 1]), 10, innocent), (vec![0, 1], vec![]));
        let poison = |_, items: &Items| if items.contains(&0) { 500 } else { 200 };
        let (delivered, dead) = simulate(queue(&[1; 12]), 10, poison);
        assert_eq!((delivered, dead), ((1..12).collect(), vec![0]));
    }

    #[test]
    fn a_busy_receiver_gets_the_same_requests_afterwards() {
        let mut requests = Vec::new();
        let seen = std::cell::RefCell::new(&mut requests);
        let busy = |attempt, items: &Items| {
            let is_busy = (2..=8).contains(&attempt);
            if !is_busy {
                seen.borrow_mut().push(items.len());
            }
            if is_busy { 413 } else { 200 }
        };
        assert_eq!(simulate(queue(&[20, 20, 20]), 10, busy), ((0..60).collect(), vec![]));
        assert_eq!(requests, [20, 20, 20]);
    }
}
