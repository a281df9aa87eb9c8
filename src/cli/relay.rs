//! The command `runspan relay`: options, health endpoint, exit code.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::{Database, Exit, Failure, counted, environment, stop_on_signal};
use runspan::DatabaseUrl;
use runspan::projection;
use runspan::relay::{self, Ended, Relay, RelayStatus, Settings};
use runspan::series::Buckets;
use runspan::store::{Store, StoreError};
use runspan::telemetry::RelayMetrics;

const ABOUT: &str = "\
Export the journal to an OTLP receiver until stopped

Several relays may run on one database: one is active, the others stand by. SIGTERM finishes the current batch.";

const VARIABLES: &str = "\
The receiver (each also for one signal: OTEL_EXPORTER_OTLP_TRACES_…, OTEL_EXPORTER_OTLP_LOGS_…, …_METRICS_…):
  OTEL_EXPORTER_OTLP_ENDPOINT            http://localhost:4318, or http://localhost:4317 with grpc
  OTEL_EXPORTER_OTLP_PROTOCOL            http/protobuf (default) or grpc
  OTEL_EXPORTER_OTLP_HEADERS             name=value,name=value
  OTEL_EXPORTER_OTLP_COMPRESSION         gzip or none (default)
  OTEL_EXPORTER_OTLP_TIMEOUT             milliseconds for one request (10000)
  OTEL_EXPORTER_OTLP_CERTIFICATE         PEM file: the trusted CA instead of the system's roots
  OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE  PEM file, with OTEL_EXPORTER_OTLP_CLIENT_KEY
  OTEL_SDK_DISABLED                      true: relay nothing, leave the journal to other relays
  OTEL_TRACES_EXPORTER                   none turns the spans off; OTEL_LOGS_EXPORTER the records,
                                         OTEL_METRICS_EXPORTER the metrics
  OTEL_METRIC_EXPORT_INTERVAL            milliseconds between two exports of the metrics (60000)
  OTEL_METRICS_EXEMPLAR_FILTER           always_off omits the exemplars
The application's resource on spans, records and metrics:
  OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
This process's log, on stderr:
  RUST_LOG                               runspan=info (default), runspan=debug; error, warn, info,
                                         debug, trace, off, alone or for a target";

/// The `service.instance.id` of the own metrics of relays that run until idle: a timer starts hundreds of them a day.
const UNTIL_IDLE: &str = "until-idle";

#[derive(Args)]
#[command(about = "Export the journal to an OTLP receiver until stopped", long_about = ABOUT, after_long_help = VARIABLES)]
pub(super) struct RelayArgs {
    #[command(flatten)]
    pub(super) database: Database,
    /// Where event records go; spans always go to the OTLP receiver, unless
    /// `OTEL_TRACES_EXPORTER=none`
    #[arg(long, value_enum, default_value_t = Logs::Otlp)]
    logs: Logs,
    /// Exit once journal and outbox are empty: 0; 3 if only undeliverable requests are left; 4 if the database is down;
    /// 130 if stopped before. Waits for a receiver that is down, but not with metrics: their sums are in the database,
    /// and the next relay exports them
    #[arg(long)]
    until_idle: bool,
    /// How large the outbox may grow while a receiver is down; beyond it the oldest requests are dropped
    #[arg(long, default_value = "2GiB", value_name = "SIZE", value_parser = outbox_bound)]
    max_outbox: ByteSize,
    /// How fast spans that waited over a minute are sent, in runs per second; 0: unlimited
    #[arg(long, default_value_t = 500, value_name = "N")]
    max_runs_per_second: u32,
    /// Send no two points of a series in one request of metrics, for receivers that reject them, such as Google Cloud
    /// Monitoring. A series' first point and its zero, or the points around a gap, are then sent in two requests
    #[arg(long)]
    one_point_per_series: bool,
    /// Serve /live and /ready here, e.g. 127.0.0.1:9477
    ///
    /// /live: 200 while the process answers. /ready: 200 while the database answers, also in standby; 503 otherwise.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    health_addr: Option<String>,
    /// How long the lease lasts unless renewed: the longest delay before a standby takes over
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = lease_term)]
    lease: Duration,
    /// The upper bounds of the duration histograms' buckets, in seconds, increasing; by default from 0.1 to 604800 (7 days).
    /// Choose them once: other bounds start new histograms, and quantiles over a range with both are too high
    #[arg(long, value_name = "S,S,…")]
    duration_buckets: Option<Buckets>,
    /// How long before its INSERT a run may have been created, by its `created_at`. Where that is earlier, in the future or
    /// missing, the run begins at its INSERT
    #[arg(long, default_value = "7d", value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_backdating: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Logs {
    /// To the OTLP receiver
    Otlp,
    /// To standard output, as JSON lines
    Stdout,
    /// To both
    Both,
}

