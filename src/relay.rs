//! The relay: converts the journal to OTLP requests and sends them until they are acknowledged.
//!
//! One relay works on a database at a time, the holder of the lease; others stand by. This file is the orchestrator: it
//! takes the lease, starts the tasks of a term, and ends them together. Each task is a module of its own: the
//! projector (journal → outbox and series, exactly once), the reconciler, the housekeeper, a sender per channel
//! (outbox → receiver, at least once, byte-identical) and the exporter (series → receiver, every interval). A receiver
//! that is away stops neither the others nor the projector.

mod access;
mod capture;
mod delivery_policy;
mod error;
mod exporter;
mod handle;
mod health;
mod housekeeper;
mod lease;
mod plan;
mod poller;
mod projector;
mod reader;
mod reconciler;
mod self_metrics;
mod sender;
mod settings;
mod sink;
mod status;
mod term;
mod warned;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures_util::TryFutureExt as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::access::Access;
pub use self::error::RelayError;
pub use self::handle::{Ended, RelayHandle, until_idle};
pub use self::health::serve as serve_health;
pub use self::plan::{Plan, plan, runs_of};
pub use self::settings::{Logs, Settings};
use self::sink::Sink;
pub use self::status::{Capture, RelayStatus, SenderState, Snapshot};
use self::term::Term;
use crate::backoff::backoff;
use crate::otlp::Signal;
use crate::otlp::client::Client;
use crate::otlp::config::{Env, MetricsConfig, Resource, SignalConfig, UNKNOWN_SERVICE, is_sdk_disabled};
use crate::otlp::encode::Encoder;
use crate::outage::{Extent, Outage, Report};
use crate::store::{Channel, Lease, Store, StoreError};

/// How long releasing the lease may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the database has to work before an outage counts as ended: an error may come back at once.
const STABLE_AFTER: Duration = Duration::from_millis(500);

/// A relay that has not started yet.
pub struct Relay {
    store: Arc<dyn Store>,
    resource: Resource,
    sinks: Vec<(Channel, Arc<Sink>)>,
    metrics: Option<Arc<Client>>,
    metrics_config: MetricsConfig,
    settings: Settings,
    status: RelayStatus,
    instruments: Arc<self_metrics::Instruments>,
    capture: capture::Watch,
    warned: Arc<warned::Warned>,
    /// The name of this relay in the lease's row.
    holder: String,
    /// Whether `OTEL_SDK_DISABLED` switches it off.
    is_disabled: bool,
    /// Exporters that are configured and ignored, as lines for the log.
    ignored_exporters: Vec<String>,
}

