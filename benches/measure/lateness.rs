//! How late spans and records are: from a transition to its arrival, at 1,000 runs a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use runspan::otlp::Signal;
use runspan::otlp::config::Protocol;
use runspan::relay::{Logs, Relay};
use tokio::task::JoinSet;

use crate::Failure;
use crate::backlog::Backlog;
use crate::receiver::Receiver;
use crate::report::Report;

const RUNS_A_SECOND: u32 = 1_000;
const SECONDS: u32 = 60;
/// Runs begun at a time, so that the clock ticks seldom enough.
const AT_ONCE: u32 = 5;

/// Milliseconds, of run spans and of records.
type Late = Arc<Mutex<[Vec<f64>; 2]>>;

pub(crate) async fn run() -> Result<(), Failure> {
    let Some(backlog) = Backlog::new("lateness").await? else { return Ok(()) };
    backlog.execute("CREATE SEQUENCE numbers").await?;
    let late = Late::default();
    let told = Arc::clone(&late);
    let receiver = Receiver::observing(Protocol::Grpc, move |signal, body| note(&told, signal, body)).await?;
    let env = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(receiver.endpoint.clone()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("grpc".to_owned()),
        "OTEL_SERVICE_NAME" => Some("bench".to_owned()),
        _ => None,
    };
    let relay = Relay::new(Arc::clone(&backlog.store), Logs::Otlp, &env)?.spawn();
    let began = Instant::now();
    let mut writers: JoinSet<Result<(), sqlx::Error>> = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * AT_ONCE / RUNS_A_SECOND);
    for _ in 0..RUNS_A_SECOND * SECONDS / AT_ONCE {
        ticks.tick().await;
        for _ in 0..AT_ONCE {
            writers.spawn(live(backlog.pool.clone()));
        }
        while let Some(done) = writers.try_join_next() {
            done??;
        }
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let rate = f64::from(RUNS_A_SECOND * SECONDS) / began.elapsed().as_secs_f64();
    relay.drain().await?;
    let mut late = std::mem::take(&mut *late.lock().unwrap_or_else(PoisonError::into_inner));
    let mut report =
        Report::new(format!("lateness, {rate:.0} runs/s, {SECONDS} s"), &["run spans", "records"]);
    for (signal, millis) in late.iter_mut().enumerate() {
        millis.sort_by(f64::total_cmp);
        for (name, percent) in [("p50, ms", 50), ("p99, ms", 99), ("most, ms", 100)] {
            let place = (millis.len() * percent).div_ceil(100).saturating_sub(1);
            report.add(signal, name, millis[place]);
        }
        #[expect(clippy::cast_precision_loss, reason = "small")]
        report.add(signal, "how many", millis.len() as f64);
    }
    report.show()?;
    backlog.remove().await
}

/// A run's three transactions, of a statement each.
async fn live(pool: sqlx::PgPool) -> Result<(), sqlx::Error> {
    let id = uuid::Uuid::now_v7();
    sqlx::query(
        "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
         VALUES ($1, 'plan', 'issue', 'acme', 'widgets', nextval('numbers'))",
    )
    .bind(id)
    .execute(&pool)
    .await?;
    for sql in [
        "UPDATE workflow_runs SET status = 'running' WHERE id = $1",
        "UPDATE workflow_runs SET status = 'succeeded' WHERE id = $1",
    ] {
        sqlx::query(sql).bind(id).execute(&pool).await?;
    }
    Ok(())
}

fn note(late: &Late, signal: Signal, body: &[u8]) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let since = |nanos: u64| now.saturating_sub(u128::from(nanos)) as f64 / 1e6;
    let times: Vec<f64> = match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(body)
            .unwrap_or_default()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            // The span of a wait is told as the wait ends, and has no events.
            .filter(|span| !span.events.is_empty())
            .map(|span| since(span.end_time_unix_nano))
            .collect(),
        Signal::Logs => ExportLogsServiceRequest::decode(body)
            .unwrap_or_default()
            .resource_logs
            .into_iter()
            .flat_map(|resource| resource.scope_logs)
            .flat_map(|scope| scope.log_records)
            .map(|record| since(record.time_unix_nano))
            .collect(),
        Signal::Metrics => return,
    };
    let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
    late[usize::from(signal == Signal::Logs)].extend(times);
}
