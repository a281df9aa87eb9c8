//! A small runtime for durable workflow runs: the kind of system that runspan observes, and one to build on.
//!
//! ```text
//! delivery → Dispatcher ─insert─▶ workflow_runs ◀─lock, next step─ Orchestrator
//!                │ after the commit        ▲                            ▲ a run ends
//!                ▼                         │ claim                      │
//!              Queue ───────────────▶ Executor ── handler ──────────────┘      Reaper: orphaned runs
//! ```
//!
//! The table is the truth. A job in the queue is only a reference to a row; the row names the run's owner, and a lease
//! shows whether the owner is alive. So any process may die at any moment: the [`Reaper`] fails the runs that it had in
//! progress and enqueues those that it had inserted only, and chains continue from their last step.
//!
//! Nothing here emits workflow events: the triggers journal each change of a row, whichever process makes it. The log
//! lines of these processes are their own, and carry no `event`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use runspan::runtime::{
//!     Database, Delivery, ExecutorSettings, Outcome, ReaperSettings, Registry, Runtime, Workflow,
//! };
//! use runspan::runtime::queue::InProcessQueue;
//! use tokio_util::sync::CancellationToken;
//!
//! let triage = Workflow::new("triage", |context| async move {
//!     tracing::info!(title = %context.input()["title"], "reading");
//!     Ok(Outcome::Succeeded)
//! });
//! let registry = Registry::new([triage.label("bot:triage")])?;
//! let database = Database::connect(&"sqlite:app.db".parse()?, 8).await?;
//! runspan::runs::migrate(database.acquire().await?.runs()).await?;
//! let runtime = Runtime::new("app", database, Arc::new(InProcessQueue::default()), registry);
//!
//! let stop = CancellationToken::new();
//! let executor = tokio::spawn(runtime.executor(ExecutorSettings::default()).run(stop.clone()));
//! // Recovers orphaned runs; at least one process needs it.
//! let reaper = tokio::spawn(runtime.reaper(ReaperSettings::default()).run(stop.clone()));
//! let delivery = Delivery::from_github("72d3162e", &std::fs::read("issues.labeled.json")?)?;
//! runtime.dispatcher().label("bot:triage", &delivery).await?;
//! // … and at the end:
//! stop.cancel();
//! executor.await??;
//! reaper.await?;
//! # Ok(())
//! # }
//! ```

pub mod bundled;
mod database;
mod delivery;
mod dispatcher;
mod executor;
mod handler;
mod orchestrator;
pub mod queue;
mod reaper;
mod registry;
mod scoped;
mod steps;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use self::database::{Database, Session, Tx};
pub use self::delivery::{Delivery, InvalidDelivery};
pub use self::dispatcher::{DispatchError, Dispatched, Dispatcher};
pub use self::executor::{Executor, ExecutorSettings};
pub use self::handler::{BoxError, Context, Outcome, StateError};
pub use self::orchestrator::{End, Orchestrator};
pub use self::reaper::{Reaped, Reaper, ReaperSettings};
pub use self::registry::{Accepts, Registry, RegistryError, Workflow};
pub use self::steps::{Next, Steps};
use crate::run::RunId;
use crate::runs::{self, Owner, RunsError};
use queue::{Queue, QueueError};

/// The owner of a run that a dispatcher has inserted.
const DISPATCHER: &str = "dispatcher";
/// The owner of a run whose handler is running: orphaned if the process dies.
const EXECUTOR: &str = "executor";
/// The owner of a run that waits for its children: any process can advance it.
const ORCHESTRATOR: &str = "orchestrator";

/// The largest JSON that a delivery or one `set_state` may add to a run's state: rows, and the contexts of their journal
/// entries, are read and written as a whole.
pub const MAX_STATE: usize = 1024 * 1024;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A row could not be read or changed.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// A handler hands off to a workflow that is not registered.
    #[error("cannot hand off to unknown workflow {0:?}")]
    UnknownWorkflow(String),
    /// A handler hands off twice.
    #[error("run {0} has already handed off: a run has one child at a time")]
    SecondChild(RunId),
    /// The queue failed.
    #[error("the queue failed: {0}")]
    Queue(#[from] QueueError),
}

impl From<sqlx::Error> for RuntimeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Runs(error.into())
    }
}

/// What the dispatcher, executors and reaper of a process share. Clones are handles to the same runtime.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    database: Database,
    queue: Arc<dyn Queue>,
    registry: Registry,
    executors: AtomicU32,
}

impl Runtime {
    /// A process of the application `name`. Its owner id is this name with a random suffix, so that a process never
    /// mistakes its predecessor's runs for its own.
    pub fn new(
        name: impl fmt::Display,
        database: Database,
        queue: Arc<dyn Queue>,
        registry: Registry,
    ) -> Self {
        let name = format!("{name}-{:08x}", rand::random::<u32>());
        Self { shared: Arc::new(Shared { name, database, queue, registry, executors: AtomicU32::new(0) }) }
    }

    /// The process's owner id: its name with the suffix.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.shared.database
    }

    /// A dispatcher, which turns deliveries into queued runs.
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(self.clone())
    }

    /// An executor, which runs handlers.
    pub fn executor(&self, settings: ExecutorSettings) -> Executor {
        Executor::new(self.clone(), settings)
    }

    /// An orchestrator, which ends runs and advances their parents.
    pub fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.clone())
    }

    /// A reaper, which recovers orphaned runs.
    pub fn reaper(&self, settings: ReaperSettings) -> Reaper {
        Reaper::new(self.clone(), settings)
    }

    fn owner(&self, kind: &str) -> Owner {
        Owner { kind: kind.to_owned(), id: self.shared.name.clone() }
    }

    /// The owner of a new executor's runs. Executors of one process do not share leases or jobs.
    fn new_executor(&self) -> Owner {
        let mut owner = self.owner(EXECUTOR);
        let before = self.shared.executors.fetch_add(1, Ordering::Relaxed);
        if before > 0 {
            owner.id = format!("{}-{}", owner.id, before + 1);
        }
        owner
    }

    fn queue(&self) -> &dyn Queue {
        &*self.shared.queue
    }

    fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// Journals a refusal if runspan is attached; the refusal is valid without it.
    async fn refused(&self, refusal: &runs::Refusal) {
        tracing::info!(
            reason = refusal.reason,
            inflightRunId = refusal.inflight.map(tracing::field::display),
            workflowName = refusal.workflow_name,
            target = refusal.target().map(tracing::field::display),
            deliveryId = refusal.delivery_id,
            "dispatch refused"
        );
        let journalled = async {
            let mut session = self.shared.database.acquire().await?;
            runs::dispatch_refused(session.runs(), refusal).await
        };
        if let Err(error) = journalled.await {
            tracing::warn!(
                workflowName = refusal.workflow_name,
                "failed to journal refusal (is runspan attached?): {error}"
            );
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
