//! The relay: turns the journal into OTLP requests and sends them until they are acknowledged.
//!
//! One relay works on a database at a time, whoever holds the lease; others stand by. The holder runs a
//! [projector](self) (journal → outbox and series, exactly once), a sender for each channel (outbox → receiver, at
//! least once, byte-identical) and an exporter (series → receiver, every interval), side by side: a receiver that is
//! away stops neither the others nor the projector.

mod capture;
mod exporter;
mod health;
mod judge;
mod lease;
mod meter;
mod monitor;
mod projector;
mod sender;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::health::serve as serve_health;
pub use self::monitor::{Capture, Monitor, SenderState, Snapshot};
use crate::otlp::Signal;
use crate::otlp::client::{Client, ClientError};
use crate::otlp::config::{ConfigError, Env, MetricsConfig, Resource, SignalConfig, UNKNOWN_SERVICE};
use crate::otlp::encode::Encoder;
use crate::projection;
use crate::store::{Channel, Lease, Store, StoreError};

/// How long giving the lease back may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

/// How often a standby that is to run until idle asks the database whether anything is left.
const STANDBY_LOOK: Duration = Duration::from_secs(1);

/// Where records go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logs {
    /// To the OTLP receiver.
    #[default]
    Otlp,
    /// To standard output, as JSON lines.
    Stdout,
    /// To both.
    Both,
}

/// How a relay works. The defaults are the command line's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the lease lasts without being renewed. It is renewed every third of it.
    pub lease_term: Duration,
    /// How many entries a transaction projects at most.
    pub batch: usize,
    /// How often an empty journal is looked at.
    pub idle_poll: Duration,
    /// How often the database is asked how it stands, and whether transitions reach the journal.
    pub look_every: Duration,
    /// How often the table is compared with what is known of its runs.
    pub reconcile_every: Duration,
    /// How large the outbox may grow, in bytes: past it the oldest requests go first.
    pub max_outbox: u64,
    /// How often the outbox is held to that while it grows.
    pub trim_every: Duration,
    /// How fast requests older than a minute are sent, in runs per second; 0 for no limit.
    pub max_runs_per_second: u32,
    /// How long a sender waits at most before it tries again.
    pub longest_backoff: Duration,
    /// How the journal is projected.
    pub projection: projection::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_term: Duration::from_secs(10),
            batch: 2_000,
            idle_poll: Duration::from_millis(333),
            look_every: Duration::from_secs(5),
            reconcile_every: Duration::from_mins(1),
            max_outbox: 2 << 30,
            trim_every: Duration::from_secs(5),
            max_runs_per_second: 500,
            longest_backoff: Duration::from_secs(30),
            projection: projection::Settings::default(),
        }
    }
}

/// Why a relay ended, other than being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// A variable says something that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A client cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The database cannot be used, and waiting does not help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is to be sent.
    #[error(
        "every signal is turned off: set OTEL_TRACES_EXPORTER, OTEL_LOGS_EXPORTER or OTEL_METRICS_EXPORTER to otlp, or print the records with --logs stdout"
    )]
    NoSink,
    /// Standard output is closed.
    #[error("cannot write to standard output: {0}")]
    Stdout(std::io::Error),
    /// The relay's task is gone.
    #[error("the relay's task panicked")]
    Panicked,
}

/// How a relay that was to run until idle ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop.
    Stopped,
    /// Journal and outbox are empty.
    Idle,
    /// Everything else is sent; this many requests are dead.
    Dead(i64),
    /// A receiver takes nothing of what is left, and says so.
    Refused(String),
    /// The database cannot be used: this is why.
    DatabaseAway(String),
}

impl Ended {
    /// The same, unless the last metrics were refused.
    #[must_use]
    pub fn and_metrics(self, monitor: &Monitor) -> Self {
        match (self, monitor.snapshot().metrics) {
            (Self::Idle, Some(SenderState::Refused(said))) => Self::Refused(said),
            (ended, _) => ended,
        }
    }
}

