//! PostgreSQL's own load generator.

use std::fs;
use std::process::Command;

use super::{Failure, Variant};

/// What is asked of it.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) clients: usize,
    /// Each client's.
    pub(super) runs: usize,
    /// How the clients talk: `prepared` once, or `extended`, parsed anew each time.
    pub(super) protocol: &'static str,
    /// Runs a second, all clients together; else as fast as it goes.
    pub(super) rate: Option<usize>,
}

/// What it saw. Latencies in milliseconds, sorted: those of a whole run, its three transactions one after another.
pub(super) struct Seen {
    pub(super) runs: usize,
    pub(super) rate: f64,
    pub(super) latencies: Vec<f64>,
    /// From when a run was due, whether or not a client was free.
    pub(super) since_due: Vec<f64>,
}

impl Load {
    pub(super) fn put_on(self, url: &str, variant: Variant) -> Result<Seen, Failure> {
        let directory = tempfile::tempdir()?;
        let script = directory.path().join("run.sql");
        fs::write(
            &script,
            match variant {
                Variant::Outbox => include_str!("run_with_outbox.sql"),
                _ => include_str!("run.sql"),
            },
        )?;
        let mut command = Command::new("pgbench");
        command
            .args(["--no-vacuum", "--log", "--log-prefix"])
            .arg(directory.path().join("latencies"))
            .args(["--client", &self.clients.to_string(), "--jobs", &self.clients.min(2).to_string()])
            .args(["--transactions", &self.runs.to_string(), "--protocol", self.protocol])
            .arg("--file")
            .arg(&script)
            .args(self.rate.map(|rate| format!("--rate={rate}")))
            .arg(url);
        let output = command.output().map_err(|error| format!("pgbench: {error}"))?;
        if !output.status.success() {
            return Err(format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let said = String::from_utf8(output.stdout)?;
        let rate = said
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next())
            .ok_or("pgbench does not say how fast it was")?
            .parse()?;
        let (mut latencies, mut since_due) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory.path())? {
            let path = entry?.path();
            if path == script {
                continue;
            }
            // client, its run, µs, script, when, and if there is a rate: how late it began
            for line in fs::read_to_string(path)?.lines() {
                let mut fields = line.split(' ');
                let whole: f64 = fields.nth(2).ok_or("pgbench's log")?.parse()?;
                let lag: f64 = fields.nth(3).map_or(Ok(0.0), str::parse)?;
                since_due.push(whole / 1e3);
                latencies.push((whole - lag) / 1e3);
            }
        }
        let runs = self.clients * self.runs;
        if latencies.len() != runs {
            return Err(format!("{} of {runs} runs went through", latencies.len()).into());
        }
        latencies.sort_by(f64::total_cmp);
        since_due.sort_by(f64::total_cmp);
        Ok(Seen { runs, rate, latencies, since_due })
    }
}

/// Of sorted ones.
pub(super) fn mean(latencies: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let count = latencies.len() as f64;
    latencies.iter().sum::<f64>() / count
}

/// Of sorted ones.
pub(super) fn p99(latencies: &[f64]) -> f64 {
    latencies[latencies.len() * 99 / 100]
}