impl From<Logs> for relay::Logs {
    fn from(logs: Logs) -> Self {
        match logs {
            Logs::Otlp => Self::Otlp,
            Logs::Stdout => Self::Stdout,
            Logs::Both => Self::Both,
        }
    }
}

fn lease_term(text: &str) -> Result<Duration, String> {
    let term = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // A stopped relay's transaction keeps the lease's row locked for 5 s at most.
    if term < Duration::from_secs(6) { Err("at least 6s".to_owned()) } else { Ok(term) }
}

fn outbox_bound(text: &str) -> Result<ByteSize, String> {
    let bound: ByteSize = text.parse().map_err(|_| "write a size, as in 512MiB or 2GiB")?;
    if bound < ByteSize::mib(1) {
        return Err("at least 1MiB: what does not fit is dropped".to_owned());
    }
    Ok(bound)
}

fn host_and_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    match port.parse::<u16>() {
        Ok(_) if !host.is_empty() => Ok(text.to_owned()),
        Ok(port) => Err(format!("write 127.0.0.1:{port}")),
        Err(_) => Err("write HOST:PORT, as in 127.0.0.1:9477".to_owned()),
    }
}

impl RelayArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        let settings = Settings {
            lease_term: self.lease,
            max_outbox: self.max_outbox.as_u64(),
            max_runs_per_second: self.max_runs_per_second,
            one_point_per_series: self.one_point_per_series,
            projection: projection::Settings {
                buckets: self.duration_buckets.clone().unwrap_or_default(),
                max_backdating: self.max_backdating,
            },
            ..Settings::default()
        };
        let metrics = if self.until_idle {
            RelayMetrics::install_as(UNTIL_IDLE, &environment)
        } else {
            RelayMetrics::install(&environment)
        };
        let metrics = metrics.map_err(Failure::usage)?;
        let relay = Relay::new(Arc::clone(&store), self.logs.into(), &environment)?.with(settings);
        // Held until the last export, which tells of it.
        let status = relay.status();
        let ended = self.relay(relay, &store, &status).await;
        metrics.shutdown().await;
        ended
    }

    async fn relay(self, relay: Relay, store: &Arc<dyn Store>, status: &RelayStatus) -> Result<(), Failure> {
        let stop = stop_on_signal()?;
        if let Some(address) = self.health_addr {
            serve_health(address, store, status, &stop).await?;
        }
        if self.until_idle {
            stop.run_until_cancelled(store.check())
                .await
                .ok_or_else(|| Failure::new(Exit::Interrupted, "stopped before anything was sent"))?
                .map_err(database_away)?;
        }
        tracing::info!(database = %self.database.url()?, "relaying");
        let mut working = std::pin::pin!(relay.run(stop.clone()));
        if !self.until_idle {
            return Ok(working.await?);
        }
        let ended = tokio::select! {
            ended = relay::until_idle(&**store, status) => {
                let ended = ended.map_err(database_away)?;
                stop.cancel();
                working.await?;
                ended.and_metrics(status)
            }
            stopped = &mut working => {
                stopped?;
                what_is_left(&**store).await
            }
        };
        let undeliverable = |line| Err(Failure::new(Exit::Undeliverable, line));
        match ended {
            Ended::Idle => Ok(()),
            Ended::Stopped => Err(Failure::new(Exit::Interrupted, "stopped before all was sent")),
            Ended::Dead(requests) => undeliverable(format!(
                "everything else is sent, but {} {} dead: see `runspan outbox`",
                counted(requests, "request"),
                if requests == 1 { "is" } else { "are" }
            )),
            Ended::Refused(said) => {
                undeliverable(format!("the receiver does not take what is left; all is kept: {said}"))
            }
            Ended::DatabaseAway(problem) => {
                Err(Failure { of_database: true, ..Failure::new(Exit::DatabaseAway, problem) })
            }
        }
    }
}

/// The remaining data of a relay that was stopped before it was idle.
async fn what_is_left(store: &dyn Store) -> Ended {
    // A stop must not wait long for a database that is down.
    match tokio::time::timeout(Duration::from_secs(3), store.status()).await {
        Ok(Ok(status)) if status.journal_entries + status.waiting_requests == 0 => {
            if status.dead_requests == 0 { Ended::Idle } else { Ended::Dead(status.dead_requests) }
        }
        _ => Ended::Stopped,
    }
}

fn database_away(error: StoreError) -> Failure {
    let exit = if error.is_transient() { Exit::DatabaseAway } else { Exit::Failed };
    Failure { exit, ..error.into() }
}

async fn serve_health(
    address: String,
    store: &Arc<dyn Store>,
    status: &RelayStatus,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .map_err(|error| Failure::usage(format!("cannot listen on --health-addr {address}: {error}")))?;
    let address = listener.local_addr().map_or(address, |address| address.to_string());
    tracing::info!("health on http://{address}/ready");
    tokio::spawn(relay::serve_health(listener, Arc::clone(store), status.clone(), stop.clone()));
    Ok(())
}