/// Where the requests of a channel go.
enum Sink {
    Otlp(Box<Client>),
    Stdout,
}

/// A relay that has not started yet.
pub struct Relay {
    store: Arc<dyn Store>,
    resource: Resource,
    sinks: Vec<(Channel, Arc<Sink>)>,
    metrics: Option<Arc<Client>>,
    metrics_config: MetricsConfig,
    settings: Settings,
    monitor: Monitor,
    instruments: Arc<meter::Instruments>,
    capture: capture::Watch,
    /// What the lease's row calls this relay.
    holder: String,
}

impl Relay {
    /// A relay for `store`, configured by the standard `OTEL_*` variables that `env` looks up.
    ///
    /// ```no_run
    /// use runspan::relay::{Logs, Relay};
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = runspan::store::open(&"postgres://localhost/app".parse()?)?;
    /// let relay = Relay::new(store, Logs::Otlp, &|name| std::env::var(name).ok())?.spawn();
    /// // … the application works; at its end:
    /// relay.drain().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(store: Arc<dyn Store>, logs: Logs, env: Env<'_>) -> Result<Self, RelayError> {
        let resource = Resource::from_env(env)?;
        let mut sinks = Vec::new();
        if let Some(config) = SignalConfig::from_env(Signal::Traces, env)? {
            sinks.push((Channel::Traces, Arc::new(Sink::Otlp(Box::new(Client::new(&config)?)))));
        }
        // Read in any case: a wrong variable is an error now, not when the option changes.
        let otlp_logs = SignalConfig::from_env(Signal::Logs, env)?;
        if let Some(config) = otlp_logs.filter(|_| logs != Logs::Stdout) {
            sinks.push((Channel::Logs, Arc::new(Sink::Otlp(Box::new(Client::new(&config)?)))));
        }
        if logs != Logs::Otlp {
            sinks.push((Channel::Stdout, Arc::new(Sink::Stdout)));
        }
        let metrics = match SignalConfig::from_env(Signal::Metrics, env)? {
            Some(config) => Some(Arc::new(Client::new(&config)?)),
            None => None,
        };
        let metrics_config = MetricsConfig::from_env(env)?;
        if sinks.is_empty() && metrics.is_none() {
            return Err(RelayError::NoSink);
        }
        let monitor = Monitor::new(sinks.iter().map(|(channel, _)| *channel));
        let signals = sinks.iter().map(|(channel, _)| channel.as_str());
        let signals = signals.chain(metrics.as_ref().map(|_| Signal::Metrics.as_str())).collect();
        let holder = format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple());
        Ok(Self {
            store,
            resource,
            sinks,
            metrics,
            metrics_config,
            settings: Settings::default(),
            monitor,
            instruments: Arc::new(meter::Instruments::new(signals)),
            capture: capture::Watch::default(),
            holder,
        })
    }

    /// With these settings instead of the defaults.
    #[must_use]
    pub fn with(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// What the relay tells of itself while it runs.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Runs as a task of its own.
    pub fn spawn(self) -> RelayHandle {
        let stop = CancellationToken::new();
        let (store, monitor) = (Arc::clone(&self.store), self.monitor.clone());
        let task = tokio::spawn(self.run(stop.clone()));
        RelayHandle { store, monitor, stop, task }
    }

    /// Runs until `stop`: then finishes the batch in hand, gives the lease back, and returns.
    ///
    /// A database that is away is waited for; one that will never do (not attached, too new, wrong
    /// credentials) is an error.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RelayError> {
        meter::show(&self.monitor, self.settings.max_outbox);
        let looker = meter::Looker {
            store: &*self.store,
            monitor: &self.monitor,
            instruments: &self.instruments,
            capture: &self.capture,
        };
        let ended = tokio::select! {
            ended = self.relay(&stop) => ended,
            never = looker.watch(self.settings.look_every) => match never {},
        };
        looker.look_at_the_end().await;
        ended
    }

    /// Holds the lease whenever it can be had, until `stop`.
    async fn relay(&self, stop: &CancellationToken) -> Result<(), RelayError> {
        let mut patience = patience(self.settings.longest_backoff);
        while !stop.is_cancelled() {
            let began = Instant::now();
            let error = match self.hold_lease(stop).await {
                Ok(()) => return Ok(()),
                Err(RelayError::Store(error)) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if matches!(error, StoreError::LeaseLost) {
                tracing::warn!("{error}; standing by");
                patience = self::patience(self.settings.longest_backoff);
                continue;
            }
            if matches!(error, StoreError::Database(_)) {
                self.monitor.update(|state| state.database_problem = Some(error.to_string()));
            }
            if began.elapsed() > self.settings.lease_term {
                // All was well for a while: this is another trouble, not more of the last one.
                patience = self::patience(self.settings.longest_backoff);
            }
            let wait = patience.next().unwrap_or(self.settings.longest_backoff);
            tracing::warn!(retry_in_ms = wait.as_millis(), "{error}");
            let _ = tokio::time::timeout(wait, stop.cancelled()).await;
        }
        Ok(())
    }

    /// Waits for the lease and works while it is held.
    async fn hold_lease(&self, stop: &CancellationToken) -> Result<(), RelayError> {
        self.store.check().await?;
        self.monitor.update(|state| state.database_problem = None);
        let Some(lease) =
            lease::acquire(&*self.store, &self.holder, self.settings.lease_term, &self.monitor, stop).await?
        else {
            return Ok(());
        };
        tracing::info!(epoch = lease.epoch(), "took the lease");
        self.introduce();
        let worked = self.work(&lease, stop).await;
        self.monitor.update(|state| state.lease_epoch = None);
        // After an error too: whoever comes next, this relay itself included, need not wait for its end.
        let released = tokio::time::timeout(RELEASE_PATIENCE, self.store.release_lease(&lease)).await;
        if matches!(released, Ok(Ok(()))) {
            tracing::info!(epoch = lease.epoch(), "gave the lease back");
        }
        worked
    }

    /// Projects and sends until `stop`, or until something fails.
    async fn work(&self, lease: &Lease, stop: &CancellationToken) -> Result<(), RelayError> {
        // A relay that runs until idle may be gone before the next look.
        self.capture.look(&*self.store, &self.monitor).await;
        self.warn_of_unserved_channels().await?;
        let instance = self.store.instance().await?;
        let mut keeper = std::pin::pin!(lease::keep(&*self.store, lease, self.settings.lease_term));
        let counts = self.instruments.of(&instance);
        let mut workers: JoinSet<Result<(), RelayError>> = JoinSet::new();
        let encoder = Encoder::new(&self.resource, &instance);
        let projected = CancellationToken::new();
        let exporter = exporter::Exporter {
            store: Arc::clone(&self.store),
            lease: lease.clone(),
            client: self.metrics.clone(),
            config: self.metrics_config.clone(),
            encoder: encoder.clone(),
            instance: instance.clone(),
            settings: self.settings.clone(),
            monitor: self.monitor.clone(),
            counts: counts.clone(),
            projected: projected.clone(),
        };
        workers.spawn(exporter.run());
        let projector = projector::Projector {
            store: Arc::clone(&self.store),
            lease: lease.clone(),
            encoder,
            instance,
            channels: self.sinks.iter().map(|(channel, _)| *channel).collect(),
            settings: self.settings.clone(),
            monitor: self.monitor.clone(),
            counts: counts.clone(),
            stop: stop.clone(),
            projected,
        };
        workers.spawn(projector.run());
        for (channel, sink) in &self.sinks {
            let sender = sender::Sender {
                store: Arc::clone(&self.store),
                lease: lease.clone(),
                channel: *channel,
                sink: Arc::clone(sink),
                settings: self.settings.clone(),
                monitor: self.monitor.clone(),
                counts: counts.clone(),
                stop: stop.clone(),
            };
            workers.spawn(sender.run());
        }
        // The first failure ends the others at once: what they were doing is found again in the database.
        loop {
            tokio::select! {
                lost = &mut keeper => return Err(lost.into()),
                ended = workers.join_next() => match ended {
                    None => return Ok(()),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => return Err(error),
                    Some(Err(_)) => return Err(RelayError::Panicked),
                },
            }
        }
    }

    /// Says where it all goes.
    fn introduce(&self) {
        if let Some(client) = &self.metrics {
            let config = client.config();
            tracing::info!("sending metrics to {} ({})", config.endpoint, config.protocol);
        }
        for (channel, sink) in &self.sinks {
            match &**sink {
                Sink::Otlp(client) => {
                    let config = client.config();
                    tracing::info!("sending {channel} to {} ({})", config.endpoint, config.protocol);
                }
                Sink::Stdout => tracing::info!("printing records as JSON lines"),
            }
        }
        if self.resource.service_name() == UNKNOWN_SERVICE {
            tracing::warn!(
                "the runs will be those of {UNKNOWN_SERVICE}, for good: set OTEL_SERVICE_NAME before relaying"
            );
        }
    }

    /// Requests of a channel that an earlier relay served and this one does not.
    async fn warn_of_unserved_channels(&self) -> Result<(), StoreError> {
        for channel in Channel::ALL {
            let served = self.sinks.iter().any(|(served, _)| *served == channel);
            if !served && self.store.next_request(channel, None).await?.is_some() {
                tracing::warn!(
                    "requests wait for {channel}, which this relay does not send: see --logs and OTEL_*_EXPORTER"
                );
            }
        }
        Ok(())
    }
}

