//! What a relay costs at rest.

use std::time::Duration;

use runspan::otlp::config::Protocol;

use crate::Failure;
use crate::backlog::Backlog;
use crate::child::Resting;
use crate::receiver::Receiver;
use crate::report::{Bound, Report};

const WINDOW: Duration = Duration::from_secs(20);
const ROUNDS: usize = 3;

/// How many runs have passed before. What they leave behind must not matter.
const PASSED: [(&str, u32); 2] =
    [("a relay at rest", 1_000), ("a relay at rest after a million runs", 1_000_000)];

/// The most blocks a second.
const MOST_BLOCKS: f64 = 100.0;

pub(crate) async fn run() -> Result<(), Failure> {
    for (title, runs) in PASSED {
        after(title, runs).await?;
    }
    Ok(())
}

async fn after(title: &str, runs: u32) -> Result<(), Failure> {
    let Some(backlog) = Backlog::new("rest").await? else { return Ok(()) };
    backlog.write(runs, 100, 20).await?;
    let receiver = Receiver::start(Protocol::Grpc).await?;
    let relay = Resting::start(backlog.url(), &receiver.endpoint)?;
    while !backlog.is_drained().await? {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // As autovacuum does within minutes.
    backlog.execute("VACUUM ANALYZE").await?;
    let mut report = Report::new(title, &["a second"]);
    for round in 0..=ROUNDS {
        let before = (relay.cpu_seconds()?, backlog.told().await?, receiver.bytes());
        tokio::time::sleep(WINDOW).await;
        let after = (relay.cpu_seconds()?, backlog.told().await?, receiver.bytes());
        // The first is the drain.
        if round > 0 {
            let seconds = WINDOW.as_secs_f64();
            report.add(0, "CPU of the relay, ms", (after.0 - before.0) * 1e3 / seconds);
            report.add(0, "transactions", (after.1.0 - before.1.0) / seconds);
            report.add(0, "write-ahead log, bytes", (after.1.1 - before.1.1) / seconds);
            report.add(0, "blocks", (after.1.2 - before.1.2) / seconds);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            report.add(0, "sent, bytes", (after.2 - before.2) as f64 / seconds);
        }
    }
    drop(relay);
    report.goal("blocks a second", Bound::AtMost(MOST_BLOCKS), report.rounds(0, "blocks").to_vec());
    report.show()?;
    backlog.remove().await
}
