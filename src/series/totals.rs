//! Sums: of a batch, of all pending batches, of everything acknowledged.
//!
//! All three have the same type, so adding them up is the only operation, and its order does not matter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::buckets::{Buckets, seconds};
use super::label;
use crate::run::{Outcome, Timestamp};
use crate::semconv::metric::{self, Metric};
use crate::semconv::{ErrorType, Event, field};
use crate::trace_context::{SpanContext, SpanId, TraceId};

/// One of the durable metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
// Stored in series: for a new value bump SCHEMA_VERSION.
pub enum MetricKind {
    /// [`metric::DURATION`].
    Duration,
    /// [`metric::QUEUE_DURATION`].
    QueueDuration,
    /// [`metric::EXECUTION_DURATION`].
    ExecutionDuration,
    /// [`metric::EVENTS`].
    Events,
    /// [`metric::SKIPPED`].
    Skipped,
}

impl MetricKind {
    /// Its entry in the catalogue.
    pub const fn metric(self) -> &'static Metric {
        match self {
            Self::Duration => &metric::DURATION,
            Self::QueueDuration => &metric::QUEUE_DURATION,
            Self::ExecutionDuration => &metric::EXECUTION_DURATION,
            Self::Events => &metric::EVENTS,
            Self::Skipped => &metric::SKIPPED,
        }
    }
}

/// A series: a metric with one set of attributes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The metric.
    #[serde(rename = "m")]
    pub kind: MetricKind,
    /// `workflowName`, on one line and cut; absent if unknown.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// `outcome`.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// `event`.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// `error.type`.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub error_type: Option<ErrorType>,
}

impl Key {
    const fn new(kind: MetricKind, workflow: Option<String>) -> Self {
        Self { kind, workflow, outcome: None, event: None, error_type: None }
    }

    /// From queued to the end.
    pub fn duration(workflow: &str, outcome: Outcome, error_type: Option<ErrorType>) -> Self {
        Self { outcome: Some(outcome), error_type, ..Self::new(MetricKind::Duration, Some(label(workflow))) }
    }

    /// The first wait.
    pub fn queue_duration(workflow: &str) -> Self {
        Self::new(MetricKind::QueueDuration, Some(label(workflow)))
    }

    /// From the first running to the end.
    pub fn execution_duration(workflow: &str, outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), ..Self::new(MetricKind::ExecutionDuration, Some(label(workflow))) }
    }

    /// Events.
    pub fn events(workflow: Option<&str>, event: Event, error_type: Option<ErrorType>) -> Self {
        Self { event: Some(event), error_type, ..Self::new(MetricKind::Events, workflow.map(label)) }
    }

    /// Entries that the triggers skipped.
    pub const fn skipped() -> Self {
        Self::new(MetricKind::Skipped, None)
    }

    /// The attributes, as the catalogue orders them.
    pub fn attributes(&self) -> Vec<(&'static str, &str)> {
        let Self { kind: _, workflow, outcome, event, error_type } = self;
        [
            workflow.as_deref().map(|name| (field::WORKFLOW_NAME, name)),
            outcome.map(|outcome| (field::OUTCOME, outcome.as_str())),
            event.map(|event| (field::EVENT, event.name())),
            error_type.map(|error| (field::ERROR_TYPE, error.as_str())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The series that exist at zero once a workflow is known: a ratio over a missing series is absent, not 0. Most tables
    /// have no cancelled runs: their series begin with the first one.
    pub(super) fn of_workflow(name: &str) -> (Vec<Self>, Vec<Self>) {
        let outcomes = || Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Cancelled);
        let durations = outcomes().map(|outcome| {
            Self::duration(name, outcome, (outcome == Outcome::Failed).then_some(ErrorType::Handler))
        });
        let executions = outcomes().map(|outcome| Self::execution_duration(name, outcome));
        let histograms = durations.chain(executions).chain([Self::queue_duration(name)]).collect();
        let events = Event::ALL.iter().filter(|event| **event != Event::Cancelled).flat_map(|event| {
            let error_types: &[_] = match event {
                Event::Failed => &[Some(ErrorType::Handler)],
                Event::EnqueueFailed => &[Some(ErrorType::EnqueueFailed)],
                Event::DispatchRefused => &[
                    Some(ErrorType::Inflight),
                    Some(ErrorType::ContextMismatch),
                    Some(ErrorType::MissingPriorOutput),
                ],
                _ => &[None],
            };
            error_types.iter().map(|error_type| Self::events(Some(name), *event, *error_type))
        });
        (histograms, events.collect())
    }
}

/// A run in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemplar {
    /// The value, in microseconds.
    #[serde(rename = "v")]
    pub micros: i64,
    /// When it was measured.
    pub at: Timestamp,
    /// The run's trace.
    #[serde(rename = "t")]
    pub trace_id: TraceId,
    /// The run's span.
    #[serde(rename = "s")]
    pub span_id: SpanId,
}

