//! The workflows of a bot that takes issues to merged pull requests: what most teams begin with.

use super::registry::{Accepts, Registry, RegistryError, Workflow};
use super::steps::Steps;

/// How often review and resolve take turns in [`registry`]'s composite workflow.
pub const ROUNDS: usize = 3;

/// `triage`, `plan`, `implement`, `review` and `resolve`, and `ship`, which is all of them, with review and resolve
/// in rounds until one succeeds. Labels are the names after `bot:`. `handled` gives each of the five, by its name,
/// its handler.
pub fn registry(handled: impl Fn(&'static str) -> Workflow) -> Result<Registry, RegistryError> {
    let workflow = |name| handled(name).label(format!("bot:{name}"));
    Registry::new([
        workflow("triage").accepts(Accepts::Issue),
        workflow("plan").accepts(Accepts::Issue).requires("triage"),
        workflow("implement").accepts(Accepts::Issue).requires("plan"),
        workflow("review"),
        workflow("resolve").requires("review"),
        Workflow::composite(
            "ship",
            Steps::new(["triage", "plan", "implement"]).rounds(["review", "resolve"], ROUNDS),
        )
        .label("bot:ship")
        .accepts(Accepts::Issue),
    ])
}
