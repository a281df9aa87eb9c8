//! A small runtime for durable workflow runs: the system whose lifecycle runspan observes, and one to build on.
//!
//! ```text
//! delivery → Dispatcher ─insert─▶ workflow_runs ◀─lock, next step─ Orchestrator
//!                │ after the commit        ▲                            ▲ a run ends
//!                ▼                         │ claim                      │
//!              Queue ───────────────▶ Executor ── handler ──────────────┘      Reaper: what died, what was lost
//! ```
//!
//! The table is the truth. A job in the queue only says where to look; who owns a run stands in its row, and whether
//! the owner lives in its lease. So any process may die at any moment: what it had begun is failed by the
//! [`Reaper`], what it had queued and not published is published again, and a chain goes on where it stood.
//!
//! Nothing here tells of a run's lifecycle: the triggers journal each change of a row, whoever makes it. The log
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
//! // Without one nothing is looked after that died or was lost.
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

/// The owner of a run that a dispatcher has queued.
const DISPATCHER: &str = "dispatcher";
/// The owner of a run that a handler works on: lost with its process.
const EXECUTOR: &str = "executor";
/// The owner of a run whose children work for it: any process can take it further.
const ORCHESTRATOR: &str = "orchestrator";

/// The most that a delivery may bring into a run's state, or a handler put there at a time, as JSON. (A row is read and written whole, and so is its journal entry's
/// context.)
pub const MAX_STATE: usize = 1024 * 1024;

/// Why the runtime could not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A row could not be read or changed.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// A handler hands off to what no registry knows.
    #[error("cannot hand off to {0:?}, which is no workflow")]
    UnknownWorkflow(String),
    /// A handler has queued a child already.
    #[error("run {0} has handed off already, and a run has one child at a time")]
    SecondChild(RunId),
    /// The queue is away.
    #[error("the queue failed: {0}")]
    Queue(#[from] QueueError),
}

impl From<sqlx::Error> for RuntimeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Runs(error.into())
    }
}

/// A process of the runtime: what its dispatcher, executor and reaper share. Clones share it too.
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
    /// A process of the application `name`. What owns its runs is this name and a suffix of its own, so that a
    /// process never takes its predecessor's runs for its own.
    pub fn new(
        name: impl fmt::Display,
        database: Database,
        queue: Arc<dyn Queue>,
        registry: Registry,
    ) -> Self {
        let name = format!("{name}-{:08x}", rand::random::<u32>());
        Self { shared: Arc::new(Shared { name, database, queue, registry, executors: AtomicU32::new(0) }) }
    }

    /// Its name, with the suffix.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.shared.database
    }

    /// What takes deliveries and queues runs.
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(self.clone())
    }

    /// What runs handlers.
    pub fn executor(&self, settings: ExecutorSettings) -> Executor {
        Executor::new(self.clone(), settings)
    }

    /// What ends runs and takes those above them further.
    pub fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.clone())
    }

    /// What looks after runs whose owner is gone.
    pub fn reaper(&self, settings: ReaperSettings) -> Reaper {
        Reaper::new(self.clone(), settings)
    }

    fn owner(&self, kind: &str) -> Owner {
        Owner { kind: kind.to_owned(), id: self.shared.name.clone() }
    }

    /// The owner of one more executor's runs: not that of another's, whose lease and whose jobs are its own.
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

    /// Has the journal note a refusal, if there is a journal: the refusal stands without it.
    async fn refused(&self, refusal: &runs::Refusal) {
        tracing::info!(
            reason = refusal.reason,
            inflightRunId = refusal.inflight.map(tracing::field::display),
            workflowName = refusal.workflow_name,
            target = refusal.target().map(tracing::field::display),
            deliveryId = refusal.delivery_id,
            "refused"
        );
        let noted = async {
            let mut session = self.shared.database.acquire().await?;
            runs::dispatch_refused(session.runs(), refusal).await
        };
        if let Err(error) = noted.await {
            tracing::warn!(
                workflowName = refusal.workflow_name,
                "a refusal is in no journal (is runspan attached?): {error}"
            );
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