/// The values of a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// The number of values in each bucket, without the zeros at the end.
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    counts: Vec<u64>,
    /// Their sum, in microseconds: exact, unlike a sum of fractions.
    #[serde(rename = "s", default)]
    sum: i64,
    /// The newest exemplar of each bucket, until it is exported.
    #[serde(rename = "x", default, skip_serializing_if = "BTreeMap::is_empty")]
    exemplars: BTreeMap<usize, Exemplar>,
}

impl Distribution {
    /// The number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        seconds(self.sum)
    }

    /// The number of values in each of `buckets`.
    pub fn counts(&self, buckets: &Buckets) -> Vec<u64> {
        let mut counts = self.counts.clone();
        counts.resize(buckets.len(), 0);
        counts
    }

    /// The newest exemplar of each bucket, from the lowest bucket.
    pub fn exemplars(&self) -> impl DoubleEndedIterator<Item = &Exemplar> {
        self.exemplars.values()
    }

    pub(super) fn without_exemplars(&self) -> Self {
        Self { exemplars: BTreeMap::new(), counts: self.counts.clone(), sum: self.sum }
    }

    fn count_in(&mut self, bucket: usize, number: u64) {
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += number;
    }

    pub(super) fn add(&mut self, other: Self) {
        for (bucket, number) in other.counts.into_iter().enumerate().filter(|(_, number)| *number > 0) {
            self.count_in(bucket, number);
        }
        self.sum = self.sum.saturating_add(other.sum);
        for (bucket, exemplar) in other.exemplars {
            self.keep(bucket, exemplar);
        }
    }

    /// Keeps the newest.
    fn keep(&mut self, bucket: usize, exemplar: Exemplar) {
        if self.exemplars.get(&bucket).is_none_or(|known| known.at <= exemplar.at) {
            self.exemplars.insert(bucket, exemplar);
        }
    }

    /// The `q`-quantile in seconds, as `PromQL`'s `histogram_quantile` interpolates it (but at least the mean if that
    /// is beyond the last bound); `None` without values.
    pub(super) fn quantile(&self, q: f64, buckets: &Buckets) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rank = q * count as f64;
        let bounds = buckets.seconds();
        let (mut below, mut lower) = (0.0, 0.0);
        for (number, upper) in self.counts.iter().zip(&bounds) {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let number = *number as f64;
            if below + number >= rank && number > 0.0 {
                return Some(lower + (upper - lower) * (rank - below) / number);
            }
            (below, lower) = (below + number, *upper);
        }
        // Beyond the last bound only the mean is known.
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let mean = self.sum_seconds() / count as f64;
        bounds.last().map(|last| last.max(mean))
    }
}

/// Counters and histograms, all in the same buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub(super) buckets: Buckets,
    #[serde(with = "pairs", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) counters: BTreeMap<Key, u64>,
    #[serde(with = "pairs", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) histograms: BTreeMap<Key, Distribution>,
}

impl Totals {
    /// Empty.
    pub fn new(buckets: Buckets) -> Self {
        Self { buckets, ..Self::default() }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty() && self.histograms.is_empty()
    }

    /// The counters.
    pub fn counters(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.counters.iter().map(|(key, count)| (key, *count))
    }

    /// The histograms.
    pub fn histograms(&self) -> impl Iterator<Item = (&Key, &Distribution)> {
        self.histograms.iter()
    }

    /// Increments a counter.
    pub fn count(&mut self, key: Key) {
        *self.counters.entry(key).or_default() += 1;
    }

    /// Adds a value of the run with the span `context`, measured at `at`.
    pub fn observe(&mut self, key: Key, micros: i64, at: Timestamp, context: SpanContext) {
        let micros = micros.max(0);
        let bucket = self.buckets.index(micros);
        let distribution = self.histograms.entry(key).or_default();
        distribution.count_in(bucket, 1);
        distribution.sum = distribution.sum.saturating_add(micros);
        let SpanContext { trace_id, span_id, .. } = context;
        distribution.keep(bucket, Exemplar { micros, at, trace_id, span_id });
    }

    /// Adds totals with the same buckets.
    pub(crate) fn add(&mut self, other: Self) {
        debug_assert_eq!(self.buckets, other.buckets, "counts in different buckets cannot be added");
        for (key, number) in other.counters {
            *self.counters.entry(key).or_default() += number;
        }
        for (key, distribution) in other.histograms {
            self.histograms.entry(key).or_default().add(distribution);
        }
    }

    /// The names of the workflows.
    pub(super) fn workflows(&self) -> impl Iterator<Item = &str> {
        self.counters.keys().chain(self.histograms.keys()).filter_map(|key| key.workflow.as_deref())
    }

    /// Renames workflows.
    pub(super) fn renamed(self, mut name: impl FnMut(&str) -> Option<String>) -> Self {
        let mut renamed = Self::new(self.buckets);
        let mut key = |mut key: Key| {
            if let Some(other) = key.workflow.as_deref().and_then(&mut name) {
                key.workflow = Some(other);
            }
            key
        };
        for (old, number) in self.counters {
            *renamed.counters.entry(key(old)).or_default() += number;
        }
        for (old, distribution) in self.histograms {
            renamed.histograms.entry(key(old)).or_default().add(distribution);
        }
        renamed
    }
}

/// Maps as lists of pairs, because JSON's keys are strings.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
