//! What to do with a request, given the receiver's answer. Pure.
//!
//! Two kinds of requests are sent. Those of the outbox are kept until they are acknowledged: [`DeliveryPolicy`]. Those of
//! metrics are made anew from the series, so only the question whether they arrived matters: [`after_export`].
//!
//! A request of the outbox is abandoned only when the receiver refuses *it*, not everything. The proof is an acceptance in
//! between: it was refused, something else was accepted, and it is refused again. A refused request without that proof is
//! suspect: it waits while those behind it are tried. Three unrelated suspects are not three invalid requests: the receiver
//! is at fault, and what follows is tried only now and then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::otlp::answer::{Answer, FailureKind};

/// How often a request of many items may make the receiver fail before it is suspect.
const FAULTS: u32 = 3;
/// The same for a request of a single item, which would be abandoned.
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
    /// Send it again after this wait, or else after a backoff.
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
    /// How often a request made the receiver fail.
    faults: HashMap<i64, u32>,
    suspects: Vec<Suspect>,
}

/// What was accepted since the request of a place was first refused.
#[derive(Clone, Copy, Debug, Default)]
struct RefusedRequest {
    /// Something, so the receiver works, and halving may find the invalid item.
    works: bool,
    /// Something since the last request of this place was abandoned.
    proof: bool,
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
            Answer::Retry { cause, .. } if cause.is_suspicious() => {
                let faults = self.faults.entry(request.id).or_default();
                *faults += 1;
                let enough = if request.items > 1 { FAULTS } else { FAULTS_OF_ONE };
                if *faults >= enough {
                    return self.suspect(request, cause.to_string());
                }
                self.refused.entry(request.place).or_default();
                Decision::Keep(None)
            }
            Answer::Retry { after, .. } | Answer::TooLarge { after: after @ Some(_), .. } => {
                Decision::Keep(*after)
            }
            Answer::Misconfigured(_) => Decision::Keep(None),
            Answer::TooLarge { after: None, .. } if request.items > 1 => Decision::Halve,
            Answer::TooLarge { after: None, .. } => Decision::Keep(None),
            // The first refused request is halved: its halves may show whether an item or the receiver is at fault.
            Answer::Rejected(_) if request.items > 1 && self.suspects.is_empty() => {
                self.refused.entry(request.place).or_default();
                Decision::Halve
            }
            Answer::Rejected(cause) => self.suspect(request, cause.to_string()),
        }
    }

    /// Every pending request was tried: starts over. The last answer, if there are suspects.
    pub(super) fn nothing_left(&mut self) -> Option<String> {
        let last = self.suspects.pop()?.answer;
        self.suspects.clear();
        Some(last)
    }

    fn accepted(&mut self, request: Facts) -> Decision {
        if self.suspects.is_empty() {
            // Requests are sent in order: everything before is settled.
            self.refused = self.refused.split_off(&request.place);
            self.faults.remove(&request.id);
        }
        self.suspects.clear();
        self.refused.values_mut().for_each(|refusal| *refusal = RefusedRequest { works: true, proof: true });
        Decision::Delivered
    }

    fn suspect(&mut self, request: Facts, answer: String) -> Decision {
        let refusal = self.refused.entry(request.place).or_default();
        if refusal.works && request.items > 1 {
            return Decision::Halve;
        }
        // One proof abandons one request: the receiver may have stopped accepting anything since.
        if std::mem::take(&mut refusal.proof) {
            self.faults.remove(&request.id);
            return Decision::Dead;
        }
        self.suspects.push(Suspect { place: request.place, answer });
        let unrelated: BTreeSet<i64> = self.suspects.iter().map(|suspect| suspect.place).collect();
        if unrelated.len() < UNRELATED { Decision::TryOthers } else { Decision::TryOthersLater }
    }
}

/// Whether an export of metrics arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExportOutcome {
    /// The receiver has it, or will never accept it.
    Acknowledged,
    /// It did not arrive. The receiver asks for this wait.
    NotDelivered(Duration),
    /// It may have arrived: it has to be sent again unchanged. The receiver asks for this wait.
    Unknown(Duration),
    /// The same, but at once and in smaller requests.
    TooLarge,
}

/// What to do after one request of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterExport {
    /// Send the next request.
    Continue,
    /// Send the next request: the receiver will never accept these points.
    Skip,
    /// End the export.
    End(ExportOutcome),
}

/// What to do after one request of an export of metrics. `is_untouched`: surely nothing of the export has arrived before
/// this request. `can_shrink`: requests may still be made smaller. `interval` is the one between exports.
pub(super) fn after_export(
    answer: &Answer,
    is_untouched: bool,
    can_shrink: bool,
    interval: Duration,
) -> AfterExport {
    let (is_lost, wait) = match answer {
        Answer::Accepted { .. } => return AfterExport::Continue,
        // Receivers refuse some points of a request and keep the others. Sending the same again would be in vain, and
        // sending less than what was kept would count it twice.
        Answer::Rejected(_) => return AfterExport::Skip,
        Answer::TooLarge { after: None, .. } if can_shrink => {
            return AfterExport::End(ExportOutcome::TooLarge);
        }
        Answer::TooLarge { after: None, .. } => return AfterExport::Skip,
        // Nobody fixes a configuration within a moment. Of two backends behind a Collector one may refuse the
        // credentials after the other has accepted the points.
        Answer::Misconfigured(cause) => (cause.kind() != FailureKind::Credentials, interval),
        Answer::Retry { cause, after } | Answer::TooLarge { cause, after } => {
            (cause.kind() == FailureKind::Unreachable, after.unwrap_or_default())
        }
    };
    AfterExport::End(if is_lost && is_untouched {
        ExportOutcome::NotDelivered(wait)
    } else {
        ExportOutcome::Unknown(wait)
    })
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

    fn answer(status: u16) -> Answer {
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
}
