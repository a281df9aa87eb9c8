//! The same for exports of metrics, whose points are in the series until they are acknowledged.

use std::time::Duration;

use crate::otlp::answer::{Answer, FailureKind};
use crate::otlp::encode::MAX_REQUEST;

/// How often an export is refused before it is sent in smaller requests.
const REFUSALS: u32 = 2;
/// Requests are not made smaller than this, in bytes, because of their size.
const MIN_REQUEST: usize = 4 * 1024;
/// Older points are refused for their age, so what would be right for younger ones may never be accepted: Prometheus takes
/// points that are up to an hour older than its newest.
const ACCEPTABLE_AGE: Duration = Duration::from_hours(1);
/// The most acknowledged exports that are waited for before larger requests are tried.
const LONGEST_CALM: u32 = 64;

/// Whether an export arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExportOutcome {
    /// The receiver accepted it. Series that it rejects each time, while it accepts others, are left out.
    Acknowledged,
    /// It did not arrive: the next export includes its increments. The receiver asks for this wait.
    NotDelivered(Duration),
    /// It may have arrived: it has to be sent again unchanged. The receiver asks for this wait.
    Unknown(Duration),
}

/// What to do after one request of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterExport {
    /// Send the next request.
    Continue,
    /// End this attempt.
    End(ExportOutcome),
}

/// Whether anything of the export in progress is at the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Arrival {
    /// Nothing: it never reached one.
    #[default]
    No,
    /// The receiver refused it. But of two backends behind a Collector one may have accepted it.
    Refused,
    /// A part was accepted, or an answer is missing.
    Possible,
}

/// The history of the exports that the next decision rests on.
#[derive(Debug)]
pub(crate) struct ExportPolicy {
    /// The most bytes of a request.
    size: usize,
    /// Acknowledged exports since the size last changed.
    calm: u32,
    /// How many of them are needed before larger requests are tried: more after each failure.
    needed: u32,
    /// Whether the size was raised since the last acknowledged export.
    is_trial: bool,
    /// How often the export in progress was refused.
    refusals: u32,
    /// Whether each series is sent in a request of its own, to find those that are invalid.
    is_apart: bool,
    arrival: Arrival,
    /// Whether a part of the export in progress was accepted.
    is_accepted: bool,
    /// Requests of this attempt that were rejected or too large, and those of them that were rejected before anything was
    /// accepted: the receiver may have rejected everything then.
    refused: usize,
    unproven: usize,
}

impl Default for ExportPolicy {
    fn default() -> Self {
        Self {
            size: MAX_REQUEST,
            calm: 0,
            needed: 1,
            is_trial: false,
            refusals: 0,
            is_apart: false,
            arrival: Arrival::No,
            is_accepted: false,
            refused: 0,
            unproven: 0,
        }
    }
}

impl ExportPolicy {
    /// A new export, or one that another relay began: it may have arrived.
    pub(crate) fn begin(&mut self, is_inherited: bool) {
        self.refusals = 0;
        self.is_apart = false;
        self.is_accepted = false;
        self.arrival = if is_inherited { Arrival::Possible } else { Arrival::No };
    }

    /// The export in progress is sent, from its first request on: the most bytes of a request.
    pub(crate) fn attempt(&mut self) -> usize {
        (self.refused, self.unproven) = (0, 0);
        if self.is_apart { 0 } else { self.size }
    }

