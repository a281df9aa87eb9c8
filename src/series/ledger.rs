//! What a receiver has acknowledged, what is pending, and the points of the next export.
//!
//! Three rules make `rate()` and `increase()` correct, whatever fails:
//!
//! - They ignore a series' first sample and the first after a gap. So a point without a predecessor, or with one that is
//!   too old, is preceded in the same request by the last acknowledged value (0 if there is none).
//! - The last acknowledged value must be certain, or the repeated value may be less than one that arrived. So an export
//!   is stored before it is sent, and one with an unknown outcome is sent again, with the same values and times, until it
//!   is answered; only then the next one is prepared.
//! - Counts in different buckets cannot be added. So when the buckets change, one request contains the old histogram up
//!   to its end and the new one from its zero.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::buckets::Buckets;
use super::points::{InFlight, Point, Series, Value};
use super::totals::{Distribution, Key, MetricKind, Totals};
use super::{MAX_WORKFLOWS, OTHER, is_changed, label};
use crate::run::{Outcome, Status, Timestamp};

/// The shortest time between two points of a series, in microseconds: receivers store milliseconds.
const TICK: i64 = 1_000;

/// How far a database's clock may be behind the last points before it was wrong then, in microseconds. Up to here the next
/// points follow the last ones closely, until the clock has caught up.
const LONGEST_STEP_BACK: i64 = 5 * 60 * 1_000_000;

/// The fewest runs from which a usual duration is estimated.
const HISTORY: u64 = 20;

/// The acknowledged series, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// When, and for which instance.
    pub head: Head,
    /// The series, without those that occur only in pending totals.
    pub totals: Totals,
}

/// The state of the exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The instance of the database.
    instance: String,
    /// How often the series began anew because its clock had been ahead.
    #[serde(default)]
    restarts: u32,
    /// When counting started.
    since: Option<Timestamp>,
    /// When the histograms started, if that is later: their buckets changed.
    histograms_since: Option<Timestamp>,
    /// The time of the last acknowledged points.
    exported_at: Option<Timestamp>,
    /// The number of skipped entries in these points.
    skipped: u64,
    /// The export after that, sent or not.
    attempt: Option<Attempt>,
}

/// An export that is not acknowledged yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The last pending totals that it includes.
    upto: i64,
    /// The time of its points.
    at: Timestamp,
    /// The time of the preceding points.
    start: Timestamp,
    /// Whether each point is preceded by the last acknowledged value.
    restate: bool,
    /// The number of skipped entries.
    skipped: u64,
}

impl Attempt {
    /// The time of its points.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// The `step`-th of `steps` moments between [`start`](Self::start) and [`at`](Self::at).
    fn between(&self, step: usize, steps: usize) -> Timestamp {
        let (step, steps) = (i128::try_from(step).unwrap_or(0), i128::try_from(steps).unwrap_or(1));
        let span = i128::from(self.at.micros() - self.start.micros());
        let offset = i64::try_from(span * step / steps).unwrap_or(0);
        Timestamp::from_micros(self.start.micros() + offset)
    }
}

/// What to store.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The state of the exports.
    pub head: Head,
    /// The acknowledged totals, if they changed.
    pub totals: Option<Totals>,
    /// The usual duration of each workflow's runs, if there are new ones.
    pub usual: Option<BTreeMap<String, f64>>,
    /// Pending totals to delete: acknowledged, or merged into others.
    pub removed: Vec<i64>,
    /// Pending totals that are new or changed.
    pub merged: Vec<(i64, Totals)>,
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The name of a workflow is changed in its series.
    Renamed(String),
    /// There are too many workflows.
    Full,
}

/// The series, as the exporter keeps them.
#[derive(Debug)]
pub struct Ledger {
    head: Head,
    acknowledged: Totals,
    /// With their ids in the database, ascending.
    pending: Vec<(i64, Totals)>,
    /// The id of the last known pending totals.
    last: i64,
    workflows: BTreeSet<String>,
    removed: BTreeSet<i64>,
    merged: BTreeSet<i64>,
    totals_changed: bool,
    has_received: bool,
}

