//! Whether transitions reach the journal, and since when they do not.
//!
//! Disabling the triggers or replacing the table raises no error: the journal only stays empty. Every relay checks; the
//! one that holds the lease logs each change once.

use std::fmt;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::Mutex;

use super::status::{Capture, RelayStatus};
use crate::store::{CaptureProblem, Store};

/// The checks of one relay so far.
#[derive(Default)]
pub(super) struct Watch {
    history: Mutex<History>,
}

impl Watch {
    /// Checks the triggers, and logs what changed if this relay holds the lease. A database error is not a finding: it
    /// says nothing about the triggers.
    pub(super) async fn check(&self, store: &dyn Store, status: &RelayStatus) {
        // Two checks at once could be recorded in the wrong order.
        let mut history = self.history.lock().await;
        let asked = SystemTime::now();
        match store.capture().await {
            Ok(problems) => {
                history.found(problems, asked, SystemTime::now());
                status.update(|state| state.capture = Some(history.capture()));
            }
            Err(error) => {
                tracing::debug!("cannot check whether transitions reach the journal: {error}");
                status.update(|state| state.capture = None);
                return;
            }
        }
        let snapshot = status.snapshot();
        if snapshot.lease_epoch.is_some() {
            for news in history.news(SystemTime::now()) {
                match news {
                    News::Broken { .. } => tracing::error!("{news}"),
                    News::Works { .. } => tracing::warn!("{news}"),
                }
            }
        } else if snapshot.stands_by {
            // The holder of the lease has logged it.
            history.ended.clear();
        }
    }
}

/// What was found, check by check. Pure.
#[derive(Debug, Default)]
struct History {
    /// When the first check began.
    began: Option<SystemTime>,
    problems: Vec<CaptureProblem>,
    /// When the last check without a problem began: until then everything was journalled.
    worked_at: Option<SystemTime>,
    /// When the first check without a problem since then ended.
    works_since: Option<SystemTime>,
    /// The current gap.
    gap: Option<Gap>,
    /// Gaps that ended, each with its end, and have not been logged.
    ended: Vec<(Gap, SystemTime)>,
    logged: Vec<CaptureProblem>,
}

/// A time in which capture did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    start: Start,
    loses_transitions: bool,
}

/// When a gap began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// After this moment, when capture was seen to work.
    After(SystemTime),
    /// Before this moment, when the relay first checked.
    Before(SystemTime),
}

/// What is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Broken { problem: CaptureProblem, start: Start, now: SystemTime },
    Works { gap: Gap, end: SystemTime },
}

impl History {
    /// Records what a check found that lasted from `asked` to `answered`.
    fn found(&mut self, problems: Vec<CaptureProblem>, asked: SystemTime, answered: SystemTime) {
        let began = *self.began.get_or_insert(asked);
        if problems.is_empty() {
            self.ended.extend(self.gap.take().map(|gap| (gap, answered)));
            self.logged.clear();
            self.worked_at = Some(asked);
            self.works_since.get_or_insert(answered);
        } else {
            self.works_since = None;
            let start = self.worked_at.map_or(Start::Before(began), Start::After);
            let gap = self.gap.get_or_insert(Gap { start, loses_transitions: false });
            gap.loses_transitions |= problems.iter().any(CaptureProblem::loses_transitions);
        }
        self.problems = problems;
    }

    fn capture(&self) -> Capture {
        let since = if self.problems.is_empty() { self.works_since } else { self.worked_at };
        Capture { problems: self.problems.clone(), since }
    }

    /// What has not been logged before `now`.
    fn news(&mut self, now: SystemTime) -> Vec<News> {
        let works = |(gap, end)| News::Works { gap, end };
        let mut news: Vec<News> = self.ended.drain(..).map(works).collect();
        if let Some(gap) = self.gap {
            let new = self.problems.iter().filter(|problem| !self.logged.contains(problem));
            news.extend(new.map(|problem| News::Broken { problem: problem.clone(), start: gap.start, now }));
        }
        self.logged.clone_from(&self.problems);
        news
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { problem, start: Start::After(at), now } => {
                let ago = now.duration_since(*at).unwrap_or_default();
                let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
                write!(f, "{problem}; capture was last seen working at {}, {ago} ago", utc(*at))
            }
            Self::Broken { problem, start: Start::Before(at), .. } => {
                write!(
                    f,
                    "{problem}; capture has not been seen working since this relay started, at {}",
                    utc(*at)
                )
            }
            Self::Works { gap: Gap { start, loses_transitions: true }, end } => write!(
                f,
                "capture works again: transitions between {start} and {} were not journalled unless reconciliation \
                 recovers them from the table; runs that began and ended in that time have no span",
                utc(*end)
            ),
            Self::Works { gap: Gap { start, loses_transitions: false }, end } => write!(
                f,
                "the table can be reconciled again: between {start} and {} it could not, and transitions that the triggers \
                 missed then are recovered only now",
                utc(*end)
            ),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(at) => f.write_str(&utc(*at)),
            Self::Before(at) => write!(f, "an unknown time before {}", utc(*at)),
        }
    }
}

