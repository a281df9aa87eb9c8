//! What to do with a request, given what its receiver said: pure.
//!
//! A request is only ever given up when the receiver refuses *it*, not everything. The proof is an acceptance:
//! something else was taken after this was first refused. Until then a refused request is in doubt: it waits,
//! and the ones behind it are tried. Three in doubt that have nothing to do with each other are no poison:
//! whatever is wrong is wrong with the receiver.

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is delivered; and these, with what was said of them, are proven to be poison.
    Delivered { dead: Vec<(i64, String)> },
    /// Send it again after this long, or after a backoff.
    Keep(Option<Duration>),
    /// Send its halves.
    Halve,
    /// Give it up.
    Dead,
    /// Leave it for now and try what is behind it.
    TryOthers,
    /// Wait: the receiver takes nothing.
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Places whose request was refused, and whether something was accepted since.
    besieged: BTreeMap<i64, bool>,
    /// How often a request made the receiver fail.
    faults: HashMap<i64, u32>,
    doubts: Vec<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    request: Facts,
    answer: String,
}

impl Judge {
    pub(super) fn judge(&mut self, request: Facts, answer: &Answer) -> Verdict {
        match answer {
            Answer::Accepted { .. } => Verdict::Delivered { dead: self.accepted(request) },
            Answer::Retry { cause, .. } if cause.is_suspicious() => {
                let faults = self.faults.entry(request.id).or_default();
                *faults += 1;
                let enough = if request.items > 1 { FAULTS } else { FAULTS_OF_ONE };
                if *faults < enough {
                    self.besieged.entry(request.place).or_insert(false);
                    Verdict::Keep(None)
                } else {
                    self.suspect(request, cause.to_string())
                }
            }
            Answer::Retry { after, .. } | Answer::TooLarge { after: after @ Some(_), .. } => {
                Verdict::Keep(*after)
            }
            Answer::Misconfigured(_) => Verdict::Keep(None),
            Answer::TooLarge { after: None, .. } if request.items > 1 => Verdict::Halve,
            Answer::TooLarge { after: None, .. } => Verdict::Keep(None),
            // The first to be refused is halved on suspicion: its halves may tell poison from receiver.
            Answer::Rejected(_) if request.items > 1 && self.doubts.is_empty() => {
                self.besieged.entry(request.place).or_insert(false);
                Verdict::Halve
            }
            Answer::Rejected(cause) => self.suspect(request, cause.to_string()),
        }
    }

    /// There is nothing more to try: what is in doubt, if anything, is refused. Says what was answered last.
    pub(super) fn nothing_left(&mut self) -> Option<String> {
        let last = self.doubts.pop()?.answer;
        self.doubts.clear();
        Some(last)
    }

    fn accepted(&mut self, request: Facts) -> Vec<(i64, String)> {
        let doubts = std::mem::take(&mut self.doubts);
        if doubts.is_empty() {
            // Sent in order: what lies before is settled.
            self.besieged = self.besieged.split_off(&request.place);
            self.faults.clear();
        }
        self.besieged.values_mut().for_each(|proof| *proof = true);
        // Those of many items are halved when their turn comes again.
        doubts
            .into_iter()
            .filter(|doubt| doubt.request.items == 1)
            .map(|doubt| (doubt.request.id, doubt.answer))
            .collect()
    }

    fn suspect(&mut self, request: Facts, answer: String) -> Verdict {
        let proof = self.besieged.entry(request.place).or_insert(false);
        if *proof && request.items > 1 {
            return Verdict::Halve;
        }
        // A proof is good for one: the receiver may have stopped taking anything since.
        if std::mem::take(proof) {
            return Verdict::Dead;
        }
        self.doubts.push(Doubt { request, answer });
        let unrelated: BTreeSet<i64> = self.doubts.iter().map(|doubt| doubt.request.place).collect();
        if unrelated.len() >= UNRELATED {
            self.doubts.clear();
            return Verdict::Refused;
        }
        Verdict::TryOthers
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
        receiver: impl Fn(&Items) -> u16,
    ) -> (Vec<usize>, Vec<usize>) {
        let mut judge = Judge::default();
        let (mut delivered, mut dead) = (Vec::new(), Vec::new());
        let mut next_id = 1_000_000;
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
                match judge.judge(facts, &answer(receiver(&items))) {
                    Verdict::Delivered { dead: convicted } => {
                        delivered.extend(items);
                        queue.remove(index);
                        for (id, _) in &convicted {
                            let at = queue.iter().position(|(facts, _)| facts.id == *id).unwrap();
                            dead.extend(queue.remove(at).1);
                        }
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
                    Verdict::TryOthers => after = (facts.place, facts.id),
                    Verdict::Keep(_) => {}
                    Verdict::Refused => break,
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
        #[test]
        fn poison_dies_alone(
            sizes in prop::collection::vec(1_usize..40, 2..8),
            poison in prop::collection::btree_set(0_usize..200, 0..6),
            fault: bool,
        ) {
            let total: usize = sizes.iter().sum();
            // A last request that is taken proves that the receiver works.
            let mut sizes = sizes;
            sizes.push(1);
            let poison: Vec<usize> = poison.into_iter().filter(|item| *item < total).collect();
            let status = if fault { 500 } else { 400 };
            let is_poison = |items: &Items| poison.iter().any(|item| items.contains(item));
            let receiver = |items: &Items| if is_poison(items) { status } else { 200 };
            let (delivered, dead) = simulate(queue(&sizes), 40, receiver);
            prop_assert_eq!(&dead[..], &poison[..dead.len()].to_vec()[..]);
            let wanted: Vec<usize> = (0..=total).filter(|item| !poison.contains(item)).collect();
            if poison.len() < 3 {
                prop_assert_eq!(delivered, wanted);
                prop_assert_eq!(dead, poison);
            }
        }

        #[test]
        fn a_receiver_that_takes_nothing_kills_nothing(
            sizes in prop::collection::vec(1_usize..40, 1..8),
            status in prop::sample::select(vec![400_u16, 401, 404, 413, 429, 500, 503]),
        ) {
            // Requests that are kept are tried again without an end: one round a status is enough.
            let rounds = if matches!(status, 400) { 20 } else { 0 };
            let (delivered, dead) = simulate(queue(&sizes), rounds, |_| status);
            prop_assert_eq!(delivered, Vec::<usize>::new());
            prop_assert_eq!(dead, Vec::<usize>::new());
        }
    }
}
