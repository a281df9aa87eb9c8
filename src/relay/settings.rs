//! How a relay works: the defaults are those of the command line, so an embedded relay and a sidecar behave alike.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::projection;

/// Where log records go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logs {
    /// To the OTLP receiver.
    #[default]
    Otlp,
    /// To standard output, as JSON lines.
    Stdout,
    /// To both.
    Both,
}

/// How a relay works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the lease lasts without renewal. The holder renews it every third of this.
    pub lease_term: Duration,
    /// The maximum number of entries per transaction.
    pub batch: NonZeroUsize,
    /// The longest pause between two reads of an empty journal.
    pub idle_poll: Duration,
    /// How often the relay polls the database's status, and whether transitions reach the journal.
    pub look_every: Duration,
    /// How often the table is reconciled with the journal.
    pub reconcile_every: Duration,
    /// The maximum size of the outbox, in bytes. Past it the oldest requests are dropped first.
    pub max_outbox: u64,
    /// The shortest pause between two checks of that size.
    pub trim_every: Duration,
    /// How fast spans older than a minute are sent, in runs per second; 0 for no limit.
    pub max_runs_per_second: u32,
    /// Whether no request of metrics holds two points of a series.
    pub one_point_per_series: bool,
    /// The longest wait between two attempts to send.
    pub longest_backoff: Duration,
    /// How the journal is projected.
    pub projection: projection::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_term: Duration::from_secs(10),
            batch: const { NonZeroUsize::new(2_000).expect("2,000 is not zero") },
            idle_poll: Duration::from_millis(333),
            look_every: Duration::from_secs(5),
            reconcile_every: Duration::from_mins(1),
            max_outbox: 2 << 30,
            trim_every: Duration::from_secs(5),
            max_runs_per_second: 500,
            one_point_per_series: false,
            longest_backoff: Duration::from_secs(30),
            projection: projection::Settings::default(),
        }
    }
}