impl Ledger {
    /// Opens the stored state for `instance`; also returns the previous instance, if it differs.
    ///
    /// Counters must not decrease: a database that was restored begins new series at zero, with what is not acknowledged.
    pub fn open(recorded: Option<Recorded>, instance: &str) -> (Self, Option<String>) {
        let is_new = recorded.is_none();
        let (recorded, before) = match recorded {
            Some(recorded) if recorded.head.instance == instance => (recorded, None),
            other => {
                // The triggers continue the old database's count of skipped entries.
                let skipped = other.as_ref().map_or(0, |other| other.head.skipped);
                let head = Head { instance: instance.to_owned(), skipped, ..Head::default() };
                (Recorded { head, totals: Totals::default() }, other.map(|other| other.head.instance))
            }
        };
        let workflows = recorded.totals.workflows().filter(|name| *name != OTHER).map(str::to_owned);
        let ledger = Self {
            workflows: workflows.collect(),
            head: recorded.head,
            acknowledged: recorded.totals,
            pending: Vec::new(),
            last: 0,
            removed: BTreeSet::new(),
            merged: BTreeSet::new(),
            totals_changed: is_new || before.is_some(),
            has_received: false,
        };
        (ledger, before)
    }

    /// The `service.instance.id` of the series: the database's, and a number once they began anew.
    pub fn instance(&self) -> String {
        match self.head.restarts {
            0 => self.head.instance.clone(),
            restarts => format!("{}-{restarts}", self.head.instance),
        }
    }

    /// The id of the last pending totals that it knows.
    pub const fn last(&self) -> i64 {
        self.last
    }

    /// How many pending totals the database holds up to [`last`](Self::last), as far as this ledger knows: those still
    /// pending, and those merged or acknowledged whose change is not stored yet. If there are others, somebody has set back
    /// the sequence of their ids, and they would never be read.
    pub fn stored(&self) -> usize {
        let untouched = self.pending.iter().filter(|(id, _)| !self.removed.contains(id)).count();
        untouched + self.removed.len()
    }

    /// The buckets of the acknowledged histograms, if there are any.
    pub fn buckets(&self) -> Option<&Buckets> {
        (!self.acknowledged.histograms.is_empty()).then_some(&self.acknowledged.buckets)
    }

    /// The export in progress.
    pub const fn attempt(&self) -> Option<&Attempt> {
        self.head.attempt.as_ref()
    }

    /// Adds pending totals, which follow the last ones.
    pub fn receive(&mut self, fresh: impl IntoIterator<Item = (i64, Totals)>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (id, totals) in fresh {
            let totals = totals.renamed(|name| self.admit(name, &mut notices));
            self.last = id;
            self.has_received = true;
            let exporting = self.head.attempt.as_ref().map_or(0, |attempt| attempt.upto);
            match self.pending.last_mut() {
                // The totals of an export in progress must not change.
                Some((before, sum))
                    if sum.buckets == totals.buckets && (*before > exporting || id <= exporting) =>
                {
                    sum.add(totals);
                    self.merged.remove(before);
                    self.removed.extend([*before, id]);
                    *before = id;
                    self.merged.insert(id);
                }
                _ => self.pending.push((id, totals)),
            }
        }
        notices
    }

    /// The name under which a workflow is counted, if it differs: the number of workflows with their own series is limited.
    fn admit(&mut self, name: &str, notices: &mut Vec<Notice>) -> Option<String> {
        if name == OTHER || self.workflows.contains(name) {
            return None;
        }
        if self.workflows.len() < MAX_WORKFLOWS {
            self.workflows.insert(name.to_owned());
            if is_changed(name) {
                notices.push(Notice::Renamed(name.to_owned()));
            }
            return None;
        }
        if !notices.contains(&Notice::Full) && !self.has_others() {
            notices.push(Notice::Full);
        }
        Some(OTHER.to_owned())
    }

    /// Whether some workflows have no series of their own.
    fn has_others(&self) -> bool {
        let pending = self.pending.iter().map(|(_, totals)| totals);
        pending.chain([&self.acknowledged]).any(|totals| totals.workflows().any(|name| name == OTHER))
    }

    /// Begins the series anew if the last points are further in the future than a clock may step back: receivers reject
    /// points before them, and at later times they are not now's. How far, in that case.
    ///
    /// As after a restore, the new series begin at zero, with what is not acknowledged.
    fn restart_if_clock_was_ahead(&mut self, now: Timestamp) -> Option<Duration> {
        let ahead = self.head.exported_at?.micros().saturating_sub(now.micros());
        if ahead <= LONGEST_STEP_BACK {
            return None;
        }
        self.head = Head {
            instance: std::mem::take(&mut self.head.instance),
            restarts: self.head.restarts.saturating_add(1),
            skipped: self.head.skipped,
            ..Head::default()
        };
        self.acknowledged = Totals::default();
        self.totals_changed = true;
        u64::try_from(ahead).ok().map(Duration::from_micros)
    }

