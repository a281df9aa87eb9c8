//! Logs the projection's warnings: once per workflow or status, as each run of a workflow has the same fault.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::projection::Warning;
use crate::run::Timestamp;

/// How many warnings are remembered. Names that an application makes up must not fill memory or log.
const MAX_WARNINGS: usize = 200;

/// The warnings that this process has logged.
#[derive(Default)]
pub(super) struct Warned(Mutex<HashSet<String>>);

impl Warned {
    /// Logs those that are new.
    pub(super) fn log(&self, warnings: &[Warning]) {
        for warning in warnings.iter().filter(|warning| self.is_new(warning)) {
            match warning {
                Warning::UnknownStatus { status, run, workflow } => tracing::warn!(
                    status,
                    run_id = %run,
                    workflow_name = workflow,
                    "runs have a status that runspan does not know: a run that has begun stays as it was, others have yet \
                     to begin"
                ),
                Warning::CreatedAt { workflow, run, created_at, at } => tracing::warn!(
                    created_at = created_at.as_ref().map(Timestamp::to_string),
                    journalled_at = %at,
                    run_id = %run,
                    workflow_name = workflow,
                    "created_at of this workflow's runs is missing, in the future or too long ago: such runs begin when \
                     they are journalled"
                ),
            }
        }
    }

    fn is_new(&self, warning: &Warning) -> bool {
        let key = match warning {
            Warning::UnknownStatus { status, .. } => format!("status {status}"),
            Warning::CreatedAt { workflow, .. } => format!("created_at {workflow}"),
        };
        // A set that a panic left behind is whole: an insert has no middle.
        let mut warned = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        warned.len() < MAX_WARNINGS && warned.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunId;

    #[test]
    fn each_workflow_and_word_is_new_once() {
        let warned = Warned::default();
        let (run, at) = (RunId::generate(), Timestamp::from_micros(0));
        let created_at =
            |workflow: &str| Warning::CreatedAt { workflow: workflow.into(), run, created_at: None, at };
        let status =
            |status: &str| Warning::UnknownStatus { status: status.into(), run, workflow: "plan".into() };
        assert!(warned.is_new(&created_at("plan")));
        assert!(!warned.is_new(&created_at("plan")));
        assert!(warned.is_new(&created_at("ship")));
        assert!(warned.is_new(&status("plan")));
        assert!(!warned.is_new(&status("plan")));
        for n in 0..2 * MAX_WARNINGS {
            warned.is_new(&status(&n.to_string()));
        }
        assert!(!warned.is_new(&status("one too many")));
    }
}
