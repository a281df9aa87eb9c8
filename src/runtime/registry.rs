//! The registry of workflows: their names, labels, conditions and handlers.
//!
//! It is validated as a whole at start, so that a wrong step or label is not first noticed by a run.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::handler::{BoxError, Context, Outcome};
use super::steps::Steps;
use crate::run::TargetKind;

/// The kinds of targets that a workflow accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Issues.
    Issue,
    /// Pull requests.
    Pr,
    /// Either.
    Both,
}

impl Accepts {
    /// Whether it includes this kind of target.
    pub fn takes(self, kind: TargetKind) -> bool {
        match self {
            Self::Issue => kind == TargetKind::Issue,
            Self::Pr => kind == TargetKind::Pr,
            Self::Both => true,
        }
    }
}

/// How runs of a workflow are executed.
#[derive(Clone)]
pub(super) enum Work {
    Handler(Arc<dyn Fn(Context) -> BoxFuture<'static, Result<Outcome, BoxError>> + Send + Sync>),
    Steps(Steps),
}

/// A workflow.
#[derive(Clone)]
pub struct Workflow {
    pub(super) name: String,
    pub(super) label: Option<String>,
    pub(super) accepts: Accepts,
    pub(super) requires: Option<String>,
    pub(super) timeout: Option<Duration>,
    pub(super) work: Work,
}

impl Workflow {
    /// A workflow whose runs are executed by `handler`.
    ///
    /// ```
    /// use runspan::runtime::{Accepts, Outcome, Workflow};
    ///
    /// let triage = Workflow::new("triage", |context| async move {
    ///     tracing::info!("looking at {}", context.run().target);
    ///     Ok(Outcome::Succeeded)
    /// })
    /// .label("bot:triage")
    /// .accepts(Accepts::Issue);
    /// ```
    pub fn new<F, R>(name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Outcome, BoxError>> + Send + 'static,
    {
        Self::of(name.into(), Work::Handler(Arc::new(move |context| Box::pin(handler(context)))))
    }

    /// A workflow whose runs consist of runs of other workflows.
    pub fn composite(name: impl Into<String>, steps: Steps) -> Self {
        Self::of(name.into(), Work::Steps(steps))
    }

    fn of(name: String, work: Work) -> Self {
        Self { name, label: None, accepts: Accepts::Both, requires: None, timeout: None, work }
    }

    /// The label that requests it.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: Some(label.into()), ..self }
    }

    /// The targets it accepts (default: both kinds). Checked when a delivery is dispatched, not for a step or a hand-off.
    #[must_use]
    pub fn accepts(self, accepts: Accepts) -> Self {
        Self { accepts, ..self }
    }

    /// The workflow that must have succeeded on the same target before. Checked like [`accepts`](Self::accepts).
    #[must_use]
    pub fn requires(self, workflow: impl Into<String>) -> Self {
        Self { requires: Some(workflow.into()), ..self }
    }

    /// How long its handler may take (default: no limit). Not for a composite workflow: set it on its steps.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }
}

impl fmt::Debug for Workflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workflow").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a set of workflows is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two workflows have the same name.
    #[error("there are two workflows named {0:?}")]
    DuplicateName(String),
    /// Two workflows have the same label.
    #[error("the label {label:?} is used by both {first:?} and {second:?}")]
    DuplicateLabel {
        /// The label.
        label: String,
        /// A workflow with this label.
        first: String,
        /// Another.
        second: String,
    },
    /// A step is not a registered workflow.
    #[error("{workflow:?} has an unknown workflow as a step: {step:?}")]
    UnknownStep {
        /// The composite workflow.
        workflow: String,
        /// Its step.
        step: String,
    },
    /// A composite workflow is empty.
    #[error("{0:?} has no steps")]
    NoSteps(String),
    /// A composite workflow contains itself: its run in flight would refuse the step.
    #[error("{0:?} is a step of itself")]
    Cycle(String),
    /// A composite workflow has a timeout, which applies to handlers only.
    #[error("{0:?} has a timeout but no handler: set the timeout on its steps")]
    TimeoutWithoutHandler(String),
    /// A required workflow is not registered.
    #[error("{workflow:?} requires an unknown workflow: {prior:?}")]
    UnknownPrior {
        /// The workflow.
        workflow: String,
        /// What it requires.
        prior: String,
    },
}

