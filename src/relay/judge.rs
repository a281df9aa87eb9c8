//! What to do with a request, given what its receiver said: pure.
//!
//! A request is only ever given up when the receiver refuses *it*, not everything. The proof is an acceptance in
//! between: it was refused, something else was taken, and it is refused again. A refused request without that
//! proof is in doubt: it waits, and those behind it are tried. Three in doubt that have nothing to do with each
//! other are no poison: whatever is wrong is wrong with the receiver, and what follows is tried only now and then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::otlp::answer::Answer;

/// How often a request of many items may make the receiver fail before it is doubted.
const FAULTS: u32 = 3;
/// The same for a request of a single item, which would be given up.
const FAULTS_OF_ONE: u32 = 10;
/// How many unrelated requests in doubt are too many to be poison.
const UNRELATED: usize = 3;

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) id: i64,
    /// The halves of a request share its place.
    pub(super) place: i64,
    pub(super) items: usize,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is delivered; what was passed over in doubt is to be tried again.
    Delivered,
    /// Send it again after this long, or after a backoff.
    Keep(Option<Duration>),
    /// Send its halves.
    Halve,
    /// Give it up.
    Dead,
    /// Leave it for now and try what is behind it.
    TryOthers,
    /// The same, but not at once: the receiver seems to take nothing.
    TryOthersLater,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    /// The places whose requests were refused.
    besieged: BTreeMap<i64, Siege>,
    /// How often a request made the receiver fail.
    faults: HashMap<i64, u32>,
    doubts: Vec<Doubt>,
}

/// What was accepted since a place's request was first refused.
#[derive(Clone, Copy, Debug, Default)]
struct Siege {
    /// Something: so the receiver works, and halving may find what is wrong.
    works: bool,
    /// Something since the last of this place was given up.
    proof: bool,
}

#[derive(Debug)]
struct Doubt {
    place: i64,
    answer: String,
}

impl Judge {
    pub(super) fn judge(&mut self, request: Facts, answer: &Answer) -> Verdict {
        match answer {
            Answer::Accepted { .. } => self.accepted(request),
            Answer::Retry { cause, .. } if cause.is_suspicious() => {
                let faults = self.faults.entry(request.id).or_default();
                *faults += 1;
                let enough = if request.items > 1 { FAULTS } else { FAULTS_OF_ONE };
                if *faults >= enough {
                    return self.suspect(request, cause.to_string());
                }
                self.besieged.entry(request.place).or_default();
                Verdict::Keep(None)
            }
            Answer::Retry { after, .. } | Answer::TooLarge { after: after @ Some(_), .. } => {
                Verdict::Keep(*after)
            }
            Answer::Misconfigured(_) => Verdict::Keep(None),
            Answer::TooLarge { after: None, .. } if request.items > 1 => Verdict::Halve,
            Answer::TooLarge { after: None, .. } => Verdict::Keep(None),
            // The first to be refused is halved on suspicion: its halves may tell poison from receiver.
            Answer::Rejected(_) if request.items > 1 && self.doubts.is_empty() => {
                self.besieged.entry(request.place).or_default();
                Verdict::Halve
            }
            Answer::Rejected(cause) => self.suspect(request, cause.to_string()),
        }
    }

    /// There is nothing more to try, and it all begins again: the last answer, if anything is in doubt.
    pub(super) fn nothing_left(&mut self) -> Option<String> {
        let last = self.doubts.pop()?.answer;
        self.doubts.clear();
        Some(last)
    }

    fn accepted(&mut self, request: Facts) -> Verdict {
        if self.doubts.is_empty() {
            // Sent in order: what lies before is settled.
            self.besieged = self.besieged.split_off(&request.place);
            self.faults.remove(&request.id);
        }
        self.doubts.clear();
        self.besieged.values_mut().for_each(|siege| *siege = Siege { works: true, proof: true });
        Verdict::Delivered
    }

