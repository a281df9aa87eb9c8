//! How fast a backlog is drained, beside what sends the same spans from memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runspan::otlp::config::Protocol;
use runspan::projection::{self, Span, project};
use runspan::relay::{Logs, Relay, Settings};
use runspan::store::Position;

use crate::Failure;
use crate::backlog::Backlog;
use crate::bare;
use crate::receiver::Receiver;
use crate::report::Report;

/// Of the backlog.
const RUNS: u32 = 300_000;
const IN_FLIGHT: u32 = 100;
const WORKFLOWS: u32 = 20;
const ROUNDS: usize = 3;

/// Spans a run: itself and its wait.
const SPANS: u32 = 2;
/// Records a run: queued, running, succeeded, completed.
const RECORDS: u32 = 4;

const PROTOCOLS: [(&str, Protocol); 2] = [("gRPC", Protocol::Grpc), ("HTTP", Protocol::HttpProtobuf)];

pub(crate) async fn run() -> Result<(), Failure> {
    let Some(backlog) = Backlog::new("drain").await? else { return Ok(()) };
    backlog.write(RUNS, IN_FLIGHT, WORKFLOWS).await?;
    let spans = spans(&backlog).await?;
    let mut reports = PROTOCOLS.map(|(name, _)| {
        let variants = ["opentelemetry-otlp", "runspan, spans alone", "runspan, all signals"];
        Report::new(format!("drain over {name}"), &variants)
    });
    let mut in_process =
        Report::new("a span a run in the application", &["batch processor", "runspan, spans alone"]);
    for round in 0..=ROUNDS {
        for ((_, protocol), report) in PROTOCOLS.iter().zip(&mut reports) {
            let receiver = Receiver::start(*protocol).await?;
            let count = usize::try_from(RUNS * SPANS)?;
            let bare = bare::export(*protocol, &receiver.endpoint, &spans, count).await?;
            let mut add = |variant, name, value| {
                // The first round warms up.
                if round > 0 {
                    report.add(variant, name, value);
                }
            };
            add(0, "spans/s", bare);
            for (variant, records) in [(1, 0), (2, RECORDS)] {
                backlog.restore().await?;
                let before = receiver.bytes();
                let took = drain(&backlog, &receiver, *protocol, records).await?;
                let runs = f64::from(RUNS) / took.as_secs_f64();
                add(variant, "spans/s", runs * f64::from(SPANS));
                add(variant, "runs/s", runs);
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let bytes = (receiver.bytes() - before) as f64;
                add(variant, "bytes sent a run", bytes / f64::from(RUNS));
                if round > 0 && variant == 1 && *protocol == Protocol::Grpc {
                    in_process.add(1, "runs/s that arrived", runs);
                    in_process.add(1, "of 100 lost", 0.0);
                }
            }
            if *protocol == Protocol::Grpc {
                let made = bare::in_process(&receiver.endpoint, &spans, usize::try_from(RUNS)?).await?;
                if round > 0 {
                    in_process.add(0, "runs/s that arrived", made.per_second);
                    in_process.add(0, "of 100 lost", made.lost);
                }
            }
        }
    }
    for report in reports.iter().chain([&in_process]) {
        report.show()?;
    }
    backlog.remove().await
}

/// Drains the backlog; how long that took, from the relay's start to the last acknowledgement.
async fn drain(
    backlog: &Backlog,
    receiver: &Receiver,
    protocol: Protocol,
    records: u32,
) -> Result<Duration, Failure> {
    let protocol = if protocol == Protocol::Grpc { "grpc" } else { "http/protobuf" };
    let env = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(receiver.endpoint.clone()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
        "OTEL_SERVICE_NAME" => Some("bench".to_owned()),
        "OTEL_LOGS_EXPORTER" if records == 0 => Some("none".to_owned()),
        _ => None,
    };
    let relay = Relay::new(Arc::clone(&backlog.store), Logs::Otlp, &env)?;
    let began = Instant::now();
    let relay = relay.with(Settings { max_runs_per_second: 0, ..Settings::default() }).spawn();
    let expected = u64::from(RUNS * (SPANS + records));
    while relay.status().snapshot().delivered_items < expected {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    relay.stop().await?;
    Ok(took)
}

/// The first spans of the backlog, as the relay makes them.
async fn spans(backlog: &Backlog) -> Result<Vec<Span>, Failure> {
    let batch = backlog.store.read(Position::default(), 3_000).await?;
    let entries = batch.entries.into_iter().map(|(_, entry)| entry).collect::<Result<Vec<_>, _>>()?;
    Ok(project(std::collections::HashMap::new(), entries, &projection::Settings::default()).spans)
}
