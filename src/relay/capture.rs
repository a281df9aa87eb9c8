//! Whether transitions reach the journal: what the looks at the database found, and what the log has to say of it.
//!
//! Whoever disables the triggers, or puts another table in the place of theirs, gets no error, and the journal only
//! falls silent. Every relay looks; the one that holds the lease logs, once for each change.

use std::fmt;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::Mutex;

use super::monitor::{Capture, Monitor};
use crate::store::{CaptureProblem, Store};

/// What a relay has found so far.
#[derive(Default)]
pub(super) struct Watch {
    history: Mutex<History>,
}

impl Watch {
    /// Asks the database, and logs what is new, if it is this relay's turn. An error of the database is no finding: it
    /// says nothing of the triggers.
    pub(super) async fn look(&self, store: &dyn Store, monitor: &Monitor) {
        // Two looks at once could be taken down in the wrong order.
        let mut history = self.history.lock().await;
        let asked = SystemTime::now();
        match store.capture().await {
            Ok(problems) => {
                history.found(problems, asked, SystemTime::now());
                monitor.update(|state| state.capture = Some(history.capture()));
            }
            Err(error) => {
                tracing::debug!("cannot see whether transitions reach the journal: {error}");
                monitor.update(|state| state.capture = None);
                return;
            }
        }
        let snapshot = monitor.snapshot();
        if snapshot.lease_epoch.is_some() {
            for news in history.news(SystemTime::now()) {
                match news {
                    News::Broken { .. } => tracing::error!("{news}"),
                    News::Works { .. } => tracing::warn!("{news}"),
                }
            }
        } else if snapshot.stands_by {
            // Whoever holds the lease has said so.
            history.over.clear();
        }
    }
}

/// What was found, look by look. Pure.
#[derive(Debug, Default)]
struct History {
    /// When the first look began.
    began: Option<SystemTime>,
    problems: Vec<CaptureProblem>,
    /// When the last look that found no problem began: until then all was journalled.
    worked_at: Option<SystemTime>,
    /// When the first of the looks that have found no problem since ended.
    works_since: Option<SystemTime>,
    /// The gap that lasts.
    gap: Option<Gap>,
    /// Those that have ended, each with its end, and have not been logged.
    over: Vec<(Gap, SystemTime)>,
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
    /// Before this moment, when the relay first looked.
    Before(SystemTime),
}

/// What is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Broken { problem: CaptureProblem, start: Start, now: SystemTime },
    Works { gap: Gap, end: SystemTime },
}

impl History {
    /// Takes down what a look found that lasted from `asked` to `answered`.
    fn found(&mut self, problems: Vec<CaptureProblem>, asked: SystemTime, answered: SystemTime) {
        let began = *self.began.get_or_insert(asked);
        if problems.is_empty() {
            self.over.extend(self.gap.take().map(|gap| (gap, answered)));
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
        let mut news: Vec<News> = self.over.drain(..).map(works).collect();
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
                 recovers them from the table; runs that began and ended in between have no span",
                utc(*end)
            ),
            Self::Works { gap: Gap { start, loses_transitions: false }, end } => write!(
                f,
                "the table can be compared with the journal again: between {start} and {} it could not, and what the \
                 triggers missed then is recovered only now",
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

    /// A look at `seconds` that takes one second, and what is logged of it.
    fn look(history: &mut History, seconds: u64, problems: &[CaptureProblem]) -> String {
        history.found(problems.to_vec(), at(seconds), at(seconds + 1));
        log(history, seconds)
    }

    fn log(history: &mut History, seconds: u64) -> String {
        history.news(at(seconds)).into_iter().map(|news| news.to_string() + "\n").collect()
    }

    #[test]
    fn each_problem_is_logged_when_it_appears_and_the_gap_when_it_ends() {
        let mut history = History::default();
        assert_eq!(look(&mut history, 0, &[]), "");
        assert_eq!(look(&mut history, 5, &[]), "");
        insta::assert_snapshot!(look(&mut history, 10, &[disabled("runspan_changed")]), @"runspan's triggers on app.runs are disabled (runspan_changed): its transitions are not journalled; run `runspan attach --table 'app.runs'`, which enables them; capture was last seen working at 2027-01-15T08:00:05.000Z, 5s ago");
        assert_eq!(look(&mut history, 15, &[disabled("runspan_changed")]), "");
        // It changes, and another joins it.
        insta::assert_snapshot!(look(&mut history, 80, &[disabled("runspan_changed, runspan_inserted"), CaptureProblem::Detached]), @r"
        runspan's triggers on app.runs are disabled (runspan_changed, runspan_inserted): its transitions are not journalled; run `runspan attach --table 'app.runs'`, which enables them; capture was last seen working at 2027-01-15T08:00:05.000Z, 1m 15s ago
        runspan is detached: no transition is journalled; run `runspan attach`; capture was last seen working at 2027-01-15T08:00:05.000Z, 1m 15s ago
        ");
        // One is gone: that is not yet all.
        assert_eq!(look(&mut history, 85, &[CaptureProblem::Detached]), "");
        insta::assert_snapshot!(look(&mut history, 90, &[]), @"capture works again: transitions between 2027-01-15T08:00:05.000Z and 2027-01-15T08:01:31.000Z were not journalled unless reconciliation recovers them from the table; runs that began and ended in between have no span");
        assert_eq!(look(&mut history, 95, &[]), "");
        // The same again is new again.
        assert!(
            look(&mut history, 100, &[CaptureProblem::Detached])
                .contains("at 2027-01-15T08:01:35.000Z, 5s ago")
        );
    }

    #[test]
    fn a_relay_that_starts_in_a_gap_knows_its_end_alone() {
        let mut history = History::default();
        insta::assert_snapshot!(look(&mut history, 0, &[CaptureProblem::Detached]), @"runspan is detached: no transition is journalled; run `runspan attach`; capture has not been seen working since this relay started, at 2027-01-15T08:00:00.000Z");
        assert_eq!(history.capture(), Capture { problems: vec![CaptureProblem::Detached], since: None });
        insta::assert_snapshot!(look(&mut history, 5, &[]), @"capture works again: transitions between an unknown time before 2027-01-15T08:00:00.000Z and 2027-01-15T08:00:06.000Z were not journalled unless reconciliation recovers them from the table; runs that began and ended in between have no span");
        assert_eq!(history.capture(), Capture { problems: vec![], since: Some(at(6)) });
        look(&mut history, 10, &[]);
        assert_eq!(history.capture().since, Some(at(6)));
        look(&mut history, 15, &[CaptureProblem::Detached]);
        assert_eq!(history.capture().since, Some(at(10)));
    }

    #[test]
    fn where_only_the_comparison_fails_nothing_is_said_to_be_lost() {
        let hidden = CaptureProblem::RowSecurity { table: "app.runs".to_owned(), owner: "app".to_owned() };
        let mut history = History::default();
        look(&mut history, 0, &[]);
        assert!(
            look(&mut history, 5, std::slice::from_ref(&hidden)).starts_with("app.runs forces row security")
        );
        insta::assert_snapshot!(look(&mut history, 10, &[]), @"the table can be compared with the journal again: between 2027-01-15T08:00:00.000Z and 2027-01-15T08:00:11.000Z it could not, and what the triggers missed then is recovered only now");
        // Both kinds in one gap: something is lost.
        look(&mut history, 15, &[CaptureProblem::Detached]);
        look(&mut history, 20, &[hidden]);
        assert!(look(&mut history, 25, &[]).starts_with("capture works again"));
    }

    #[test]
    fn what_was_found_before_the_lease_was_taken_is_logged_then() {
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
