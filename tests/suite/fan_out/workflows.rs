//! What the runs of the fan-out do: it depends on the issue's number.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runspan::runtime::{Accepts, BoxError, Context, Outcome, Registry, Steps, Workflow};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::Between;

/// Handlers wait at it until their issue's number is let through.
#[derive(Default)]
pub(super) struct Gate {
    gates: Mutex<HashMap<i64, Arc<Semaphore>>>,
    waiting: Mutex<HashSet<i64>>,
}

impl Gate {
    fn of(&self, number: i64) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap();
        Arc::clone(gates.entry(number).or_insert_with(|| Arc::new(Semaphore::new(0))))
    }

    pub(super) fn open(&self, number: i64) {
        self.of(number).close();
    }

    /// Whether a handler waits, and has not been dropped.
    pub(super) fn waiting(&self, number: i64) -> bool {
        self.waiting.lock().unwrap().contains(&number)
    }

    async fn pass(&self, number: i64) {
        struct Waits<'a>(&'a Gate, i64);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.waiting.lock().unwrap().remove(&self.1);
            }
        }
        self.waiting.lock().unwrap().insert(number);
        let _waits = Waits(self, number);
        // Closed is open.
        let _ = self.of(number).acquire().await;
    }
}

pub(super) fn registry(gate: &Arc<Gate>, between: &Arc<Between>) -> Registry {
    let workflow = |name: &'static str| {
        let (gate, between) = (Arc::clone(gate), Arc::clone(between));
        let handler = move |context: Context| {
            let (gate, between) = (Arc::clone(&gate), Arc::clone(&between));
            // A span of the handler's own.
            async move { handle(name, &context, &gate, &between).await }
                .instrument(tracing::info_span!("work"))
        };
        Workflow::new(name, handler).label(format!("bot:{name}"))
    };
    let ship = Steps::new(["triage", "plan"]).rounds(["review", "resolve"], 2);
    Registry::new([
        workflow("triage").accepts(Accepts::Issue),
        workflow("plan").requires("triage"),
        workflow("review"),
        workflow("resolve"),
        workflow("wait").timeout(Duration::from_millis(20)),
        workflow("route"),
        Workflow::composite("ship", ship).label("bot:ship"),
    ])
    .unwrap()
}

async fn handle(
    workflow: &str,
    context: &Context,
    gate: &Gate,
    between: &Between,
) -> Result<Outcome, BoxError> {
    let step = context.run().parent.map(|parent| parent.step_index);
    Ok(match (workflow, context.run().target.number) {
        ("triage", 2) => Outcome::Failed { reason: "push https://ci:hunter2@github.com: 403".to_owned() },
        ("triage", 3) => Outcome::Incomplete { reason: "2 questions have no answer".to_owned() },
        ("triage", 4) => panic!("line 5 of 3"),
        ("triage", 5) => return Err("no such label".into()),
        ("wait", _) => std::future::pending().await,
        ("triage", number @ (7 | 16 | 18)) | ("plan", number @ 12) => {
            gate.pass(number).await;
            Outcome::Succeeded
        }
        ("plan", 10) => Outcome::Failed { reason: "no plan".to_owned() },
        ("resolve", 11) => Outcome::Incomplete { reason: "the build is red".to_owned() },
        ("resolve", 9) if step == Some(3) => Outcome::Incomplete { reason: "1 comment is open".to_owned() },
        ("triage", 13) => {
            between.stop().await;
            Outcome::Succeeded
        }
        ("route", 14) => Outcome::HandedOff { child: context.hand_off("review").await? },
        ("route", 15) => Outcome::HandedOff { child: "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d".parse()? },
        _ => Outcome::Succeeded,
    })
}
