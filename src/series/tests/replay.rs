//! A database and a receiver in memory, and an export from one to the other.

use std::collections::BTreeMap;

use super::super::*;
use super::{INTERVAL, START, at};

/// What the database holds, and a ledger on it that can be lost at any time.
pub(super) struct Database {
    pub(super) recorded: Option<Recorded>,
    pub(super) pending: BTreeMap<i64, Totals>,
    pub(super) next: i64,
}

impl Database {
    pub(super) fn new() -> Self {
        Self { recorded: None, pending: BTreeMap::new(), next: 1 }
    }

    pub(super) fn append(&mut self, totals: Totals) {
        assert!(self.pending.insert(self.next, totals).is_none());
        self.set_back(self.next + 1);
    }

    pub(super) fn open(&self) -> Ledger {
        Ledger::open(self.recorded.clone(), "db").0
    }

    /// How many pending totals there are up to the last that `ledger` knows.
    pub(super) fn up_to(&self, ledger: &Ledger) -> usize {
        self.pending.range(..=ledger.last()).count()
    }

    /// Two at once, as the exporter does.
    pub(super) fn receive(&self, ledger: &mut Ledger) -> Vec<Notice> {
        let mut notices = Vec::new();
        loop {
            assert_eq!(ledger.stored(), self.up_to(ledger), "what it knows is what is there");
            let fresh = self.pending.range(ledger.last() + 1..).take(2);
            let fresh: Vec<_> = fresh.map(|(id, totals)| (*id, totals.clone())).collect();
            if fresh.is_empty() {
                return notices;
            }
            notices.extend(ledger.receive(fresh));
        }
    }

    /// Receives what somebody hides who sets the numbers back; whether that was seen.
    pub(super) fn receive_all(&self, ledger: &mut Ledger) -> bool {
        let is_set_back = self.up_to(ledger) != ledger.stored() && ledger.attempt().is_none();
        if is_set_back {
            *ledger = self.open();
        }
        let fresh = self.pending.range(ledger.last() + 1..).map(|(id, totals)| (*id, totals.clone()));
        ledger.receive(fresh.collect::<Vec<_>>());
        is_set_back
    }

    /// The next one gets this number, or the first one after it that is free.
    pub(super) fn set_back(&mut self, to: i64) {
        self.next = (to..i64::MAX).find(|id| !self.pending.contains_key(id)).expect("there are enough");
    }

    /// Through JSON, as the stores do.
    pub(super) fn record(&mut self, change: Change) {
        fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
            serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
        }
        for id in change.removed {
            self.pending.remove(&id).expect("it was there");
        }
        for (id, totals) in change.merged {
            assert!(self.pending.insert(id, stored(&totals)).is_none());
        }
        let totals = match change.totals {
            Some(totals) => stored(&totals),
            None => self.recorded.take().expect("the first change has them").totals,
        };
        self.recorded = Some(Recorded { head: stored(&change.head), totals });
    }
}

/// Samples by series and bucket: a counter's value, or how many lie in each bucket.
#[derive(Default)]
pub(super) struct Receiver {
    pub(super) samples: BTreeMap<Key, BTreeMap<i64, Vec<u64>>>,
}

impl Receiver {
    pub(super) fn take(&mut self, series: &[Series]) {
        for Series { key, points } in series {
            for Point { at, value, since } in points {
                assert!(since < at, "{key:?} has no time to count");
                let value = match value {
                    Value::Count(count) => vec![*count],
                    Value::Distribution(buckets, distribution) => distribution.counts(buckets),
                };
                let samples = self.samples.entry(key.clone()).or_default();
                // As Prometheus does: in whole milliseconds, never backwards, the same again is fine.
                let at = at.micros() / 1_000;
                if let Some(known) = samples.get(&at) {
                    assert_eq!(known, &value, "{key:?} says something else at the same time");
                    continue;
                }
                let newest = samples.last_key_value().map_or(i64::MIN, |(at, _)| *at);
                assert!(at > newest, "{key:?} goes back in time");
                samples.insert(at, value);
            }
        }
    }

    /// What `increase()` comes to over all time, if no window is shorter than three intervals.
    pub(super) fn increase(&self, key: &Key) -> u64 {
        let samples: Vec<(i64, u64)> =
            self.samples[key].iter().map(|(at, value)| (*at, value.iter().sum())).collect();
        let longest = 3 * i64::try_from(INTERVAL.as_millis()).unwrap();
        samples
            .windows(2)
            .map(|pair| {
                let [(earlier, before), (later, after)] = pair else { unreachable!("windows of two") };
                let rose = after.checked_sub(*before);
                assert!(rose.is_some() || *after == 0, "{key:?} goes back, and not to its beginning");
                let rose = rose.unwrap_or(0);
                assert!(rose == 0 || later - earlier <= longest, "{key:?} rose where nobody looks");
                rose
            })
            .sum()
    }
}

/// Exports once, at `now`, and it arrives.
pub(super) fn export(database: &mut Database, ledger: &mut Ledger, now: i64) -> Vec<Series> {
    database.receive(ledger);
    ledger.begin(at(now), INTERVAL, 0);
    database.record(ledger.change());
    let series = ledger.series();
    ledger.acknowledged();
    database.record(ledger.change());
    series
}

pub(super) fn render(series: &[Series], kind: MetricKind) -> String {
    let mut text = String::new();
    for Series { key, points } in series.iter().filter(|series| series.key.kind == kind) {
        let attributes: Vec<&str> = key.attributes().iter().map(|(_, value)| *value).collect();
        let points: Vec<String> = points
            .iter()
            .map(|point| {
                let value = match &point.value {
                    Value::Count(count) => count.to_string(),
                    Value::Distribution(buckets, distribution) => {
                        format!("{:?}", distribution.counts(buckets))
                    }
                };
                format!("{value} @ {}", (point.at.micros() - START) / 1_000_000)
            })
            .collect();
        text += &format!("{}: {}\n", attributes.join(" "), points.join(", "));
    }
    text
}
