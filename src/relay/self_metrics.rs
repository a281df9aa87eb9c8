//! The relay's own metrics: those of [`Source::Relay`](crate::semconv::metric::Source::Relay).
//!
//! The instruments belong to OpenTelemetry's global meter provider, so whoever runs a relay decides where they go. Without
//! a provider they cost next to nothing.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter};
use opentelemetry::{KeyValue, global};

use super::status::{RelayStatus, Snapshot};
use crate::otlp::answer::Answer;
use crate::semconv::field;
use crate::semconv::metric::{self, DATABASE, Metric, SIGNAL, STATUS};
use crate::store::StoreStatus;

/// From a commit to a slow receiver, in seconds.
const BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The instruments of a relay.
pub(super) struct Instruments {
    /// The signals that are sent.
    signals: Vec<&'static str>,
    reconciled: Counter<u64>,
    exported: Counter<u64>,
    rejected: Counter<u64>,
    resent: Counter<u64>,
    dropped: Counter<u64>,
    export_duration: Histogram<f64>,
    cycle_duration: Histogram<f64>,
}

impl Instruments {
    pub(super) fn new(signals: Vec<&'static str>) -> Self {
        let meter = meter();
        let counter = |metric: &Metric| {
            let counter = meter.u64_counter(metric.name).with_unit(metric.unit);
            counter.with_description(metric.meaning).build()
        };
        let seconds = |metric: &Metric| {
            let histogram = meter.f64_histogram(metric.name).with_unit(metric.unit);
            histogram.with_description(metric.meaning).with_boundaries(BUCKETS.into()).build()
        };
        Self {
            signals,
            reconciled: counter(&metric::RECONCILED),
            exported: counter(&metric::EXPORTED),
            rejected: counter(&metric::REJECTED),
            resent: counter(&metric::RESENT),
            dropped: counter(&metric::DROPPED),
            export_duration: seconds(&metric::EXPORT_DURATION),
            cycle_duration: seconds(&metric::CYCLE_DURATION),
        }
    }

    /// The instruments with the attribute of one database.
    pub(super) fn of(self: &Arc<Self>, database: &str) -> Counts {
        Counts { instruments: Arc::clone(self), database: KeyValue::new(DATABASE, database.to_owned()) }
    }
}

/// The instruments of a relay, for one database.
#[derive(Clone)]
pub(super) struct Counts {
    instruments: Arc<Instruments>,
    database: KeyValue,
}

impl Counts {
    /// Adds zero to each counter: a rate needs a first sample before the first increment.
    pub(super) fn begin(&self) {
        self.reconciled(0);
        self.dropped(0);
        for signal in &self.instruments.signals {
            let of = self.of(signal);
            for counter in [&self.instruments.exported, &self.instruments.rejected, &self.instruments.resent]
            {
                counter.add(0, &of);
            }
        }
    }

    /// Entries that reconciliation recovered.
    pub(super) fn reconciled(&self, entries: u64) {
        self.instruments.reconciled.add(entries, std::slice::from_ref(&self.database));
    }

    /// Spans and records dropped from a full outbox.
    pub(super) fn dropped(&self, items: u64) {
        self.instruments.dropped.add(items, std::slice::from_ref(&self.database));
    }

    /// A batch was read, projected and committed.
    pub(super) fn cycle(&self, took: Duration) {
        self.instruments.cycle_duration.record(took.as_secs_f64(), std::slice::from_ref(&self.database));
    }

    /// A request is sent again.
    pub(super) fn resent(&self, signal: &'static str) {
        self.instruments.resent.add(1, &self.of(signal));
    }

    /// A request with `items` spans, records or points was answered.
    pub(super) fn answered(&self, signal: &'static str, items: usize, answer: &Answer, took: Duration) {
        let mut of = Vec::from(self.of(signal));
        if let Answer::Accepted { rejected, .. } = answer {
            self.instruments.exported.add(items as u64, &of);
            self.instruments.rejected.add(*rejected, &of);
        }
        of.extend(answer.cause().map(|cause| KeyValue::new(field::ERROR_TYPE, cause.kind().as_str())));
        self.instruments.export_duration.record(took.as_secs_f64(), &of);
    }

