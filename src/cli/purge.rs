//! The report of what `runspan detach --purge` would discard.

use std::fmt;

use super::{Failure, counted};
use runspan::DatabaseUrl;
use runspan::store::PurgeLoss;

/// What a purge of a database would remove.
pub(super) struct Purge {
    loss: PurgeLoss,
    is_sqlite: bool,
}

impl Purge {
    pub(super) const fn new(loss: PurgeLoss, url: &DatabaseUrl) -> Self {
        Self { loss, is_sqlite: matches!(url, DatabaseUrl::Sqlite(_)) }
    }

    /// That nobody needs to be asked: nothing waits, and no statement of the application fails afterwards.
    pub(super) fn may_go_on(&self) -> Result<(), Failure> {
        let waits = self.waits();
        let mut would = Vec::new();
        if !waits.is_empty() {
            would.push(format!("lose {}", list(&waits)));
        }
        would.extend(self.calls().map(|calls| format!("make {calls} fail")));
        if would.is_empty() {
            return Ok(());
        }
        let first = if waits.is_empty() {
            "remove them from the application first"
        } else {
            "first send pending data (`runspan relay --until-idle`, after the runs in flight have ended)"
        };
        Err(Failure::failed(format!(
            "nothing was changed: the purge would {}; {first}, or continue with --yes",
            would.join(", and ")
        )))
    }

    /// Counts of pending data.
    fn waits(&self) -> Vec<String> {
        let PurgeLoss { entries, waiting, dead, open_runs, .. } = self.loss;
        let counts = [
            (entries, counted(entries, "unprojected entry")),
            (waiting, counted(waiting, "waiting request")),
            (dead, counted(dead, "dead request")),
            (open_runs, format!("{} in flight", counted(open_runs, "run"))),
        ];
        counts.into_iter().filter(|(count, _)| *count > 0).map(|(_, counted)| counted).collect()
    }

    /// The calls of the application that fail afterwards, and whose they are.
    fn calls(&self) -> Option<String> {
        let calls = if self.is_sqlite {
            "inserts into runspan_dispatch_refused"
        } else {
            "calls of runspan.dispatch_refused(…)"
        };
        match self.loss.callers.as_deref() {
            Some([]) => None,
            Some(roles) => Some(format!("{calls} by {}", list(roles))),
            None => Some(format!("{calls} by any writer")),
        }
    }
}

impl fmt::Display for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PurgeLoss { entries, waiting, dead, set_aside, open_runs, ref roles, .. } = self.loss;
        let lost = [
            (entries, "entry", "not projected"),
            (waiting, "request", "not sent yet"),
            (dead, "request", "that no receiver accepted"),
            (set_aside, "entry", "that could not be parsed"),
            (open_runs, "run", "in flight: no span will be sent"),
        ];
        if lost.iter().all(|(count, ..)| *count == 0) {
            writeln!(f, "the purge discards nothing: no entry, request or run in flight is left")?;
        } else {
            writeln!(f, "the purge discards permanently:")?;
        }
        for (count, thing, what) in lost.into_iter().filter(|(count, ..)| *count > 0) {
            writeln!(f, "  {} {what}", counted(count, thing))?;
        }
        if !roles.is_empty() {
            writeln!(f, "roles that lose their privileges on the schema runspan: {}", list(roles))?;
        }
        self.calls().map_or(Ok(()), |calls| writeln!(f, "calls that fail afterwards: {calls}"))
    }
}

/// `a`, `a and b`, `a, b and c`.
fn list(things: &[String]) -> String {
    match things {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(loss: PurgeLoss, url: &str) -> String {
        let purge = Purge::new(loss, &url.parse().unwrap());
        let refused = purge.may_go_on().map_or_else(|refused| refused.line, |()| "goes on".to_owned());
        format!("{purge}{refused}")
    }

    const POSTGRES: &str = "postgres://localhost/app";
    const SQLITE: &str = "sqlite:app.db";

    #[test]
    fn all_that_is_lost_is_said_and_needs_a_yes() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let loss = PurgeLoss {
            entries: 102,
            waiting: 1,
            dead: 2,
            set_aside: 1,
            open_runs: 4,
            roles: names(&["app", "grafana", "relay"]),
            callers: Some(names(&["app", "bot"])),
        };
        insta::assert_snapshot!(said(loss, POSTGRES), @r"
        the purge discards permanently:
          102 entries not projected
          1 request not sent yet
          2 requests that no receiver accepted
          1 entry that could not be parsed
          4 runs in flight: no span will be sent
        roles that lose their privileges on the schema runspan: app, grafana and relay
        calls that fail afterwards: calls of runspan.dispatch_refused(…) by app and bot
        nothing was changed: the purge would lose 102 unprojected entries, 1 waiting request, 2 dead requests and 4 runs in flight, and make calls of runspan.dispatch_refused(…) by app and bot fail; first send pending data (`runspan relay --until-idle`, after the runs in flight have ended), or continue with --yes
        ");
        let loss = PurgeLoss { open_runs: 1, callers: Some(Vec::new()), ..PurgeLoss::default() };
        insta::assert_snapshot!(said(loss, POSTGRES), @r"
        the purge discards permanently:
          1 run in flight: no span will be sent
        nothing was changed: the purge would lose 1 run in flight; first send pending data (`runspan relay --until-idle`, after the runs in flight have ended), or continue with --yes
        ");
        let loss = PurgeLoss { waiting: 3, callers: None, ..PurgeLoss::default() };
        insta::assert_snapshot!(said(loss, SQLITE), @r"
        the purge discards permanently:
          3 requests not sent yet
        calls that fail afterwards: inserts into runspan_dispatch_refused by any writer
        nothing was changed: the purge would lose 3 waiting requests, and make inserts into runspan_dispatch_refused by any writer fail; first send pending data (`runspan relay --until-idle`, after the runs in flight have ended), or continue with --yes
        ");
    }

    #[test]
    fn a_call_that_would_fail_needs_a_yes_by_itself() {
        let loss = PurgeLoss { callers: Some(vec!["app".to_owned()]), ..PurgeLoss::default() };
        insta::assert_snapshot!(said(loss, POSTGRES), @r"
        the purge discards nothing: no entry, request or run in flight is left
        calls that fail afterwards: calls of runspan.dispatch_refused(…) by app
        nothing was changed: the purge would make calls of runspan.dispatch_refused(…) by app fail; remove them from the application first, or continue with --yes
        ");
        insta::assert_snapshot!(said(PurgeLoss { callers: None, ..PurgeLoss::default() }, SQLITE), @r"
        the purge discards nothing: no entry, request or run in flight is left
        calls that fail afterwards: inserts into runspan_dispatch_refused by any writer
        nothing was changed: the purge would make inserts into runspan_dispatch_refused by any writer fail; remove them from the application first, or continue with --yes
        ");
    }

    #[test]
    fn what_loses_nothing_goes_on() {
        let roles = vec!["relay".to_owned()];
        let loss = PurgeLoss { roles, set_aside: 2, callers: Some(Vec::new()), ..PurgeLoss::default() };
        insta::assert_snapshot!(said(loss, POSTGRES), @r"
        the purge discards permanently:
          2 entries that could not be parsed
        roles that lose their privileges on the schema runspan: relay
        goes on
        ");
        let loss = PurgeLoss { callers: Some(Vec::new()), ..PurgeLoss::default() };
        insta::assert_snapshot!(said(loss, POSTGRES), @r"
        the purge discards nothing: no entry, request or run in flight is left
        goes on
        ");
    }
}
