//! A bot that takes issues to merged pull requests: a whole small application on `runspan::runtime`, to copy from.
//!
//! `bot --help` shows how to start it. Its workflows are [`bundled::registry`]'s; what they do is at the end.

use std::fmt::Display;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser};
use runspan::DatabaseUrl;
use runspan::runtime::queue::{QueueError, RedisQueue, RedisSettings};
use runspan::runtime::{
    BoxError, Context, Database, Delivery, DispatchError, Dispatched, ExecutorSettings, Outcome,
    ReaperSettings, Runtime, Workflow, bundled,
};
use runspan::{runs, telemetry};
use serde_json::{Map, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Its runs are owned by processes of this name, and its jobs lie under it.
const NAME: &str = "bot";

const HOW: &str = "\
To begin with:
  export DATABASE_URL=postgres://user@host/app REDIS_URL=redis://host:6379/0
  bot migrate         # once, for the table
  runspan attach      # once, for its triggers
  bot work            # here and there: as many processes as you like
  bot dispatch --label bot:ship < payload.json

`runspan relay` sends the spans of the runs. `bot work` sends those of the
handlers, which nest under them: for both, set OTEL_SERVICE_NAME and
OTEL_EXPORTER_OTLP_ENDPOINT.

Exit codes:
  0  done
  1  database or queue failed
  2  wrong command line, variable, label or payload
  3  refused";

/// A bot that takes issues to merged pull requests
#[derive(Parser)]
#[command(name = "bot", after_help = HOW)]
enum Command {
    /// Create the table of runs, or bring it up to date
    Migrate(DatabaseArgs),
    /// Run handlers, and look after runs that others left; logs JSON lines. SIGTERM lets handlers end
    Work(Work),
    /// Queue a run for the GitHub payload on standard input; prints its id, or why it was refused
    Dispatch(Dispatch),
}

#[derive(Args)]
struct Work {
    #[command(flatten)]
    services: Services,
    /// How many handlers run at a time: at least 1
    #[arg(long, default_value = "16", value_name = "N")]
    concurrency: NonZeroU16,
    /// How long after its last sign of life this process is taken for dead
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = lease)]
    lease: Duration,
    /// How long the service takes that the handlers call
    #[arg(long, default_value = "100ms", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pace: Duration,
}

#[derive(Args)]
struct Dispatch {
    #[command(flatten)]
    services: Services,
    /// What asks for a workflow: bot:triage, bot:plan, …, bot:ship
    #[arg(long)]
    label: String,
    /// GitHub's X-GitHub-Delivery
    #[arg(long, default_value = "by-hand", value_name = "ID")]
    delivery: String,
}

#[derive(Args)]
struct DatabaseArgs {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE` or `sqlite:PATH`
    // A plain text: clap would repeat a wrong value, with its password.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

#[derive(Args)]
struct Services {
    #[command(flatten)]
    database: DatabaseArgs,
    /// `redis://HOST:6379/0`, Redis or Valkey: a queue within one process would reach no other
    #[arg(long, value_name = "URL", env = "REDIS_URL", hide_env_values = true)]
    queue_url: String,
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease < Duration::from_secs(1) { Err("at least 1s".to_owned()) } else { Ok(lease) }
}

/// One line for the user, and the exit code.
struct Failure(u8, String);

fn failed(line: impl Display) -> Failure {
    Failure(1, line.to_string())
}

fn usage(line: impl Display) -> Failure {
    Failure(2, line.to_string())
}

fn not_migrated(error: impl Display) -> Failure {
    failed(format!("{error} (has the database seen `bot migrate`?)"))
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Migrate(database) => database.migrate().await,
        Command::Work(work) => work.run().await,
        Command::Dispatch(dispatch) => dispatch.run().await,
    };
    done.unwrap_or_else(|Failure(code, line)| {
        eprintln!("error: {line}");
        ExitCode::from(code)
    })
}

impl DatabaseArgs {
    async fn connect(&self, connections: u32) -> Result<Database, Failure> {
        let url: DatabaseUrl = self.database_url.parse().map_err(usage)?;
        let connected = Database::connect(&url, connections).await;
        connected.map_err(|error| failed(format!("{url}: {error} (see --database-url, DATABASE_URL)")))
    }

    async fn migrate(self) -> Result<ExitCode, Failure> {
        let database = self.connect(1).await?;
        let applied = runs::migrate(database.acquire().await.map_err(failed)?.runs()).await;
        println!("{} migrations applied", applied.map_err(failed)?);
        Ok(ExitCode::SUCCESS)
    }
}

impl Services {
    async fn connect(&self, connections: u32, lease: Duration, pace: Duration) -> Result<Runtime, Failure> {
        let database = self.database.connect(connections).await?;
        // Who takes a job begins its run and is rid of it at once: whoever dies meanwhile has died with a lease.
        let settings = RedisSettings { reclaim_after: lease, ..RedisSettings::new(NAME) };
        let queue = RedisQueue::connect(&self.queue_url, settings).await.map_err(|error| match error {
            QueueError::Url => usage(error),
            error => failed(format!("{error} (see --queue-url, REDIS_URL)")),
        })?;
        let registry = bundled::registry(handled(pace)).map_err(failed)?;
        Ok(Runtime::new(NAME, database, Arc::new(queue), registry))
    }
}

