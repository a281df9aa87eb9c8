//! What to log of an outage: each change, and a summary per minute.
//!
//! A receiver or a database that is away fails every attempt. A line for each would fill the log, and none for the
//! recovery would leave it ending in the failure.

use std::time::Duration;

use tokio::time::Instant;

/// How often an outage that lasts is summarised.
const SUMMARY_EVERY: Duration = Duration::from_mins(1);

/// How many causes are logged between two summaries: a cause may contain what differs in every attempt.
const MAX_CAUSES: usize = 5;

/// The state of one dependency: a receiver of one signal, or the database.
#[derive(Debug, Default)]
pub(crate) struct Outage(Option<Current>);

/// How a receiver answers while it accepts nothing.
#[cfg(feature = "relay")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It may pass by itself.
    Passing,
    /// Someone has to fix the configuration.
    Misconfigured,
}

#[derive(Debug)]
struct Current {
    since: Instant,
    attempts: u64,
    summarised_at: Instant,
    /// Logged since the last summary.
    causes: Vec<String>,
}

/// What to log of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Its cause: the first of the outage, or another one than before.
    Cause,
    /// The outage so far.
    Summary(Extent),
    /// Nothing.
    Nothing,
}

/// How long an outage has lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) duration: Duration,
    pub(crate) attempts: u64,
}

impl Outage {
    /// An attempt failed.
    pub(crate) fn failed(&mut self, cause: &str, now: Instant) -> Report {
        let current = self.0.get_or_insert_with(|| Current {
            since: now,
            attempts: 0,
            summarised_at: now,
            causes: Vec::new(),
        });
        current.attempts += 1;
        if now.duration_since(current.summarised_at) >= SUMMARY_EVERY {
            current.summarised_at = now;
            current.causes = vec![cause.to_owned()];
            return Report::Summary(current.extent(now));
        }
        if current.causes.len() >= MAX_CAUSES || current.causes.iter().any(|known| known == cause) {
            return Report::Nothing;
        }
        current.causes.push(cause.to_owned());
        Report::Cause
    }

    /// An attempt succeeded. The outage that this ends, if there was one.
    pub(crate) fn recovered(&mut self, now: Instant) -> Option<Extent> {
        self.0.take().map(|current| current.extent(now))
    }

    /// An attempt failed: how long the outage has lasted, if a line is due.
    #[cfg(feature = "runtime")]
    pub(crate) fn is_due(&mut self, cause: &str) -> Option<Extent> {
        let now = Instant::now();
        let report = self.failed(cause, now);
        self.0.as_ref().filter(|_| report != Report::Nothing).map(|current| current.extent(now))
    }

    /// Logs that a receiver did not accept a request, which is kept.
    #[cfg(feature = "relay")]
    pub(crate) fn log_failure(&mut self, cause: &str, severity: Severity, retry_in: Option<Duration>) {
        let retry_in_ms = retry_in.map(|wait| wait.as_millis());
        match (self.failed(cause, Instant::now()), severity) {
            (Report::Cause, Severity::Misconfigured) => tracing::error!(retry_in_ms, "{cause}"),
            (Report::Cause, Severity::Passing) => tracing::warn!(retry_in_ms, "{cause}"),
            (Report::Summary(Extent { duration, attempts }), Severity::Misconfigured) => tracing::error!(
                outage_ms = duration.as_millis(),
                attempts,
                retry_in_ms,
                "receiver has accepted nothing since the outage began: {cause}"
            ),
            (Report::Summary(Extent { duration, attempts }), Severity::Passing) => tracing::warn!(
                outage_ms = duration.as_millis(),
                attempts,
                retry_in_ms,
                "receiver has accepted nothing since the outage began: {cause}"
            ),
            (Report::Nothing, _) => {}
        }
    }

    /// Logs that a receiver accepts requests again; whether it did not before.
    #[cfg(feature = "relay")]
    pub(crate) fn log_recovery(&mut self, channel: &str) -> bool {
        let Some(Extent { duration, attempts }) = self.recovered(Instant::now()) else { return false };
        tracing::info!(
            channel,
            outage_ms = duration.as_millis(),
            attempts,
            "receiver accepts requests again"
        );
        true
    }

    /// Whether the last attempt failed.
    #[cfg(feature = "relay")]
    pub(crate) const fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl Current {
    fn extent(&self, now: Instant) -> Extent {
        Extent { duration: now.duration_since(self.since), attempts: self.attempts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "connection refused";

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[cfg(feature = "runtime")]
    #[test]
    fn a_line_is_due_once_per_cause() {
        let mut outage = Outage::default();
        let mut attempts = |cause| outage.is_due(cause).map(|extent| extent.attempts);
        assert_eq!([attempts(REFUSED), attempts(REFUSED), attempts("no response")], [Some(1), None, Some(3)]);
    }

    #[test]
    fn an_outage_is_a_line_at_its_beginning_one_per_minute_and_one_at_its_end() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        assert_eq!(outage.recovered(start), None);
        let reports: Vec<_> = (0..=150)
            .map(|second| (second, outage.failed(REFUSED, after(start, second))))
            .filter(|(_, report)| *report != Report::Nothing)
            .collect();
        let extent = |seconds, attempts| Extent { duration: Duration::from_secs(seconds), attempts };
        assert_eq!(
            reports,
            [
                (0, Report::Cause),
                (60, Report::Summary(extent(60, 61))),
                (120, Report::Summary(extent(120, 121)))
            ]
        );
        assert!(outage.is_on());
        assert_eq!(outage.recovered(after(start, 151)), Some(extent(151, 151)));
        assert_eq!(outage.recovered(after(start, 152)), None);
        assert_eq!(outage.failed(REFUSED, after(start, 153)), Report::Cause);
    }

    #[test]
    fn another_cause_is_a_line_and_one_that_comes_back_is_not() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        assert_eq!(outage.failed(REFUSED, start), Report::Cause);
        assert_eq!(outage.failed("HTTP 503", after(start, 1)), Report::Cause);
        assert_eq!(outage.failed(REFUSED, after(start, 2)), Report::Nothing);
    }

    #[test]
    fn causes_that_differ_every_time_do_not_fill_the_log() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        let reports =
            (0..600).map(|n| outage.failed(&format!("request {n}"), start + Duration::from_millis(100) * n));
        let lines = reports.filter(|report| *report != Report::Nothing).count();
        assert_eq!(lines, MAX_CAUSES);
    }
}