impl Relay {
    /// A relay for `store`, configured by the standard `OTEL_*` variables, which `env` looks up.
    ///
    /// ```no_run
    /// use runspan::relay::{Logs, Relay};
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = runspan::store::open(&"postgres://localhost/app".parse()?)?;
    /// let relay = Relay::new(store, Logs::Otlp, &|name| std::env::var(name).ok())?.spawn();
    /// // … the application works; when it ends:
    /// relay.drain().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(store: Arc<dyn Store>, logs: Logs, env: Env<'_>) -> Result<Self, RelayError> {
        let resource = Resource::from_env(env)?;
        let is_disabled = is_sdk_disabled(env);
        let mut sinks = Vec::new();
        let mut ignored_exporters = Vec::new();
        if let Some(config) = SignalConfig::from_env(Signal::Traces, env)? {
            ignored_exporters.extend(config.ignored_exporters.clone());
            sinks.push((Channel::Traces, Arc::new(Sink::Otlp(Box::new(Client::new(&config)?)))));
        }
        // Parsed in any case: an invalid variable is an error now, not when the option changes.
        let otlp_logs = SignalConfig::from_env(Signal::Logs, env)?;
        if let Some(config) = otlp_logs.filter(|_| logs != Logs::Stdout) {
            ignored_exporters.extend(config.ignored_exporters.clone());
            sinks.push((Channel::Logs, Arc::new(Sink::Otlp(Box::new(Client::new(&config)?)))));
        }
        if logs != Logs::Otlp && !is_disabled {
            sinks.push((Channel::Stdout, Arc::new(Sink::Stdout)));
        }
        let metrics = match SignalConfig::from_env(Signal::Metrics, env)? {
            Some(config) => {
                ignored_exporters.extend(config.ignored_exporters.clone());
                Some(Arc::new(Client::new(&config)?))
            }
            None => None,
        };
        let metrics_config = MetricsConfig::from_env(env)?;
        if sinks.is_empty() && metrics.is_none() && !is_disabled {
            return Err(RelayError::NoSink);
        }
        let status = RelayStatus::new(sinks.iter().map(|(channel, _)| *channel));
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
            status,
            instruments: Arc::new(self_metrics::Instruments::new(signals)),
            capture: capture::Watch::default(),
            warned: Arc::default(),
            holder,
            is_disabled,
            ignored_exporters,
        })
    }

    /// Uses these settings instead of the defaults.
    #[must_use]
    pub fn with(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The state of the relay while it runs.
    pub fn status(&self) -> RelayStatus {
        self.status.clone()
    }

    /// Runs in a task of its own.
    pub fn spawn(self) -> RelayHandle {
        let stop = CancellationToken::new();
        let (store, status) = (Arc::clone(&self.store), self.status.clone());
        let run = self.run(stop.clone());
        let task = tokio::spawn(run.inspect_err(|error| {
            // Whoever has the handle may not look at it before the application ends.
            tracing::error!("the relay ended; runs stay in the journal until another one starts: {error}");
        }));
        RelayHandle { store, status, stop, task }
    }

    /// Runs until `stop`: then finishes the batch in progress, releases the lease, and returns.
    ///
    /// With `OTEL_SDK_DISABLED=true` it only waits: the journal is left to other relays, and to later ones.
    ///
    /// Waits for a database that is away, or accepts no writes. One that waiting does not help (not attached, too new, wrong
    /// credentials) is an error. If the credentials worked before, it waits for ten minutes.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RelayError> {
        if self.is_disabled {
            tracing::warn!(
                "OTEL_SDK_DISABLED is true: relaying nothing, and leaving the journal to other relays"
            );
            self.status.update(|state| state.is_disabled = true);
            stop.cancelled().await;
            return Ok(());
        }
        for line in &self.ignored_exporters {
            tracing::warn!("{line}");
        }
        self_metrics::register_gauges(&self.status, self.settings.max_outbox);
        let poller = poller::Poller {
            store: &*self.store,
            status: &self.status,
            instruments: &self.instruments,
            capture: &self.capture,
            percent: AtomicI64::default(),
        };
        let ended = tokio::select! {
            ended = self.relay(&stop) => ended,
            never = poller.run(self.settings.look_every) => match never {},
        };
        poller.final_poll().await;
        ended
    }

    /// Holds the lease whenever it is free, until `stop`.
    async fn relay(&self, stop: &CancellationToken) -> Result<(), RelayError> {
        let longest = self.settings.longest_backoff;
        let mut waits = backoff(longest);
        let mut access = Access::default();
        let mut outage = Outage::default();
        while !stop.is_cancelled() {
            let began = Instant::now();
            let worked = match self.hold_lease(stop, &mut access, &mut outage).await {
                Err(RelayError::Store(error)) => Err(self.store.explain_denial(error).await.into()),
                worked => worked,
            };
            let error = match worked {
                Ok(()) => return Ok(()),
                Err(RelayError::Store(error)) if error.is_transient() => error,
                Err(RelayError::Store(error)) if access.may_return(&error, Instant::now()) => error,
                Err(error) => return Err(error),
            };
            if matches!(error, StoreError::LeaseLost) {
                tracing::warn!("{error}; standing by");
                waits = backoff(longest);
                continue;
            }
            let cause = error.to_string();
            if matches!(error, StoreError::Database(_) | StoreError::Newer { .. }) {
                self.status.update(|state| state.database_problem = Some(cause.clone()));
            }
            if began.elapsed() > self.settings.lease_term {
                // The relay worked for a while: this is another failure, not more of the last one.
                waits = backoff(longest);
            }
            let wait = waits.next().unwrap_or(longest);
            let retry_in_ms = wait.as_millis();
            match outage.failed(&cause, Instant::now()) {
                Report::Cause => tracing::warn!(retry_in_ms, "{cause}"),
                Report::Summary(Extent { duration, attempts }) => tracing::warn!(
                    outage_ms = duration.as_millis(),
                    attempts,
                    retry_in_ms,
                    "database has not been usable since the outage began: {cause}"
                ),
                Report::Nothing => {}
            }
            let _ = tokio::time::timeout(wait, stop.cancelled()).await;
        }
        Ok(())
    }

    /// Waits for the lease and works while it is held.
    async fn hold_lease(
        &self,
        stop: &CancellationToken,
        access: &mut Access,
        outage: &mut Outage,
    ) -> Result<(), RelayError> {
        self.store.check().await?;
        access.granted();
        self.store.check_original().await?;
        let waiting =
            lease::acquire(&*self.store, &self.holder, self.settings.lease_term, &self.status, stop);
        let Some(lease) = logging_recovery(waiting, outage).await? else {
            return Ok(());
        };
        tracing::info!(epoch = lease.epoch(), "took the lease");
        self.log_destinations();
        let worked = logging_recovery(self.work(&lease, stop), outage).await;
        self.status.update(|state| state.lease_epoch = None);
        // After an error too: the next holder, which may be this relay, need not wait for the lease to expire.
        let released = tokio::time::timeout(RELEASE_TIMEOUT, self.store.release_lease(&lease)).await;
        match released.unwrap_or_else(|_| Err(StoreError::timed_out())) {
            Ok(()) => tracing::info!(epoch = lease.epoch(), "released the lease"),
            // The next holder takes it, whoever that is.
            Err(StoreError::LeaseLost) => {}
            // The database is away, which is logged as the cause.
            Err(StoreError::Database(_)) if is_of_database(&worked) => {}
            Err(error) => tracing::warn!("failed to release the lease, which now expires: {error}"),
        }
        worked
    }

    /// Runs the tasks of one term, until `stop` or until one of them fails.
    async fn work(&self, lease: &Lease, stop: &CancellationToken) -> Result<(), RelayError> {
        // A relay that runs until idle may end before the next poll.
        self.capture.check(&*self.store, &self.status).await;
        self.warn_of_unserved_channels().await?;
        let instance = self.store.instance().await?;
        let mut keeper = std::pin::pin!(lease::keep(&*self.store, lease, self.settings.lease_term));
        let term = Arc::new(Term {
            store: Arc::clone(&self.store),
            lease: lease.clone(),
            encoder: Encoder::new(&self.resource, &instance),
            counts: self.instruments.of(&instance),
            instance,
            settings: self.settings.clone(),
            status: self.status.clone(),
            warned: Arc::clone(&self.warned),
            stop: stop.clone(),
            projected: CancellationToken::new(),
            journal_empty: Notify::new(),
            reconciled: CancellationToken::new(),
            committed: Notify::new(),
        });
        let mut tasks = self.start(&term);
        // The first failure ends the others at once: what they had in progress is found again in the database.
        loop {
            tokio::select! {
                lost = &mut keeper => return Err(lost.into()),
                ended = tasks.join_next() => match ended {
                    None => return Ok(()),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => return Err(error),
                    Some(Err(_)) => return Err(RelayError::Panicked),
                },
            }
        }
    }

    fn start(&self, term: &Arc<Term>) -> JoinSet<Result<(), RelayError>> {
        let mut tasks = JoinSet::new();
        let exporter = exporter::Exporter {
            term: Arc::clone(term),
            client: self.metrics.clone(),
            config: self.metrics_config.clone(),
        };
        tasks.spawn(exporter.run());
        let channels = self.sinks.iter().map(|(channel, _)| *channel).collect();
        tasks.spawn(projector::Projector { term: Arc::clone(term), channels }.run());
        tasks.spawn(reconciler::Reconciler { term: Arc::clone(term) }.run());
        tasks.spawn(housekeeper::Housekeeper { term: Arc::clone(term) }.run());
        for (channel, sink) in &self.sinks {
            let sender = sender::Sender { term: Arc::clone(term), channel: *channel, sink: Arc::clone(sink) };
            tasks.spawn(sender.run());
        }
        tasks
    }

    fn log_destinations(&self) {
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
                "OTEL_SERVICE_NAME is unset: runs sent now are stored as `{UNKNOWN_SERVICE}` and cannot be renamed"
            );
        }
    }

    /// Warns of requests of a channel that an earlier relay sent and this one does not.
    async fn warn_of_unserved_channels(&self) -> Result<(), StoreError> {
        for channel in Channel::ALL {
            let is_served = self.sinks.iter().any(|(served, _)| *served == channel);
            if !is_served && self.store.next_request(channel, None).await?.is_some() {
                tracing::warn!(
                    "the outbox has pending requests for {channel}, which this relay does not send: see --logs and \
                     OTEL_*_EXPORTER"
                );
            }
        }
        Ok(())
    }
}

/// `work`, which uses the database; logs the end of an outage once it has gone well for a while, or to its end.
async fn logging_recovery<T, E>(
    work: impl Future<Output = Result<T, E>>,
    outage: &mut Outage,
) -> Result<T, E> {
    let recovered_at = Instant::now();
    let mut work = std::pin::pin!(work);
    let done = tokio::time::timeout(STABLE_AFTER, &mut work).await;
    if !matches!(done, Ok(Err(_)))
        && let Some(Extent { duration, attempts }) = outage.recovered(recovered_at)
    {
        tracing::info!(outage_ms = duration.as_millis(), attempts, "database is usable again");
    }
    match done {
        Ok(done) => done,
        Err(_) => work.await,
    }
}

fn is_of_database<T>(result: &Result<T, RelayError>) -> bool {
    matches!(result, Err(RelayError::Store(StoreError::Database(_))))
}