/// The workflows, by name and by label.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    workflows: BTreeMap<String, Workflow>,
    labels: BTreeMap<String, String>,
}

impl Registry {
    /// A registry of `workflows`, if they are consistent.
    pub fn new(workflows: impl IntoIterator<Item = Workflow>) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for workflow in workflows {
            if let Some(label) = &workflow.label
                && let Some(first) = registry.labels.insert(label.clone(), workflow.name.clone())
            {
                let (label, second) = (label.clone(), workflow.name);
                return Err(RegistryError::DuplicateLabel { label, first, second });
            }
            if let Some(other) = registry.workflows.insert(workflow.name.clone(), workflow) {
                return Err(RegistryError::DuplicateName(other.name));
            }
        }
        registry.workflows.values().try_for_each(|workflow| registry.check(workflow))?;
        Ok(registry)
    }

    fn check(&self, workflow: &Workflow) -> Result<(), RegistryError> {
        let name = workflow.name.clone();
        if let Some(prior) = workflow.requires.as_ref().filter(|prior| self.get(prior).is_none()) {
            return Err(RegistryError::UnknownPrior { workflow: name, prior: prior.clone() });
        }
        let steps = workflow.steps();
        if matches!(workflow.work, Work::Steps(_)) && steps.is_empty() {
            return Err(RegistryError::NoSteps(name));
        }
        if matches!(workflow.work, Work::Steps(_)) && workflow.timeout.is_some() {
            return Err(RegistryError::TimeoutWithoutHandler(name));
        }
        if let Some(step) = steps.iter().find(|step| self.get(step).is_none()) {
            return Err(RegistryError::UnknownStep { workflow: name, step: (*step).to_owned() });
        }
        // All workflows below it, each once. A cycle further down is found from one of its own members.
        let mut below = steps;
        let mut seen = HashSet::new();
        while let Some(step) = below.pop() {
            if step == workflow.name {
                return Err(RegistryError::Cycle(name));
            }
            if seen.insert(step) {
                below.extend(self.get(step).map(Workflow::steps).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// The workflow with this name.
    pub fn get(&self, name: &str) -> Option<&Workflow> {
        self.workflows.get(name)
    }

    /// The workflow with this label.
    pub fn by_label(&self, label: &str) -> Option<&Workflow> {
        self.labels.get(label).and_then(|name| self.get(name))
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.workflows.keys().map(String::as_str)
    }

    /// All labels, sorted.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.labels.keys().map(String::as_str)
    }
}

impl Workflow {
    fn steps(&self) -> Vec<&str> {
        match &self.work {
            Work::Handler(_) => Vec::new(),
            Work::Steps(steps) => steps.workflows().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workflow(name: &str) -> Workflow {
        Workflow::new(name, |_| async { Ok(Outcome::Succeeded) })
    }

    #[test]
    fn rejects_inconsistent_workflows() {
        let error = |workflows: Vec<Workflow>| Registry::new(workflows).unwrap_err().to_string();
        let composite = |name: &str, steps: &[&str]| Workflow::composite(name, Steps::new(steps.to_vec()));
        assert_eq!(error(vec![workflow("a"), workflow("a")]), r#"there are two workflows named "a""#);
        assert_eq!(
            error(vec![workflow("a").label("x"), workflow("b").label("x")]),
            r#"the label "x" is used by both "a" and "b""#
        );
        assert_eq!(
            error(vec![workflow("a"), composite("c", &["a", "b"])]),
            r#""c" has an unknown workflow as a step: "b""#
        );
        assert_eq!(error(vec![composite("c", &[])]), r#""c" has no steps"#);
        assert_eq!(error(vec![workflow("a").requires("b")]), r#""a" requires an unknown workflow: "b""#);
        assert_eq!(error(vec![composite("c", &["c"])]), r#""c" is a step of itself"#);
        assert_eq!(
            error(vec![workflow("a"), composite("c", &["a"]).timeout(Duration::ZERO)]),
            r#""c" has a timeout but no handler: set the timeout on its steps"#
        );
        let nested = vec![composite("c", &["d"]), composite("d", &["a", "c"]), workflow("a")];
        assert_eq!(error(nested), r#""c" is a step of itself"#);
    }
}