    /// What to do after one request of so many bytes. `interval` is the one between exports.
    pub(crate) fn after_request(&mut self, bytes: usize, answer: &Answer, interval: Duration) -> AfterExport {
        let (is_lost, wait) = match answer {
            Answer::Accepted { .. } => {
                self.is_accepted = true;
                self.arrival = Arrival::Possible;
                return AfterExport::Continue;
            }
            // The next ones may be valid.
            Answer::Rejected(_) => {
                self.refused += 1;
                self.unproven += usize::from(!self.is_accepted);
                self.arrival = self.arrival.max(Arrival::Refused);
                return AfterExport::Continue;
            }
            Answer::TooLarge { after: None, .. } => {
                self.refused += 1;
                self.refusals += 1;
                if self.refusals >= REFUSALS {
                    self.refusals = 0;
                    self.shrink(bytes);
                }
                (false, Duration::ZERO)
            }
            // Nobody fixes a configuration within a moment. Of two backends behind a Collector one may refuse the
            // credentials after the other has accepted the points.
            Answer::Misconfigured(cause) => (cause.kind() != FailureKind::Credentials, interval),
            Answer::Retry { cause, after } | Answer::TooLarge { cause, after } => {
                (cause.kind() == FailureKind::Unreachable, after.unwrap_or_default())
            }
        };
        AfterExport::End(if is_lost && self.arrival == Arrival::No {
            ExportOutcome::NotDelivered(wait)
        } else {
            let is_unanswered = answer
                .cause()
                .is_some_and(|cause| matches!(cause.kind(), FailureKind::Timeout | FailureKind::Broken));
            let now = if is_unanswered { Arrival::Possible } else { Arrival::Refused };
            self.arrival = self.arrival.max(now);
            ExportOutcome::Unknown(wait)
        })
    }

    /// The export in progress was cancelled: it may have arrived.
    pub(crate) fn interrupted(&mut self) {
        self.arrival = Arrival::Possible;
    }

    /// Whether the export was refused in a way that other requests may avoid.
    pub(crate) fn is_adapting(&self) -> bool {
        self.refused > 0
    }

    /// What became of the export, whose points are of this age, once each of its requests was accepted or rejected.
    pub(crate) fn after_all(&mut self, age: Duration) -> ExportOutcome {
        if self.refused == 0 {
            self.grow();
            return ExportOutcome::Acknowledged;
        }
        if self.is_apart {
            // Receivers keep some points of a request that they reject, but not of a single series that they reject. If
            // they rejected all of them, nothing was stored, except by a request that was never answered.
            return match self.arrival {
                Arrival::No | Arrival::Refused => ExportOutcome::NotDelivered(Duration::ZERO),
                Arrival::Possible if self.unproven > 0 && age < ACCEPTABLE_AGE => {
                    ExportOutcome::Unknown(Duration::ZERO)
                }
                Arrival::Possible => ExportOutcome::Acknowledged,
            };
        }
        self.refusals += 1;
        self.is_apart = self.refusals >= REFUSALS;
        ExportOutcome::Unknown(Duration::ZERO)
    }

    fn shrink(&mut self, refused: usize) {
        self.size = (self.size.min(refused) / 2).max(MIN_REQUEST);
        self.calm = 0;
        if std::mem::take(&mut self.is_trial) {
            self.needed = (self.needed * 2).min(LONGEST_CALM);
        }
    }