impl Work {
    async fn run(self) -> Result<ExitCode, Failure> {
        let telemetry = telemetry::init(&|name| std::env::var(name).ok()).map_err(usage)?;
        telemetry::log_panics();
        let stop = stop_on_signal().map_err(failed)?;
        // A connection for each handler, and some for signs of life and the reaper.
        let connections = u32::from(self.concurrency.get()) + 4;
        let runtime = self.services.connect(connections, self.lease, self.pace).await?;
        let executor = runtime.executor(ExecutorSettings {
            concurrency: self.concurrency.get().into(),
            lease_term: self.lease,
            ..ExecutorSettings::default()
        });
        // One in every process: one of them works, and another takes over when that dies.
        let reaper = runtime.reaper(ReaperSettings {
            lease_term: self.lease,
            interval: self.lease / 2,
            enqueue_grace: self.lease * 3,
        });
        tracing::info!(process = runtime.name(), concurrency = self.concurrency, "starting");
        let reaper = tokio::spawn(reaper.run(stop.clone()));
        let worked = executor.run(stop.clone()).await;
        // It ends of itself where it cannot begin.
        stop.cancel();
        reaper.await.map_err(failed)?;
        runtime.database().close().await;
        if let Err(error) = telemetry.shutdown().await {
            tracing::warn!("the last spans are lost: {error}");
        }
        worked.map(|()| ExitCode::SUCCESS).map_err(not_migrated)
    }
}

fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: handlers may end");
        told.cancel();
    });
    Ok(stop)
}

impl Dispatch {
    async fn run(self) -> Result<ExitCode, Failure> {
        let payload = std::io::read_to_string(std::io::stdin()).map_err(usage)?;
        let delivery = Delivery::from_github(&self.delivery, payload.as_bytes()).map_err(usage)?;
        let lease = RedisSettings::new(NAME).reclaim_after;
        let runtime = self.services.connect(1, lease, Duration::ZERO).await?;
        let dispatched =
            runtime.dispatcher().label(&self.label, &delivery).await.map_err(|error| match error {
                DispatchError::Runtime(error) => not_migrated(error),
                error => usage(error),
            })?;
        match dispatched {
            Dispatched::Queued { run } => println!("{run}"),
            Dispatched::EnqueueFailed { run } => {
                return Err(failed(format!("run {run} has failed, as the queue went away: try again")));
            }
            Dispatched::Refused { reason, inflight } => {
                let inflight = inflight.map(|run| format!(": {run}")).unwrap_or_default();
                println!("refused: {}{inflight}", reason.as_str());
                return Ok(ExitCode::from(3));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

// --- What the workflows do ---

/// Each workflow with its handler.
fn handled(pace: Duration) -> impl Fn(&'static str) -> Workflow {
    move |name| {
        Workflow::new(name, move |context| handle(name, context, pace)).timeout(Duration::from_mins(10))
    }
}

async fn handle(name: &'static str, context: Context, pace: Duration) -> Result<Outcome, BoxError> {
    call(&context, pace).await;
    let body = context.input()["body"].as_str().unwrap_or_default();
    // A list of tasks, or else one.
    let tasks = body.lines().filter(|line| line.starts_with("- [ ] ")).count().max(1);
    Ok(match name {
        "triage" => match context.input()["title"].as_str() {
            None | Some("") => Outcome::Failed { reason: "there is no title to judge by".to_owned() },
            Some(title) => {
                let kind = if title.to_lowercase().contains("fix") { "bug" } else { "feature" };
                keep(&context, "kind", json!(kind)).await?;
                Outcome::Succeeded
            }
        },
        "plan" => {
            // An error that gets out, or a panic (what of 0 days?), fails the run, and the process goes on.
            let days = body.lines().find_map(|line| line.strip_prefix("days: ")).unwrap_or("1");
            keep(&context, "tasksPerDay", json!(tasks / days.parse::<usize>()?)).await?;
            Outcome::Succeeded
        }
        "resolve" => {
            // In a composite run each round has the next two tasks: the three steps before them come once.
            let round = context.run().parent.map_or(0, |parent| parent.step_index.saturating_sub(3) / 2);
            let done = usize::try_from(2 * (round + 1))?;
            match tasks.saturating_sub(done) {
                0 => Outcome::Succeeded,
                left => Outcome::Incomplete { reason: format!("{left} of {tasks} tasks are open") },
            }
        }
        _ => Outcome::Succeeded,
    })
}

/// A call to another service, which takes its time. A real one is sent the header.
#[tracing::instrument(skip_all)]
async fn call(context: &Context, pace: Duration) {
    tracing::info!(traceparent = context.traceparent(), "asking a model");
    tokio::time::sleep(pace).await;
}

async fn keep(context: &Context, key: &str, value: serde_json::Value) -> Result<(), BoxError> {
    Ok(context.set_state(Map::from_iter([(key.to_owned(), value)])).await?)
}
