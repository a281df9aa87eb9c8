//! What a relay tells of itself in metrics: those of [`Source::Relay`](crate::semconv::metric::Source::Relay).
//!
//! Its instruments are those of OpenTelemetry's global meter provider, so whoever runs a relay decides where they go;
//! where nobody has set one they cost next to nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter};
use opentelemetry::{KeyValue, global};

use super::capture;
use super::monitor::{Monitor, Snapshot};
use crate::otlp::answer::Answer;
use crate::semconv::field;
use crate::semconv::metric::{self, DATABASE, Metric, SIGNAL, STATUS};
use crate::store::{Store, StoreError, StoreStatus};

/// From a commit of its own to a receiver that takes its time, in seconds.
const BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The last look, of a relay that ends, takes no longer.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What a relay counts.
pub(super) struct Instruments {
    /// What it sends.
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

    /// The same, of one database.
    pub(super) fn of(self: &Arc<Self>, database: &str) -> Counts {
        Counts { instruments: Arc::clone(self), database: KeyValue::new(DATABASE, database.to_owned()) }
    }
}

/// What a relay counts of a database.
#[derive(Clone)]
pub(super) struct Counts {
    instruments: Arc<Instruments>,
    database: KeyValue,
}

impl Counts {
    /// Counts nothing yet: a rate has to begin at 0.
    fn begin(&self) {
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

    /// Entries that the journal had missed.
    pub(super) fn reconciled(&self, entries: u64) {
        self.instruments.reconciled.add(entries, std::slice::from_ref(&self.database));
    }

    /// Spans and records that the outbox had no room for.
    pub(super) fn dropped(&self, items: u64) {
        self.instruments.dropped.add(items, std::slice::from_ref(&self.database));
    }

    /// A batch was read, projected and committed.
    pub(super) fn cycle(&self, took: Duration) {
        self.instruments.cycle_duration.record(took.as_secs_f64(), std::slice::from_ref(&self.database));
    }

    /// A request is sent once more.
    pub(super) fn resent(&self, signal: &'static str) {
        self.instruments.resent.add(1, &self.of(signal));
    }

    /// A request with so many items was answered.
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

/// Shows how the relay of `monitor` stands, for as long as somebody holds that.
pub(super) fn show(monitor: &Monitor, max_outbox: u64) {
    let gauges = Gauges { meter: meter(), monitor };
    let limit = i64::try_from(max_outbox).unwrap_or(i64::MAX);
    // A relay that begins or ends says neither: one that cron starts each minute would seem never to hold it.
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
    monitor: &'a Monitor,
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

    /// Tells a gauge its points; none of a database that is not known yet.
    fn observing<T, P: Fn(&Snapshot) -> Points<T>>(
        &self,
        points: P,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + use<T, P> {
        let state = self.monitor.downgrade();
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

/// What the database said last, unless it did not answer then.
fn stored<T>(points: fn(&StoreStatus) -> Points<T>) -> impl Fn(&Snapshot) -> Points<T> {
    move |snapshot| snapshot.status.as_ref().map(points).unwrap_or_default()
}

/// The age of the oldest; 0 where there is none. (The clock of a database may go back.)
fn age(oldest: Option<f64>) -> Points<f64> {
    vec![(oldest.unwrap_or_default().max(0.0), None)]
}

/// What looks at the database every few seconds: for the gauges, and for what the log has to say. (The SDK's own thread
/// must not wait for a database.)
pub(super) struct Looker<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) monitor: &'a Monitor,
    pub(super) instruments: &'a Arc<Instruments>,
    pub(super) capture: &'a capture::Watch,
}

impl Looker<'_> {
    pub(super) async fn watch(&self, every: Duration) -> Infallible {
        loop {
            self.look().await;
            tokio::time::sleep(every).await;
        }
    }

    /// Looks once more, so that the last export tells how it was left.
    pub(super) async fn look_at_the_end(&self) {
        let _ = tokio::time::timeout(LAST_LOOK, self.look()).await;
    }

    /// What cannot be seen is not shown: an old number would pass for a new one.
    async fn look(&self) {
        let seen: Result<_, StoreError> =
            async { Ok((self.store.instance().await?, self.store.status().await?)) }.await;
        match seen {
            Ok((database, status)) => {
                let before = self.monitor.snapshot();
                report_skipped(&before, &status);
                if before.database.as_ref() != Some(&database) {
                    self.instruments.of(&database).begin();
                }
                self.monitor.update(|state| {
                    state.database = Some(database);
                    state.status = Some(status);
                });
                self.capture.look(self.store, self.monitor).await;
            }
            Err(error) => {
                tracing::debug!("cannot look at the database for the relay's metrics: {error}");
                self.monitor.update(|state| {
                    state.status = None;
                    state.capture = None;
                });
            }
        }
    }
}

/// The triggers never fail a writer: what they could not write is only counted.
fn report_skipped(before: &Snapshot, now: &StoreStatus) {
    let Some(known) = before.status.as_ref().filter(|_| before.lease_epoch.is_some()) else { return };
    let entries = now.skipped_entries - known.skipped_entries;
    if entries > 0 {
        tracing::error!(
            entries,
            "the triggers could not write transitions to the journal, which was locked or refused them: check what was \
             added to runspan.journal (constraints, triggers, rights) and its sequence, and run `runspan attach`; \
             reconciliation recovers what is still in flight"
        );
    }
}

fn meter() -> Meter {
    global::meter(env!("CARGO_PKG_NAME"))
}