    fn grow(&mut self) {
        if std::mem::take(&mut self.is_trial) {
            self.needed = 1;
        }
        self.calm += 1;
        if self.size < MAX_REQUEST && self.calm >= self.needed {
            self.size = (self.size * 2).min(MAX_REQUEST);
            self.calm = 0;
            self.is_trial = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::answer;
    use super::*;

    const INTERVAL: Duration = Duration::from_mins(1);

    /// Sends an export in so many requests, each as large as it may be; the outcome of this attempt.
    fn attempt(
        policy: &mut ExportPolicy,
        requests: usize,
        status: impl Fn(usize, usize) -> u16,
    ) -> ExportOutcome {
        let size = policy.attempt();
        for request in 0..requests {
            let answer = answer(status(request, size));
            if let AfterExport::End(outcome) = policy.after_request(size, &answer, INTERVAL) {
                return outcome;
            }
        }
        policy.after_all(Duration::ZERO)
    }

    fn begun(is_inherited: bool) -> ExportPolicy {
        let mut policy = ExportPolicy::default();
        policy.begin(is_inherited);
        policy
    }

    #[test]
    fn what_is_too_large_is_sent_again_before_it_is_made_smaller_and_grows_back() {
        let mut policy = begun(false);
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(policy.attempt());
            let outcome = attempt(&mut policy, 1, |_, _| 413);
            assert_eq!(outcome, ExportOutcome::Unknown(Duration::ZERO));
        }
        assert_eq!(sizes, [MAX_REQUEST, MAX_REQUEST, MAX_REQUEST / 2]);
        for _ in 0..3 {
            assert_eq!(attempt(&mut policy, 1, |_, _| 200), ExportOutcome::Acknowledged);
            policy.begin(false);
        }
        assert_eq!(policy.attempt(), MAX_REQUEST);
    }

    #[test]
    fn a_limit_that_stays_is_tried_less_and_less_often() {
        let mut policy = ExportPolicy::default();
        let mut refused = 0;
        for _ in 0..200 {
            policy.begin(false);
            while attempt(&mut policy, 1, |_, size| if size > 1_000_000 { 413 } else { 200 })
                != ExportOutcome::Acknowledged
            {
                refused += 1;
            }
        }
        assert!(refused <= 20, "{refused}");
    }

    #[test]
    fn nothing_is_given_up_however_small() {
        let mut policy = begun(false);
        for _ in 0..100 {
            assert_eq!(attempt(&mut policy, 1, |_, _| 413), ExportOutcome::Unknown(Duration::ZERO));
        }
        assert_eq!(policy.attempt(), MIN_REQUEST);
    }

    #[test]
    fn what_is_rejected_is_sent_again_then_apart_and_only_the_invalid_series_is_left_out() {
        let mut policy = begun(false);
        let invalid = |request, size| if size > 0 || request == 2 { 400 } else { 200 };
        assert_eq!(attempt(&mut policy, 1, invalid), ExportOutcome::Unknown(Duration::ZERO));
        assert_eq!(attempt(&mut policy, 1, invalid), ExportOutcome::Unknown(Duration::ZERO));
        assert_eq!(policy.attempt(), 0);
        assert_eq!(attempt(&mut policy, 5, invalid), ExportOutcome::Acknowledged);
        policy.begin(false);
        assert_eq!(policy.attempt(), MAX_REQUEST);
    }

    #[test]
    fn what_was_rejected_before_the_receiver_recovered_is_sent_again() {
        let mut policy = begun(true);
        for _ in 0..3 {
            assert_eq!(attempt(&mut policy, 5, |_, _| 400), ExportOutcome::Unknown(Duration::ZERO));
        }
        let recovers = |request, _| if request < 3 { 400 } else { 200 };
        assert_eq!(attempt(&mut policy, 5, recovers), ExportOutcome::Unknown(Duration::ZERO));
        assert_eq!(attempt(&mut policy, 5, |_, _| 200), ExportOutcome::Acknowledged);
    }

    #[test]
    fn what_is_rejected_as_a_whole_did_not_arrive() {
        let mut policy = begun(false);
        // Refused when busy, then for its age.
        assert_eq!(attempt(&mut policy, 1, |_, _| 503), ExportOutcome::Unknown(Duration::ZERO));
        for _ in 0..2 {
            assert_eq!(attempt(&mut policy, 1, |_, _| 400), ExportOutcome::Unknown(Duration::ZERO));
        }
        assert_eq!(attempt(&mut policy, 5, |_, _| 400), ExportOutcome::NotDelivered(Duration::ZERO));
    }

    #[test]
    fn what_may_have_arrived_is_never_sent_with_other_values() {
        for (is_inherited, first) in [(true, 400), (false, 408), (false, 504)] {
            let mut policy = begun(is_inherited);
            for status in [first, 400, 400, 400] {
                let outcome = attempt(&mut policy, 5, |_, _| status);
                assert_eq!(outcome, ExportOutcome::Unknown(Duration::ZERO), "{is_inherited} {first}");
            }
            policy.attempt();
            policy.after_request(0, &answer(400), INTERVAL);
            // No younger points would be accepted otherwise.
            assert_eq!(policy.after_all(2 * ACCEPTABLE_AGE), ExportOutcome::Acknowledged);
        }
    }
}
