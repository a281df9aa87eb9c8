//! The metrics: names, units, attributes.
//!
//! Those of the runs are durable and belong to the application; the relay's own describe one relay process.

use std::fmt;

use super::field;

/// What kind of instrument a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    /// A distribution, in explicit buckets.
    Histogram,
    /// A sum that only grows.
    Counter,
    /// A sum that grows and shrinks.
    UpDownCounter,
    /// A value as it is now.
    Gauge,
}

impl fmt::Display for Instrument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Histogram => "histogram",
            Self::Counter => "counter",
            Self::UpDownCounter => "updowncounter",
            Self::Gauge => "gauge",
        })
    }
}

/// Whose metric it is: which `service.name` it is exported under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The application's: counted in the database, exactly once.
    Runs,
    /// A relay process's own: gone when it ends.
    Relay,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub instrument: Instrument,
    /// Its unit, in UCUM.
    pub unit: &'static str,
    /// Its attributes. Never a run, a target or a delivery: their cardinality is unbounded.
    pub attributes: &'static [&'static str],
    /// Whose it is.
    pub source: Source,
    /// Its description.
    pub meaning: &'static str,
}

/// The state of runs in flight, or of stored requests.
pub const STATUS: &str = "status";
/// What is sent: `traces`, `logs`, `metrics` or `stdout`.
pub const SIGNAL: &str = "signal";
/// The database that a relay works for: the `service.instance.id` of its runs.
pub const DATABASE: &str = "database";

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $const:ident = $source:ident $instrument:ident
       $name:literal [$unit:literal] { $($attribute:expr),* };)*) => {
        $($(#[doc = $doc])* pub const $const: Metric = Metric {
            name: $name,
            instrument: Instrument::$instrument,
            unit: $unit,
            attributes: &[$($attribute),*],
            source: Source::$source,
            meaning: concat!($($doc),*).trim_ascii_start(),
        };)*

        /// Every metric.
        pub const ALL: &[Metric] = &[$($const),*];
    };
}

metrics! {
    /// From queued to the end.
    DURATION = Runs Histogram "workflow.run.duration" ["s"]
        { field::WORKFLOW_NAME, field::OUTCOME, field::ERROR_TYPE };
    /// The first wait, from queued to running or to an end without running.
    QUEUE_DURATION = Runs Histogram "workflow.run.queue.duration" ["s"] { field::WORKFLOW_NAME };
    /// From the first running to the end.
    EXECUTION_DURATION = Runs Histogram "workflow.run.execution.duration" ["s"]
        { field::WORKFLOW_NAME, field::OUTCOME };
    /// Events, one per record.
    EVENTS = Runs Counter "workflow.run.events" ["{event}"]
        { field::WORKFLOW_NAME, field::EVENT, field::ERROR_TYPE };
    /// Runs in flight now, read from the table.
    ACTIVE = Runs UpDownCounter "workflow.run.active" ["{run}"] { field::WORKFLOW_NAME, STATUS };
    /// The age of the oldest run in flight now, read from the table; 0 if there is none.
    OLDEST_AGE = Runs Gauge "workflow.run.oldest.age" ["s"] { field::WORKFLOW_NAME, STATUS };
    /// Transitions that the triggers could not journal, since attach.
    SKIPPED = Runs Counter "runspan.journal.skipped" ["{entry}"] {};

    /// 1 while this relay holds the lease, 0 while it stands by.
    LEASE_HELD = Relay Gauge "runspan.relay.lease.held" [""] { DATABASE };
    /// 1 while transitions reach the journal and the table can be compared with it, 0 while not.
    JOURNAL_LIVE = Relay Gauge "runspan.journal.live" [""] { DATABASE };
    /// Entries of the journal that are not projected yet.
    JOURNAL_ENTRIES = Relay Gauge "runspan.journal.entries" ["{entry}"] { DATABASE };
    /// The entries at which the triggers skip transitions.
    JOURNAL_LIMIT = Relay Gauge "runspan.journal.limit" ["{entry}"] { DATABASE };
    /// The age of the oldest of them; 0 if there is none.
    JOURNAL_OLDEST_AGE = Relay Gauge "runspan.journal.oldest.age" ["s"] { DATABASE };
    /// Entries that could not be parsed and are set aside.
    JOURNAL_SET_ASIDE = Relay Gauge "runspan.journal.set_aside" ["{entry}"] { DATABASE };
    /// Encoded requests in the outbox: `waiting`, or `dead`, rejected by the receiver as invalid.
    OUTBOX_REQUESTS = Relay Gauge "runspan.outbox.requests" ["{request}"] { DATABASE, STATUS };
    /// The size of the waiting requests.
    OUTBOX_SIZE = Relay Gauge "runspan.outbox.size" ["By"] { DATABASE };
    /// The size at which the oldest requests are dropped.
    OUTBOX_LIMIT = Relay Gauge "runspan.outbox.limit" ["By"] { DATABASE };
    /// The age of the oldest waiting request; 0 if there is none.
    OUTBOX_OLDEST_AGE = Relay Gauge "runspan.outbox.oldest.age" ["s"] { DATABASE };
    /// Entries that reconciliation added because the journal had missed them.
    RECONCILED = Relay Counter "runspan.relay.reconciled" ["{entry}"] { DATABASE };
    /// Spans, records and points that a receiver acknowledged.
    EXPORTED = Relay Counter "runspan.relay.exported" ["{item}"] { DATABASE, SIGNAL };
    /// Those of them that the receiver rejected (`partial_success`).
    REJECTED = Relay Counter "runspan.relay.rejected" ["{item}"] { DATABASE, SIGNAL };
    /// Requests that were sent again because they were not acknowledged.
    RESENT = Relay Counter "runspan.relay.resent" ["{request}"] { DATABASE, SIGNAL };
    /// Spans and records that were dropped because the outbox was full.
    DROPPED = Relay Counter "runspan.relay.dropped" ["{item}"] { DATABASE };
    /// The time from sending a request to its answer.
    EXPORT_DURATION = Relay Histogram "runspan.relay.export.duration" ["s"]
        { DATABASE, SIGNAL, field::ERROR_TYPE };
    /// The time to read, project and commit a batch of the journal.
    CYCLE_DURATION = Relay Histogram "runspan.relay.cycle.duration" ["s"] { DATABASE };
}

impl Metric {
    /// The names of its series in Prometheus, as its OTLP receiver and the Collector's remote write make them.
    pub fn prometheus(&self) -> Vec<String> {
        let mut name = self.name.replace('.', "_");
        match self.unit {
            "s" => name += "_seconds",
            "By" => name += "_bytes",
            _ => {}
        }
        match self.instrument {
            Instrument::Histogram => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).into(),
            Instrument::Counter => vec![name + "_total"],
            Instrument::UpDownCounter | Instrument::Gauge => vec![name],
        }
    }

    /// The names of its attributes as labels in Prometheus.
    pub fn labels(&self) -> Vec<String> {
        self.attributes.iter().map(|attribute| attribute.replace('.', "_")).collect()
    }
}
