//! The metrics, by name and unit. (Nothing exports them yet; the documentation's queries are checked against this.)

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

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub instrument: Instrument,
    /// Its unit, in UCUM.
    pub unit: &'static str,
    /// What it tells.
    pub meaning: &'static str,
}

/// Every metric.
pub const ALL: [Metric; 7] = [
    Metric {
        name: "workflow.run.duration",
        instrument: Instrument::Histogram,
        unit: "s",
        meaning: "Queued to end.",
    },
    Metric {
        name: "workflow.run.queue.duration",
        instrument: Instrument::Histogram,
        unit: "s",
        meaning: "The first wait.",
    },
    Metric {
        name: "workflow.run.execution.duration",
        instrument: Instrument::Histogram,
        unit: "s",
        meaning: "First running to end.",
    },
    Metric {
        name: "workflow.run.events",
        instrument: Instrument::Counter,
        unit: "{event}",
        meaning: "Events.",
    },
    Metric {
        name: "workflow.run.active",
        instrument: Instrument::UpDownCounter,
        unit: "{run}",
        meaning: "Runs in flight.",
    },
    Metric {
        name: "workflow.run.oldest.age",
        instrument: Instrument::Gauge,
        unit: "s",
        meaning: "The age of the oldest run in flight.",
    },
    Metric {
        name: "runspan.journal.skipped",
        instrument: Instrument::Counter,
        unit: "{entry}",
        meaning: "Entries that the triggers could not write.",
    },
];

impl Metric {
    /// The names of its series in Prometheus, as its OTLP receiver and the Collector's remote write make them.
    pub fn prometheus(&self) -> Vec<String> {
        let mut name = self.name.replace('.', "_");
        if self.unit == "s" {
            name += "_seconds";
        }
        match self.instrument {
            Instrument::Histogram => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).into(),
            Instrument::Counter => vec![name + "_total"],
            Instrument::UpDownCounter | Instrument::Gauge => vec![name],
        }
    }
}
