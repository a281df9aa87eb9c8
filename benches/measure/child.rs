//! A relay in a process of its own, so that its memory and its CPU are its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runspan::relay::{Logs, Relay, Settings};
use runspan::store;

use crate::Failure;

/// The first argument of such a process; the second is what it is to do.
pub(crate) const RELAY: &str = "--relay";
const DRAIN: &str = "drain";
const REST: &str = "rest";

/// How often a relay that drains is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Clock ticks a second: 100 on every Linux that matters (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// What a drain came to.
pub(crate) struct Drained {
    /// From the relay's start to the last acknowledgement: that nothing is left is found out later.
    pub(crate) took: Duration,
    pub(crate) most_mib: f64,
}

/// The child itself.
pub(crate) async fn run(task: &str) -> Result<(), Failure> {
    let store = store::open(&std::env::var("DATABASE_URL")?.parse()?)?;
    let relay = Relay::new(store, Logs::Otlp, &|name| std::env::var(name).ok())?;
    let began = Instant::now();
    let relay = relay.with(Settings { max_runs_per_second: 0, ..Settings::default() }).spawn();
    if task == REST {
        println!("{}", std::process::id());
        // Until the parent hangs up.
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        return Ok(relay.stop().await?);
    }
    let status = relay.status().clone();
    let drained = relay.drain();
    tokio::pin!(drained);
    let (mut delivered, mut took) = (0, Duration::ZERO);
    loop {
        let now = status.snapshot().delivered_items;
        if now > delivered {
            (delivered, took) = (now, began.elapsed());
        }
        tokio::select! {
            ended = &mut drained => {
                ended?;
                break;
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    println!("{} {}", took.as_millis(), status_kib("VmHWM:")?);
    Ok(())
}

/// Drains the database at `url` into `endpoint`.
pub(crate) async fn drain(url: &str, endpoint: &str) -> Result<Drained, Failure> {
    let mut command = command(DRAIN, url, endpoint)?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8(output.stdout)?;
    let (millis, kib) = said.trim().split_once(' ').ok_or_else(|| format!("the relay said {said:?}"))?;
    Ok(Drained { took: Duration::from_millis(millis.parse()?), most_mib: kib.parse::<f64>()? / 1024.0 })
}

/// A relay that works until it is dropped.
pub(crate) struct Resting(Child);

impl Resting {
    pub(crate) fn start(url: &str, endpoint: &str) -> Result<Self, Failure> {
        let mut child = command(REST, url, endpoint)?.stdin(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        Ok(Self(child))
    }

    /// How many seconds of a processor it has used.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // After the name, which may hold anything: state is the third field, utime and stime the 14th and 15th.
        let fields: Vec<&str> =
            stat.rsplit_once(')').ok_or("no name in stat")?.1.split_whitespace().collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn command(task: &str, url: &str, endpoint: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args([RELAY, task])
        .env("DATABASE_URL", url)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_SERVICE_NAME", "bench")
        .stdout(Stdio::piped());
    Ok(command)
}

fn status_kib(key: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
