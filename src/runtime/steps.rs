//! The steps of a composite workflow, and what follows each of them.
//!
//! Which step is next depends only on the index and the end of the last one, so any process can advance any chain.

use super::End;

/// The steps of a composite workflow: some once, then some in rounds until a round succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    once: Vec<String>,
    rounds: Vec<String>,
    at_most: usize,
}

/// What follows a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A step: its index and its workflow.
    Step(usize, &'a str),
    /// The end of the composite run.
    End(End),
}

impl Steps {
    /// These workflows, in sequence.
    ///
    /// ```
    /// use runspan::runtime::{End, Next, Steps};
    ///
    /// let ship = Steps::new(["plan", "implement"]).rounds(["review", "resolve"], 2);
    /// let work_remains = End::Incomplete { reason: "1 comment is open".to_owned() };
    /// assert_eq!(ship.after(1, &End::Succeeded), Next::Step(2, "review"));
    /// assert_eq!(ship.after(3, &work_remains), Next::Step(4, "review"));
    /// assert_eq!(ship.after(5, &End::Succeeded), Next::End(End::Succeeded));
    /// ```
    #[must_use]
    pub fn new<S: Into<String>>(once: impl IntoIterator<Item = S>) -> Self {
        Self { once: once.into_iter().map(Into::into).collect(), rounds: Vec::new(), at_most: 0 }
    }

    /// Then these, repeated until all steps of a round have succeeded, for at most `at_most` rounds.
    #[must_use]
    pub fn rounds<S: Into<String>>(self, steps: impl IntoIterator<Item = S>, at_most: usize) -> Self {
        Self { rounds: steps.into_iter().map(Into::into).collect(), at_most, ..self }
    }

    /// Each workflow that is a step.
    pub fn workflows(&self) -> impl Iterator<Item = &str> {
        self.once.iter().chain(&self.rounds).map(String::as_str)
    }

    /// The step at `index`. Indexes continue through the rounds: with two steps per round, each round starts two higher.
    fn workflow(&self, index: usize) -> Option<&str> {
        let of_rounds = || {
            let index = index - self.once.len();
            (index < self.rounds.len().saturating_mul(self.at_most))
                .then(|| self.rounds[index % self.rounds.len()].as_str())
        };
        self.once.get(index).map_or_else(of_rounds, |step| Some(step))
    }

    /// The first step of a composite run, or its end if there are no steps.
    pub fn first(&self) -> Next<'_> {
        self.workflow(0).map_or(Next::End(End::Succeeded), |step| Next::Step(0, step))
    }

    /// What follows the step at `index`, given how that step ended.
    pub fn after(&self, index: usize, end: &End) -> Next<'_> {
        let step = self.workflow(index).unwrap_or("unknown step");
        let round = index.checked_sub(self.once.len()).filter(|_| !self.rounds.is_empty());
        let round = round.map(|index| index / self.rounds.len());
        let next = |index| self.workflow(index).map(|step| Next::Step(index, step));
        match (end, round) {
            (End::Failed { reason }, _) => {
                Next::End(End::Failed { reason: format!("{step} failed: {reason}") })
            }
            (End::Incomplete { reason }, None) => {
                Next::End(End::Incomplete { reason: format!("{step} is incomplete: {reason}") })
            }
            (End::Incomplete { reason }, Some(round)) => {
                let rounds = round + 1;
                next(self.once.len() + rounds * self.rounds.len()).unwrap_or_else(|| {
                    let reason = format!("{step} is incomplete after {rounds} rounds: {reason}");
                    Next::End(End::Incomplete { reason })
                })
            }
            (End::Succeeded, Some(round))
                if index + 1 == self.once.len() + (round + 1) * self.rounds.len() =>
            {
                Next::End(End::Succeeded)
            }
            (End::Succeeded, _) => next(index + 1).unwrap_or(Next::End(End::Succeeded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_after_each_step_and_end() {
        let steps = Steps::new(["triage", "plan"]).rounds(["review", "resolve"], 2);
        let ends = [
            End::Succeeded,
            End::Incomplete { reason: "more".to_owned() },
            End::Failed { reason: "no".to_owned() },
        ];
        let mut table = String::new();
        for index in 0..6 {
            for end in &ends {
                let step = steps.workflow(index).unwrap();
                let next = match steps.after(index, end) {
                    Next::Step(index, step) => format!("{index} {step}"),
                    Next::End(end) => format!("{end:?}"),
                };
                table += &format!("{index} {step:<8} {:<11} {next}\n", end.outcome());
            }
        }
        insta::assert_snapshot!(table, @r#"
        0 triage   succeeded   1 plan
        0 triage   incomplete  Incomplete { reason: "triage is incomplete: more" }
        0 triage   failed      Failed { reason: "triage failed: no" }
        1 plan     succeeded   2 review
        1 plan     incomplete  Incomplete { reason: "plan is incomplete: more" }
        1 plan     failed      Failed { reason: "plan failed: no" }
        2 review   succeeded   3 resolve
        2 review   incomplete  4 review
        2 review   failed      Failed { reason: "review failed: no" }
        3 resolve  succeeded   Succeeded
        3 resolve  incomplete  4 review
        3 resolve  failed      Failed { reason: "resolve failed: no" }
        4 review   succeeded   5 resolve
        4 review   incomplete  Incomplete { reason: "review is incomplete after 2 rounds: more" }
        4 review   failed      Failed { reason: "review failed: no" }
        5 resolve  succeeded   Succeeded
        5 resolve  incomplete  Incomplete { reason: "resolve is incomplete after 2 rounds: more" }
        5 resolve  failed      Failed { reason: "resolve failed: no" }
        "#);
        assert_eq!(steps.workflow(6), None);
    }

    #[test]
    fn rounds_may_be_unlimited() {
        let steps = Steps::new(["plan"]).rounds(["review", "resolve"], usize::MAX);
        assert_eq!(steps.after(0, &End::Succeeded), Next::Step(1, "review"));
    }

    #[test]
    fn without_rounds_the_run_ends_after_the_last_step() {
        let steps = Steps::new(["build"]);
        assert_eq!(steps.first(), Next::Step(0, "build"));
        assert_eq!(steps.after(0, &End::Succeeded), Next::End(End::Succeeded));
        assert_eq!(Steps::new(Vec::<String>::new()).first(), Next::End(End::Succeeded));
    }
}
