//! The workflows of a bot that takes issues to merged pull requests: what most teams start with.

use super::registry::{Accepts, Registry, RegistryError, Workflow};
use super::steps::Steps;

/// The most rounds of review and resolve in [`registry`]'s composite workflow.
pub const ROUNDS: usize = 3;

/// `triage`, `plan`, `implement`, `review`, `resolve`, and their composite `ship`, which repeats review and resolve until
/// a round succeeds. The label of each is `bot:` and its name. `handled` returns the workflow of each of the five names,
/// with its handler.
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
