//! The demo: webhook deliveries become runs, and runs become spans, in this process and in seconds.
//!
//! The runtime, the triggers, the journal, the relay and the socket are the real ones; only the services that the
//! handlers call are waits. Everything shown is read from the OTLP requests that arrived, and checked against the
//! table.

mod database;
mod deliveries;
mod forward;
mod handlers;
mod receiver;
mod render;
mod report;
mod story;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;
use tracing_subscriber::layer::SubscriberExt as _;

use self::database::TableOwner;
use self::receiver::Receiver;
use self::story::Story;
use runspan::DatabaseUrl;
use runspan::otlp::client::ClientError;
use runspan::otlp::config::{ConfigError, Env};
use runspan::relay::{Ended, Logs, Relay, RelayError, RelayHandle, Settings};
use runspan::runs::RunsError;
use runspan::runtime::{Database, DispatchError, InvalidDelivery, RuntimeError};
use runspan::store::{self, Plan, Store, StoreError};
use runspan::telemetry::{Telemetry, TelemetryError};

pub(crate) use self::forward::Sent;
pub(crate) use self::report::Report;

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DemoError {
    /// Told to stop.
    #[error("interrupted")]
    Interrupted,
    /// There are runs in the database that are not the demo's.
    #[error(
        "this database serves an application, whose runs would be sent to the demo and to no one else: \
         give the demo a database of its own"
    )]
    Foreign,
    /// The database cannot be opened.
    #[error("cannot open {0}: {1}")]
    Open(DatabaseUrl, RunsError),
    /// Another relay is at work.
    #[error("a relay is at work on this database: stop it (a killed one holds its lease for up to 10 s)")]
    RelayAtWork,
    /// The relay could not bring everything to the demo's own receiver.
    #[error("not everything was sent: {0}")]
    Unsent(String),
    /// A row could not be changed.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// The database refused, or is away.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay failed.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A variable says something that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A client for `OTEL_EXPORTER_OTLP_ENDPOINT` cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A bundled payload cannot be read.
    #[error(transparent)]
    Payload(#[from] InvalidDelivery),
    /// A delivery could not be dispatched.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// The executor failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The handlers' own spans could not be sent.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The machine refuses a directory or a socket.
    #[error("cannot {0}: {1}")]
    Machine(&'static str, std::io::Error),
}

impl From<sqlx::Error> for DemoError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// How far the demo is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) enum Progress {
    /// Everything stands; the first delivery comes.
    Begun {
        /// How many payloads are bundled.
        payloads: usize,
        /// What kind of database it is.
        database: &'static str,
        /// Where the receiver listens.
        receiver: std::net::SocketAddr,
    },
    /// Another second is over.
    Underway {
        /// How many spans have been received.
        spans: usize,
        /// How many records.
        records: usize,
    },
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        render::progress(self, f)
    }
}