/// A relay that runs.
///
/// Dropping it leaves the relay running until the runtime ends; a later one takes up where it stopped.
pub struct RelayHandle {
    store: Arc<dyn Store>,
    monitor: Monitor,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), RelayError>>,
}

impl RelayHandle {
    /// What the relay tells of itself.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Finishes the batch in hand, gives the lease back, and ends.
    pub async fn stop(self) -> Result<(), RelayError> {
        self.stop.cancel();
        self.task.await.map_err(|_| RelayError::Panicked)?
    }

    /// Waits until journal and outbox are empty (or only dead or refused requests are left), then stops.
    pub async fn drain(self) -> Result<Ended, RelayError> {
        let Self { store, monitor, stop, mut task } = self;
        let ended = tokio::select! {
            ended = until_idle(&*store, &monitor) => ended,
            ended = &mut task => {
                return ended.map_err(|_| RelayError::Panicked)?.map(|()| Ended::Stopped);
            }
        };
        stop.cancel();
        task.await.map_err(|_| RelayError::Panicked)??;
        Ok(ended?.and_metrics(&monitor))
    }
}

/// Waits until there is nothing left to do, or nothing that can be done.
pub async fn until_idle(store: &dyn Store, monitor: &Monitor) -> Result<Ended, StoreError> {
    let mut changes = monitor.subscribe();
    loop {
        let state = changes.borrow_and_update().clone();
        if let Some(problem) = state.database_problem {
            return Ok(Ended::DatabaseAway(problem));
        }
        // What the tasks say may be a moment old; the database knows. A standby asks it only.
        if state.is_idle() || state.stands_by {
            let status = store.status().await?;
            if let Some(said) = state.refusal().filter(|_| status.journal_entries == 0) {
                return Ok(Ended::Refused(said.to_owned()));
            }
            if status.journal_entries == 0 && !anything_waits(store, &state).await? {
                let dead = status.dead_requests;
                return Ok(if dead == 0 { Ended::Idle } else { Ended::Dead(dead) });
            }
        }
        let _ = tokio::time::timeout(STANDBY_LOOK, changes.changed()).await;
    }
}

/// Whether a request waits that this relay would send.
async fn anything_waits(store: &dyn Store, state: &Snapshot) -> Result<bool, StoreError> {
    for channel in state.senders.keys() {
        if store.next_request(*channel, None).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits between failed attempts: doubling from 200 ms, with jitter, without an end.
pub(crate) fn patience(longest: Duration) -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(longest)
        .without_max_times()
        .build()
}