    fn suspect(&mut self, request: Facts, answer: String) -> Verdict {
        let siege = self.besieged.entry(request.place).or_default();
        if siege.works && request.items > 1 {
            return Verdict::Halve;
        }
        // A proof is good for one: the receiver may have stopped taking anything since.
        if std::mem::take(&mut siege.proof) {
            self.faults.remove(&request.id);
            return Verdict::Dead;
        }
        self.doubts.push(Doubt { place: request.place, answer });
        let unrelated: BTreeSet<i64> = self.doubts.iter().map(|doubt| doubt.place).collect();
        if unrelated.len() < UNRELATED { Verdict::TryOthers } else { Verdict::TryOthersLater }
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

    /// Sends `queue` to a receiver that answers by content, as the sender would; what was delivered, what is dead.
    fn simulate(
        mut queue: Vec<(Facts, Items)>,
        rounds: usize,
        receiver: impl Fn(usize, &Items) -> u16,
    ) -> (Vec<usize>, Vec<usize>) {
        let mut judge = Judge::default();
        let (mut delivered, mut dead) = (Vec::new(), Vec::new());
        let (mut next_id, mut attempts) = (1_000_000, 0);
        for _ in 0..rounds {
            let mut after = (0, 0);
            loop {
                queue.sort_by_key(|(facts, _)| (facts.place, facts.id));
                let behind = |(facts, _): &(Facts, Items)| (facts.place, facts.id) > after;
                let Some(index) = queue.iter().position(behind) else {
                    judge.nothing_left();
                    break;
                };
                let (facts, items) = queue[index].clone();
                attempts += 1;
                match judge.judge(facts, &answer(receiver(attempts, &items))) {
                    Verdict::Delivered => {
                        delivered.extend(items);
                        queue.remove(index);
                        after = (0, 0);
                    }
                    Verdict::Halve => {
                        queue.remove(index);
                        let middle = items.start + items.len() / 2;
                        for half in [items.start..middle, middle..items.end] {
                            next_id += 1;
                            queue.push((Facts { id: next_id, items: half.len(), ..facts }, half));
                        }
                    }
                    Verdict::Dead => {
                        dead.extend(items);
                        queue.remove(index);
                    }
                    Verdict::TryOthers | Verdict::TryOthersLater => after = (facts.place, facts.id),
                    Verdict::Keep(_) => {}
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
        fn poison_dies_alone_and_stops_no_one(
            sizes in prop::collection::vec(1_usize..40, 1..8),
            poison in prop::collection::btree_set(0_usize..200, 0..9),
            fault: bool,
        ) {
            let total: usize = sizes.iter().sum();
            let poison: Vec<usize> = poison.into_iter().filter(|item| *item < total).collect();
            let status = if fault { 500 } else { 400 };
            let is_poison = |items: &Items| poison.iter().any(|item| items.contains(item));
            let mut sizes = sizes;
            // Something that is taken, at last.
            sizes.push(1);
            let (delivered, dead) =
                simulate(queue(&sizes), 40, |_, items| if is_poison(items) { status } else { 200 });
            let good: Vec<usize> = (0..=total).filter(|item| !poison.contains(item)).collect();
            prop_assert_eq!(delivered, good);
            // The last of all may stay in doubt: nothing was taken since.
            prop_assert!(dead.iter().all(|item| poison.contains(item)), "{:?}", dead);
        }

        #[test]
        fn a_receiver_that_takes_nothing_for_a_while_kills_nothing(
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
        fn nothing_dies_without_proof(
            answers in prop::collection::vec(
                (0_i64..20, 1_usize..4, prop::sample::select(vec![
                    100_u16, 200, 204, 302, 400, 401, 404, 408, 413, 418, 429, 451, 500, 501, 503, 599, 999,
                ])),
                0..120,
            ),
        ) {
            let mut judge = Judge::default();
            // Since when a place has been refused or has made the receiver fail, and whether something was taken since.
            let mut besieged = BTreeMap::<i64, bool>::new();
            let mut gone = BTreeSet::new();
            for (place, items, status) in answers {
                if gone.contains(&place) {
                    continue;
                }
                let verdict = judge.judge(Facts { id: place, place, items }, &answer(status));
                match status {
                    200 | 204 => besieged.values_mut().for_each(|taken| *taken = true),
                    400 | 500 => {
                        let taken = besieged.entry(place).or_default();
                        if verdict == Verdict::Dead {
                            prop_assert!(*taken && items == 1, "{place} died of {status}");
                            gone.insert(place);
                        }
                    }
                    _ => prop_assert!(matches!(verdict, Verdict::Keep(_) | Verdict::Halve), "{status}: {verdict:?}"),
                }
                prop_assert_eq!(verdict == Verdict::Delivered, matches!(status, 200 | 204));
                if verdict == Verdict::Delivered {
                    gone.insert(place);
                }
            }
        }
    }
}