/// RFC 3339, by this host's clock.
pub(super) fn utc(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn disabled(triggers: &str) -> CaptureProblem {
        CaptureProblem::TriggersDisabled { table: "app.runs".to_owned(), triggers: triggers.to_owned() }
    }

    /// A check at `seconds` that takes one second, and what is logged.
    fn check(history: &mut History, seconds: u64, problems: &[CaptureProblem]) -> String {
        history.found(problems.to_vec(), at(seconds), at(seconds + 1));
        log(history, seconds)
    }

    fn log(history: &mut History, seconds: u64) -> String {
        history.news(at(seconds)).into_iter().map(|news| news.to_string() + "\n").collect()
    }

    #[test]
    fn each_problem_is_logged_when_it_appears_and_the_gap_when_it_ends() {
        let mut history = History::default();
        assert_eq!(check(&mut history, 0, &[]), "");
        assert_eq!(check(&mut history, 5, &[]), "");
        insta::assert_snapshot!(check(&mut history, 10, &[disabled("runspan_changed")]), @"runspan's triggers on app.runs are disabled (runspan_changed): its transitions are not journalled; run `runspan attach --table 'app.runs'`, which enables them; capture was last seen working at 2027-01-15T08:00:05.000Z, 5s ago");
        assert_eq!(check(&mut history, 15, &[disabled("runspan_changed")]), "");
        // It changes, and another joins it.
        insta::assert_snapshot!(check(&mut history, 80, &[disabled("runspan_changed, runspan_inserted"), CaptureProblem::Detached]), @r"
        runspan's triggers on app.runs are disabled (runspan_changed, runspan_inserted): its transitions are not journalled; run `runspan attach --table 'app.runs'`, which enables them; capture was last seen working at 2027-01-15T08:00:05.000Z, 1m 15s ago
        runspan is detached: no transition is journalled; run `runspan attach`; capture was last seen working at 2027-01-15T08:00:05.000Z, 1m 15s ago
        ");
        // One is gone: that is not yet all.
        assert_eq!(check(&mut history, 85, &[CaptureProblem::Detached]), "");
        insta::assert_snapshot!(check(&mut history, 90, &[]), @"capture works again: transitions between 2027-01-15T08:00:05.000Z and 2027-01-15T08:01:31.000Z were not journalled unless reconciliation recovers them from the table; runs that began and ended in that time have no span");
        assert_eq!(check(&mut history, 95, &[]), "");
        // The same again is new again.
        assert!(
            check(&mut history, 100, &[CaptureProblem::Detached])
                .contains("at 2027-01-15T08:01:35.000Z, 5s ago")
        );
    }

    #[test]
    fn a_relay_that_starts_in_a_gap_knows_only_its_end() {
        let mut history = History::default();
        insta::assert_snapshot!(check(&mut history, 0, &[CaptureProblem::Detached]), @"runspan is detached: no transition is journalled; run `runspan attach`; capture has not been seen working since this relay started, at 2027-01-15T08:00:00.000Z");
        assert_eq!(history.capture(), Capture { problems: vec![CaptureProblem::Detached], since: None });
        insta::assert_snapshot!(check(&mut history, 5, &[]), @"capture works again: transitions between an unknown time before 2027-01-15T08:00:00.000Z and 2027-01-15T08:00:06.000Z were not journalled unless reconciliation recovers them from the table; runs that began and ended in that time have no span");
        assert_eq!(history.capture(), Capture { problems: vec![], since: Some(at(6)) });
        check(&mut history, 10, &[]);
        assert_eq!(history.capture().since, Some(at(6)));
        check(&mut history, 15, &[CaptureProblem::Detached]);
        assert_eq!(history.capture().since, Some(at(10)));
    }

    #[test]
    fn a_failed_reconciliation_alone_reports_no_loss() {
        let hidden = CaptureProblem::RowSecurity { table: "app.runs".to_owned(), owner: "app".to_owned() };
        let mut history = History::default();
        check(&mut history, 0, &[]);
        assert!(
            check(&mut history, 5, std::slice::from_ref(&hidden)).starts_with("app.runs forces row security")
        );
        insta::assert_snapshot!(check(&mut history, 10, &[]), @"the table can be reconciled again: between 2027-01-15T08:00:00.000Z and 2027-01-15T08:00:11.000Z it could not, and transitions that the triggers missed then are recovered only now");
        // Both kinds in one gap: something is lost.
        check(&mut history, 15, &[CaptureProblem::Detached]);
        check(&mut history, 20, &[hidden]);
        assert!(check(&mut history, 25, &[]).starts_with("capture works again"));
    }

    #[test]
    fn problems_found_before_the_lease_was_taken_are_logged_when_it_is() {
        let mut history = History::default();
        history.found(vec![], at(0), at(0));
        history.found(vec![CaptureProblem::Detached], at(5), at(5));
        history.found(vec![CaptureProblem::Detached], at(10), at(10));
        let said = log(&mut history, 12);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("08:00:00.000Z, 12s ago"), "{said}");
        // While nobody held the lease it ended, and began again.
        history.found(vec![], at(15), at(15));
        history.found(vec![CaptureProblem::Detached], at(20), at(20));
        let said = log(&mut history, 20);
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.starts_with("capture works again"), "{said}");
        assert!(said.contains("08:00:15.000Z, 5s ago"), "{said}");
    }
}
