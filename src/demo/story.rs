//! What happens in the demo: deliveries, the runs that they lead to, and how those end.
//!
//! Until the runtime is there, a script stands in for dispatcher, executor and reaper. Its waits are real, and so
//! is every row that it writes.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future;
use serde_json::Map;
use tokio::time::sleep;
use uuid::Uuid;

use super::DemoError;
use super::database::{Database, OWNER};
use super::deliveries::{Delivery, Payload};
use crate::run::{RunId, Target, TargetKind};
use crate::runs::{self, NewRun, Owner, Parent, RunsError};
use crate::semconv::ErrorType;

/// The composite workflow.
const COMPOSITE: &str = "ship";

/// A run of one workflow: how long it waits and works, in milliseconds, and how it ends.
#[derive(Clone, Copy)]
struct Step {
    workflow: &'static str,
    wait: u64,
    work: u64,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Succeeds,
    /// It ran cleanly, but work remains.
    StaysIncomplete(&'static str),
    /// `{token}` in the reason becomes a credential.
    Fails(&'static str),
    /// It fails before it could begin.
    IsNeverPublished(&'static str),
    /// Somebody deletes its row.
    IsDeleted,
    /// A reaper takes its executor for dead, and that then says that all went well.
    IsReapedAlive(&'static str),
}
use End::{Fails, IsDeleted, IsNeverPublished, IsReapedAlive, StaysIncomplete, Succeeds};

const fn step(workflow: &'static str, wait: u64, work: u64, end: End) -> Step {
    Step { workflow, wait, work, end }
}

/// The children of the composite run, one after the other.
const CHAIN: [Step; 5] = [
    step("triage", 30, 110, Succeeds),
    step("plan", 60, 190, Succeeds),
    step("implement", 120, 430, Succeeds),
    step("review", 80, 240, Succeeds),
    step("resolve", 45, 150, Succeeds),
];

/// What is delivered about the pull request, one after the other.
const PULL_REQUEST: [(&str, Step); 10] = [
    ("pull_request.opened", step("triage", 0, 0, Succeeds)), // refused: triage is for issues
    ("pull_request_review.submitted", step("resolve", 0, 0, Succeeds)), // refused: nothing is reviewed yet
    ("pull_request.opened", step("review", 40, 160, Fails("push https://ci:{token}@github.com: 403"))),
    ("pull_request.synchronize", step("review", 25, 210, StaysIncomplete("1 of 3 comments has no line"))),
    ("pull_request.synchronize", step("review", 70, 260, Succeeds)),
    (
        "pull_request_review.submitted",
        step("resolve", 35, 90, Fails("uncaught: index 3 out of bounds, len 3")),
    ),
    ("check_suite.completed", step("resolve", 20, 0, IsNeverPublished("enqueue failed: no queue at :6379"))),
    ("check_suite.completed", step("resolve", 55, 130, IsReapedAlive("owner lost: executor-2 is silent"))),
    ("pull_request.synchronize", step("review", 45, 80, IsDeleted)),
    ("check_suite.completed", step("resolve", 30, 120, Succeeds)),
];

/// More issues, so that quantiles have something to tell.
const MORE_ISSUES: std::ops::RangeInclusive<i64> = 3..=14;

/// What the script did, to be compared with what was received.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) deliveries: usize,
    pub(super) runs: Vec<RunId>,
    pub(super) deleted: usize,
    /// The ids of the deliveries that led to no run.
    pub(super) refused: HashSet<String>,
    pub(super) composite: Option<RunId>,
    succeeded: HashSet<(&'static str, i64)>,
}

/// The script and its stage.
pub(super) struct Story<'a> {
    database: &'a Database,
    payloads: &'a [Payload],
    told: Mutex<Told>,
}

impl<'a> Story<'a> {
    pub(super) fn new(database: &'a Database, payloads: &'a [Payload]) -> Self {
        Self { database, payloads, told: Mutex::default() }
    }

    /// Plays it, in about two seconds.
    pub(super) async fn play(&self) -> Result<Told, DemoError> {
        let issue = async {
            self.deliver(self.payload("issues.opened"), step("triage", 25, 140, Succeeds)).await?;
            self.ship(self.payload("issues.labeled").deliver()).await
        };
        let pull_request = async {
            for (name, step) in PULL_REQUEST {
                self.deliver(self.payload(name), step).await?;
            }
            Ok(())
        };
        let nowhere = async {
            // Neither is about an issue or a pull request.
            self.deliver(self.payload("release.published"), step("triage", 0, 0, Succeeds)).await?;
            self.deliver(self.payload("workflow_dispatch"), step(COMPOSITE, 0, 0, Succeeds)).await
        };
        let more = future::try_join_all(MORE_ISSUES.map(|number| self.another_issue(number)));
        tokio::try_join!(issue, pull_request, nowhere, more)?;
        Ok(self.told().clone())
    }

    async fn another_issue(&self, number: i64) -> Result<(), DemoError> {
        let nth = number.unsigned_abs();
        sleep(Duration::from_millis(nth * 90)).await;
        let triage = step("triage", 20 + nth * 41 % 60, 40 + nth * 97 % 140, Succeeds);
        self.deliver(&self.payload("issues.opened").about(number), triage).await?;
        let end = match number {
            6 => Fails("timeout: no plan after 300 ms"),
            11 => StaysIncomplete("2 questions have no answer"),
            _ => Succeeds,
        };
        let plan =
            step("plan", 20 + nth * 53 % 110, if number == 6 { 300 } else { 60 + nth * 71 % 170 }, end);
        self.deliver(&self.payload("issue_comment.created").about(number), plan).await
    }

    /// The dispatcher: a run, or a refusal.
    async fn deliver(&self, payload: &Payload, step: Step) -> Result<(), DemoError> {
        let delivery = payload.deliver();
        self.told().deliveries += 1;
        let Some(target) = payload.target.clone().filter(|target| takes(step.workflow, target.kind)) else {
            return self.refuse(step, &delivery, ErrorType::ContextMismatch, None).await;
        };
        if step.workflow == "resolve" && !self.told().succeeded.contains(&("review", target.number)) {
            return self.refuse(step, &delivery, ErrorType::MissingPriorOutput, None).await;
        }
        match self.queue(step.workflow, &target, Some(&delivery), None).await {
            Ok(run) => self.live(run, step, &target).await,
            Err(DemoError::Runs(RunsError::InFlight { run })) => {
                self.refuse(step, &delivery, ErrorType::Inflight, run).await
            }
            Err(error) => Err(error),
        }
    }

    /// The composite run of an issue, with its children.
    async fn ship(&self, delivery: Delivery) -> Result<(), DemoError> {
        self.told().deliveries += 1;
        let Some(target) = &delivery.payload.target else { return Ok(()) };
        let run = self.queue(COMPOSITE, target, Some(&delivery), None).await?;
        self.told().composite = Some(run);
        self.begin(run, 30).await?;
        for (step_index, step) in (0..).zip(CHAIN) {
            let child = self.queue(step.workflow, target, None, Some(Parent { run, step_index })).await?;
            if step.workflow == "implement" {
                // Someone asks for the same once more: refused while it is in flight.
                let again = self.payload("issue_comment.created");
                tokio::try_join!(self.live(child, step, target), self.deliver(again, step))?;
            } else {
                self.live(child, step, target).await?;
            }
        }
        runs::mark_succeeded(self.database.acquire().await?.get(), run).await?;
        Ok(())
    }

    async fn queue(
        &self,
        workflow: &str,
        target: &Target,
        delivery: Option<&Delivery>,
        parent: Option<Parent>,
    ) -> Result<RunId, DemoError> {
        let mut new = NewRun::new(workflow, target.clone());
        new.parent = parent;
        new.delivery_id = delivery.map(|delivery| delivery.id.clone());
        new.owner = Some(Owner { kind: OWNER.to_owned(), id: "executor-1".to_owned() });
        if let Some(delivery) = delivery.filter(|_| workflow == COMPOSITE) {
            // Whoever took the delivery was in a span: the run's span will link to that.
            new.state = Map::from_iter([("traceparent".to_owned(), traceparent(delivery).into())]);
        }
        let run = runs::insert_queued(self.database.acquire().await?.get(), &new).await?;
        self.told().runs.push(run);
        Ok(run)
    }

    async fn begin(&self, run: RunId, wait: u64) -> Result<(), DemoError> {
        sleep(Duration::from_millis(wait)).await;
        Ok(runs::mark_running(self.database.acquire().await?.get(), run).await?)
    }

    /// Everything after a run is queued.
    async fn live(&self, run: RunId, step: Step, target: &Target) -> Result<(), DemoError> {
        if let IsNeverPublished(reason) = step.end {
            sleep(Duration::from_millis(step.wait)).await;
            return Ok(runs::mark_failed(self.database.acquire().await?.get(), run, reason).await?);
        }
        self.begin(run, step.wait).await?;
        sleep(Duration::from_millis(step.work)).await;
        let mut connection = self.database.acquire().await?;
        match step.end {
            Succeeds => {
                runs::mark_succeeded(connection.get(), run).await?;
                self.told().succeeded.insert((step.workflow, target.number));
            }
            StaysIncomplete(reason) => runs::mark_incomplete(connection.get(), run, reason).await?,
            Fails(reason) | IsNeverPublished(reason) => {
                let reason = reason.replace("{token}", &credential());
                runs::mark_failed(connection.get(), run, &reason).await?;
            }
            IsDeleted => {
                self.database.delete(run).await?;
                self.told().deleted += 1;
            }
            IsReapedAlive(reason) => {
                runs::mark_failed(connection.get(), run, reason).await?;
                sleep(Duration::from_millis(40)).await;
                self.database.overwrite(run).await?;
            }
        }
        Ok(())
    }

    async fn refuse(
        &self,
        step: Step,
        delivery: &Delivery,
        reason: ErrorType,
        inflight: Option<RunId>,
    ) -> Result<(), DemoError> {
        self.database.refuse(step.workflow, delivery, reason, inflight).await?;
        self.told().refused.insert(delivery.id.clone());
        Ok(())
    }

    fn payload(&self, name: &str) -> &Payload {
        let payload = self.payloads.iter().find(|payload| payload.name == name);
        payload.expect("the script names bundled payloads only")
    }

    /// Held between two awaits only, and sound whoever panicked: it only grows.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a workflow is for targets of this kind.
fn takes(workflow: &str, kind: TargetKind) -> bool {
    kind == TargetKind::Issue || matches!(workflow, "review" | "resolve")
}

/// The span in which a delivery was taken.
fn traceparent(delivery: &Delivery) -> String {
    let trace = delivery.id.replace('-', "");
    let span = Uuid::new_v4().simple().to_string();
    format!("00-{trace}-{}-01", &span[..16])
}

/// Looks like a token, and is none: put together here, so that no scanner of sources trips over it.
fn credential() -> String {
    ["ghs", &"d3M0".repeat(9)].join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::reason;

    #[test]
    fn the_credential_is_one_to_the_redaction() {
        let said = "push https://ci:{token}@github.com: 403".replace("{token}", &credential());
        assert_eq!(reason(&said), "push https://[redacted]@github.com: 403");
        assert_eq!(reason(&credential()), "[redacted]");
    }
}