/// Plays the demo on `database` (`None`: on a SQLite file that goes with it), tells `progress` how far it is, and
/// reports what was received.
///
/// When `stop` is cancelled the relay is stopped and the file removed before this returns.
pub(crate) async fn run(
    database: Option<DatabaseUrl>,
    env: Env<'_>,
    stop: &CancellationToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, DemoError> {
    let begun = Instant::now();
    // What is wrong with the environment is said before anything is done.
    let forward = forward::Forward::from_env(env)?;
    let machine = |what| move |error| DemoError::Machine(what, error);
    let (url, directory) = if let Some(url) = database {
        (url, None)
    } else {
        let directory =
            tempfile::TempDir::with_prefix("runspan-demo-").map_err(machine("make a directory"))?;
        (DatabaseUrl::Sqlite(directory.path().join("demo.db")), Some(directory))
    };

    let receiver = Receiver::start().await.map_err(machine("listen on the loopback interface"))?;
    let database = Database::connect(&url, database::CONNECTIONS)
        .await
        .map_err(|error| DemoError::Open(url.clone(), error))?;
    let attached = attach(&url, &database).await?;
    let receiver_env = receiver_env(&receiver, env);
    let relay = relay(attached, &receiver_env)?;
    let telemetry = Telemetry::from_env(&receiver_env)?;
    progress(Progress::Begun {
        payloads: deliveries::BUNDLED.len(),
        database: if matches!(url, DatabaseUrl::Sqlite(_)) { "SQLite" } else { "PostgreSQL" },
        receiver: receiver.address(),
    });

    let story = Story::new(database.clone());
    let played = story.play().with_subscriber(tracing_subscriber::registry().with(telemetry.layer()));
    let told = tokio::select! {
        told = unless(stop, played) => told.flatten(),
        never = tick(&receiver, progress) => match never {},
    };
    let sent = telemetry.shutdown().await;
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            // Or it would write into a directory that is being removed.
            relay.stop().await?;
            database.close().await;
            return Err(error);
        }
    };
    sent?;
    match unless(stop, relay.drain()).await?? {
        Ended::Idle | Ended::Stopped => {}
        Ended::Dead(requests) => return Err(DemoError::Unsent(format!("{requests} requests were refused"))),
        Ended::Refused(said) | Ended::DatabaseAway(said) => return Err(DemoError::Unsent(said)),
    }
    let took = begun.elapsed();

    let ended = database::ended(&database, story.name()).await?;
    database.close().await;
    let mut report = Report::new(&told, &ended, &receiver, took);
    report.kept_in = directory.is_none().then(|| url.to_string());
    if !forward.is_empty() {
        report.forwarded = Some(unless(stop, forward.send(&receiver)).await?);
    }
    Ok(report)
}

/// What `work` comes to, unless told to stop before.
async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, DemoError> {
    stop.run_until_cancelled(work).await.ok_or(DemoError::Interrupted)
}

/// Makes the table ready for the demo, and attaches to it as an application would: only if nobody's telemetry can
/// be lost by that, since the demo's relay sends whatever it finds to the demo.
async fn attach(url: &DatabaseUrl, database: &Database) -> Result<Arc<dyn Store>, DemoError> {
    let store = store::open(url)?;
    let foreign = match database::owner(database).await? {
        TableOwner::Application => true,
        TableOwner::Demo => false,
        // There may be something left that was attached to a table of another name.
        TableOwner::Nobody => match store.check().await {
            Ok(()) => {
                let left = store.status().await?;
                left.journal_entries + left.waiting_requests + left.open_runs > 0
            }
            Err(StoreError::NotAttached) => false,
            Err(error) => return Err(error.into()),
        },
    };
    if foreign {
        return Err(DemoError::Foreign);
    }
    database::prepare(database).await?;
    let attached = store.attach(&Plan::of("workflow_runs")).await?;
    for warning in attached.warnings {
        tracing::warn!("{warning}");
    }
    let lease = store.lease().await?;
    if lease.holder.is_some() && !lease.expired {
        return Err(DemoError::RelayAtWork);
    }
    Ok(store)
}

/// The variables of an application whose receiver is the demo's own. It may say who it is.
fn receiver_env(receiver: &Receiver, env: Env<'_>) -> impl Fn(&str) -> Option<String> {
    let endpoint = format!("http://{}", receiver.address());
    move |name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("grpc".to_owned()),
        "OTEL_SERVICE_NAME" => env(name),
        "OTEL_RESOURCE_ATTRIBUTES" => {
            Some(format!("service.name=runspan-demo,{}", env(name).unwrap_or_default()))
        }
        _ => None,
    }
}

/// Starts the relay that an application would embed.
fn relay(store: Arc<dyn Store>, env: Env<'_>) -> Result<RelayHandle, DemoError> {
    let settings = Settings { idle_poll: Duration::from_millis(50), ..Settings::default() };
    Ok(Relay::new(store, Logs::Otlp, env)?.with(settings).spawn())
}

/// Says each second how far it is.
async fn tick(receiver: &Receiver, progress: &(dyn Fn(Progress) + Sync)) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        progress(Progress::Underway { spans: receiver.spans().len(), records: receiver.records().len() });
    }
}