    fn of(&self, signal: &'static str) -> [KeyValue; 2] {
        [self.database.clone(), KeyValue::new(SIGNAL, signal)]
    }
}

/// Registers the gauges of a relay, for as long as its status exists.
pub(super) fn register_gauges(status: &RelayStatus, max_outbox: u64) {
    let gauges = Gauges { meter: meter(), status };
    let limit = i64::try_from(max_outbox).unwrap_or(i64::MAX);
    // No value while a relay starts or stops: one that cron runs every minute would seem never to hold the lease.
    gauges.counts(&metric::LEASE_HELD, |snapshot| match (snapshot.lease_epoch, snapshot.stands_by) {
        (Some(_), _) => vec![(1, None)],
        (None, true) => vec![(0, None)],
        (None, false) => Vec::new(),
    });
    gauges.counts(&metric::OUTBOX_LIMIT, move |_| vec![(limit, None)]);
    gauges.counts(&metric::JOURNAL_LIVE, |snapshot| {
        snapshot.capture.iter().map(|capture| (i64::from(capture.is_live()), None)).collect()
    });
    gauges.counts(&metric::JOURNAL_ENTRIES, stored(|status| vec![(status.journal_entries, None)]));
    gauges.counts(&metric::JOURNAL_LIMIT, stored(|status| vec![(status.journal_limit, None)]));
    gauges.counts(&metric::JOURNAL_SET_ASIDE, stored(|status| vec![(status.set_aside_entries, None)]));
    gauges.counts(&metric::OUTBOX_SIZE, stored(|status| vec![(status.waiting_bytes, None)]));
    gauges.counts(
        &metric::OUTBOX_REQUESTS,
        stored(|status| {
            vec![(status.waiting_requests, Some("waiting")), (status.dead_requests, Some("dead"))]
        }),
    );
    gauges.seconds(&metric::JOURNAL_OLDEST_AGE, stored(|status| age(status.journal_oldest_seconds)));
    gauges.seconds(&metric::OUTBOX_OLDEST_AGE, stored(|status| age(status.waiting_oldest_seconds)));
}

/// Values of a gauge, each with its status if it has one.
type Points<T> = Vec<(T, Option<&'static str>)>;

struct Gauges<'a> {
    meter: Meter,
    status: &'a RelayStatus,
}

impl Gauges<'_> {
    fn counts(&self, metric: &Metric, points: impl Fn(&Snapshot) -> Points<i64> + Send + Sync + 'static) {
        let gauge = self.meter.i64_observable_gauge(metric.name).with_unit(metric.unit);
        gauge.with_description(metric.meaning).with_callback(self.observing(points)).build();
    }

    fn seconds(&self, metric: &Metric, points: impl Fn(&Snapshot) -> Points<f64> + Send + Sync + 'static) {
        let gauge = self.meter.f64_observable_gauge(metric.name).with_unit(metric.unit);
        gauge.with_description(metric.meaning).with_callback(self.observing(points)).build();
    }

    /// Observes the points of a gauge. There are none before the database is known.
    fn observing<T, P: Fn(&Snapshot) -> Points<T>>(
        &self,
        points: P,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + use<T, P> {
        let state = self.status.downgrade();
        move |gauge| {
            let Some(state) = state.upgrade() else { return };
            let snapshot = state.borrow();
            let Some(database) = &snapshot.database else { return };
            for (value, status) in points(&snapshot) {
                let mut of = vec![KeyValue::new(DATABASE, database.clone())];
                of.extend(status.map(|status| KeyValue::new(STATUS, status)));
                gauge.observe(value, &of);
            }
        }
    }
}

/// Points from the last status of the database, if it answered.
fn stored<T>(points: fn(&StoreStatus) -> Points<T>) -> impl Fn(&Snapshot) -> Points<T> {
    move |snapshot| snapshot.status.as_ref().map(points).unwrap_or_default()
}

/// The age of the oldest; 0 where there is none. (The clock of a database may go back.)
fn age(oldest: Option<f64>) -> Points<f64> {
    vec![(oldest.unwrap_or_default().max(0.0), None)]
}

fn meter() -> Meter {
    global::meter(env!("CARGO_PKG_NAME"))
}