    /// Prepares the export of all pending totals, at the database's time `now`. An export in progress is kept. How far the
    /// database's clock was ahead at the last one, if the series begin anew for that.
    pub fn begin(&mut self, now: Timestamp, interval: Duration, skipped: u64) -> Option<Duration> {
        if self.head.attempt.is_some() {
            return None;
        }
        let ahead = self.restart_if_clock_was_ahead(now);
        // Each change of buckets takes two points in between: see `stages`.
        let shortest = TICK * (2 + 2 * i64::try_from(self.pending.len()).unwrap_or(i64::MAX / 4));
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX / 4).max(shortest);
        let last = self.head.exported_at.map(Timestamp::micros);
        let at = last.map_or(now.micros(), |last| now.micros().max(last + shortest));
        let restate = last.is_some_and(|last| at - last > interval.saturating_mul(2));
        let start = last.filter(|_| !restate).unwrap_or_else(|| at.saturating_sub(interval));
        let start = Timestamp::from_micros(start);
        // A receiver may reject a point that does not last.
        self.head.since.get_or_insert_with(|| Timestamp::from_micros(start.micros().saturating_sub(TICK)));
        self.head.attempt = Some(Attempt {
            upto: self.last,
            at: Timestamp::from_micros(at),
            start,
            restate,
            skipped: skipped.max(self.head.skipped),
        });
        ahead
    }

    /// The export in progress: every series, with its points.
    pub fn series(&self) -> Vec<Series> {
        let Some(attempt) = &self.head.attempt else { return Vec::new() };
        let since = self.head.since.unwrap_or(attempt.start);
        let stages = self.stages(attempt);
        let Some(now) = stages.last() else { return Vec::new() };
        let skipped = (Key::skipped(), attempt.skipped);
        let counters = now.totals.counters.iter().map(|(key, value)| (key.clone(), *value)).chain([skipped]);
        let counters = counters.map(|(key, value)| {
            let before = match key.kind {
                MetricKind::Skipped => Some(self.head.skipped),
                _ => self.acknowledged.counters.get(&key).copied(),
            };
            let is_first = self.head.exported_at.is_none() || before.is_none();
            let first = (attempt.restate || is_first).then(|| (attempt.start, before.unwrap_or(0)));
            let points = first.into_iter().chain([(attempt.at, value)]);
            let point = |(at, value)| Point { since, at, value: Value::Count(value) };
            Series { key, points: points.map(point).collect() }
        });
        // The last stage has every series of the previous ones.
        let histograms = now
            .totals
            .histograms
            .keys()
            .map(|key| Series { key: key.clone(), points: self.histogram(key, attempt, &stages) });
        counters.chain(histograms).collect()
    }

    fn histogram(&self, key: &Key, attempt: &Attempt, stages: &[Stage]) -> Vec<Point> {
        let before = self.acknowledged.histograms.get(key);
        let mut points = Vec::new();
        if attempt.restate || before.is_none() {
            let value = before.cloned().unwrap_or_default();
            points.extend(stages.first().map(|stage| stage.point(attempt.start, value)));
        }
        for stage in stages {
            points.extend(stage.begins.map(|at| stage.point(at, Distribution::default())));
            let value = stage.totals.histograms.get(key).cloned().unwrap_or_default();
            points.push(stage.point(stage.ends, value));
        }
        points
    }

    /// The acknowledged and the pending totals up to `upto`, added up: one sum more for each change of buckets.
    fn sums(&self, upto: i64) -> Vec<Totals> {
        let mut sums = Vec::new();
        let mut sum = self.acknowledged.clone();
        for (_, totals) in self.pending.iter().take_while(|(id, _)| *id <= upto) {
            let mut totals = totals.clone();
            if sum.histograms.is_empty() {
                sum.buckets = totals.buckets.clone();
            } else if totals.histograms.is_empty() {
                totals.buckets = sum.buckets.clone();
            } else if sum.buckets != totals.buckets {
                let empty = |key: &Key| (key.clone(), Distribution::default());
                let next = Totals {
                    buckets: totals.buckets.clone(),
                    counters: sum.counters.clone(),
                    histograms: sum.histograms.keys().map(empty).collect(),
                };
                sums.push(std::mem::replace(&mut sum, next));
            }
            sum.add(totals);
        }
        sums.push(sum);
        sums
    }

    /// The sums of `attempt`, each with its time. The last one has every series of the export.
    fn stages(&self, attempt: &Attempt) -> Vec<Stage> {
        let mut sums = self.sums(attempt.upto);
        if let Some(sum) = sums.last_mut() {
            let workflows: BTreeSet<String> = sum.workflows().map(str::to_owned).collect();
            for name in workflows {
                let (histograms, events) = Key::of_workflow(&name);
                for key in histograms {
                    sum.histograms.entry(key).or_default();
                }
                for key in events {
                    sum.counters.entry(key).or_default();
                }
            }
        }
        let steps = 2 * sums.len() - 1;
        let first = self.head.histograms_since.or(self.head.since).unwrap_or(attempt.start);
        let stage = |(index, totals): (usize, Totals)| {
            let begins = (index > 0).then(|| attempt.between(2 * index, steps));
            // From the end of the previous buckets: a point at its own start would not last.
            let since = if index > 0 { attempt.between(2 * index - 1, steps) } else { first };
            Stage { totals, since, begins, ends: attempt.between(2 * index + 1, steps) }
        };
        sums.into_iter().enumerate().map(stage).collect()
    }

    /// The export in progress was acknowledged (or rejected permanently: it counts as exported).
    pub fn acknowledged(&mut self) {
        let Some(attempt) = self.head.attempt.take() else { return };
        let mut stages = self.stages(&attempt);
        let Some(stage) = stages.pop() else { return };
        self.head.exported_at = Some(attempt.at);
        self.head.skipped = attempt.skipped;
        if stage.begins.is_some() {
            self.head.histograms_since = Some(stage.since);
        }
        let exported = self.pending.partition_point(|(id, _)| *id <= attempt.upto);
        if exported > 0 {
            let mut totals = stage.totals;
            for distribution in totals.histograms.values_mut() {
                *distribution = distribution.without_exemplars();
            }
            self.acknowledged = totals;
            self.totals_changed = true;
        }
        for (id, _) in self.pending.drain(..exported) {
            self.merged.remove(&id);
            self.removed.insert(id);
        }
    }

    /// The export in progress certainly did not arrive: the next one includes its increments.
    pub fn forget(&mut self) {
        self.head.attempt = None;
    }

    /// What changed since the last call.
    pub fn change(&mut self) -> Change {
        let merged = std::mem::take(&mut self.merged);
        let is_merged = |(id, _): &&(i64, Totals)| merged.contains(id);
        Change {
            head: self.head.clone(),
            totals: std::mem::take(&mut self.totals_changed).then(|| self.acknowledged.clone()),
            usual: std::mem::take(&mut self.has_received).then(|| self.usual()),
            removed: std::mem::take(&mut self.removed).into_iter().collect(),
            merged: self.pending.iter().filter(is_merged).cloned().collect(),
        }
    }

    /// The 99th percentile of each workflow's durations, in seconds, if there are enough runs.
    pub(super) fn usual(&self) -> BTreeMap<String, f64> {
        let Some(all) = self.sums(i64::MAX).pop() else { return BTreeMap::new() };
        let mut durations: BTreeMap<String, Distribution> = BTreeMap::new();
        for (key, distribution) in all.histograms {
            if let (MetricKind::Duration, Some(workflow)) = (key.kind, key.workflow)
                && !key.outcome.is_some_and(Outcome::is_interruption)
            {
                durations.entry(workflow).or_default().add(distribution);
            }
        }
        durations.retain(|_, distribution| distribution.count() >= HISTORY);
        durations
            .into_iter()
            .filter_map(|(name, distribution)| Some((name, distribution.quantile(0.99, &all.buckets)?)))
            .collect()
    }

    /// The runs in flight under the names of the series, with zeros where there are none.
    pub fn in_flight(&self, rows: Vec<InFlight>) -> Vec<InFlight> {
        let mut known = self.workflows.clone();
        if self.has_others() {
            known.insert(OTHER.to_owned());
        }
        let states = [Status::Queued, Status::Running];
        let key = |name: &str| states.map(|status| ((name.to_owned(), status.as_str()), (status, 0, 0.0)));
        let mut all: BTreeMap<_, (Status, i64, f64)> = known.iter().flat_map(|name| key(name)).collect();
        for row in rows {
            let mut name = label(&row.workflow);
            if !known.contains(&name) && known.len() >= MAX_WORKFLOWS {
                OTHER.clone_into(&mut name);
            }
            known.insert(name.clone());
            for (key, zero) in key(&name) {
                all.entry(key).or_insert(zero);
            }
            if let Some((_, runs, oldest)) = all.get_mut(&(name, row.status.as_str())) {
                *runs += row.runs;
                *oldest = f64::max(*oldest, row.oldest_age);
            }
        }
        all.into_iter()
            .map(|((workflow, _), (status, runs, oldest_age))| InFlight {
                workflow,
                status,
                runs,
                oldest_age,
            })
            .collect()
    }
}

/// The part of an export with the same buckets.
struct Stage {
    /// The totals at its end.
    totals: Totals,
    since: Timestamp,
    /// When its histograms were at zero; `None` if they continue the acknowledged ones.
    begins: Option<Timestamp>,
    ends: Timestamp,
}

impl Stage {
    fn point(&self, at: Timestamp, value: Distribution) -> Point {
        Point { since: self.since, at, value: Value::Distribution(self.totals.buckets.clone(), value) }
    }
}
