//! The command `runspan demo`.

use std::sync::OnceLock;

use clap::Args;

use super::{Exit, Failure, environment, note, print, print_line, stop_on_signal};
use crate::demo::{self, DemoError, Progress};
use runspan::DatabaseUrl;
use runspan::telemetry;

const EXAMPLES: &str = "\
Examples:
  runspan demo
  runspan demo --json | jq '.records[] | select(.level == \"error\")'
  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 runspan demo      # to your Collector too
  runspan demo --database-url sqlite:demo.db                          # keep what is written

All OTEL_EXPORTER_OTLP_… variables count, as in `runspan relay --help`.";

/// See it work: webhook deliveries become runs, and runs become spans, in a few seconds
///
/// Needs nothing. On a SQLite file that goes with the demo it plays GitHub webhook deliveries through the real
/// thing: dispatcher, queue, executor, orchestrator and reaper, the triggers, the journal, an embedded relay, and
/// OTLP over a socket to a receiver in this process. What that receives is shown: the waterfall of a composite run
/// with what its handlers did, an event of each kind, numbers for each workflow. If spans and rows do not agree,
/// the exit code is 1.
///
/// The demo writes into another database only with --database-url (`DATABASE_URL` does not count), and never into
/// one that serves an application.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DemoArgs {
    /// Play it on this database instead, and leave the table there: `postgres://…`, percent-encoded, or
    /// `sqlite:PATH`
    // A plain text: clap would repeat a wrong value, with its password.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Print everything that was received as JSON
    #[arg(long)]
    json: bool,
}

impl DemoArgs {
    /// The database to play on, if not a file of the demo's own.
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database().ok().flatten()
    }

    fn database(&self) -> Result<Option<DatabaseUrl>, Failure> {
        self.database_url.as_deref().map(str::parse).transpose().map_err(Failure::usage)
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let database = self.database()?;
        let stop = stop_on_signal()?;
        // A handler of the demo panics: that is part of its span.
        telemetry::log_panics();
        let unprinted = OnceLock::new();
        let tell = |progress: Progress| match progress {
            _ if self.json => {}
            Progress::Begun { .. } => {
                if let Err(failure) = print_line(&progress) {
                    let _ = unprinted.set(failure);
                    stop.cancel();
                }
            }
            _ => note(&progress),
        };
        let played = Box::pin(demo::run(database, &environment, &stop, &tell)).await;
        if let Some(failure) = unprinted.into_inner() {
            return Err(failure);
        }
        let report = played?;
        if self.json {
            let report = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
            print_line(report)?;
        } else {
            print(report.to_text())?;
        }
        report.problem().map_or(Ok(()), |problem| Err(Failure::failed(problem)))
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Config(_) | DemoError::Client(_) => Self::usage(error),
            DemoError::Relay(error) => error.into(),
            DemoError::Store(error) => error.into(),
            DemoError::Interrupted => Self::new(Exit::Interrupted, error),
            _ => Self::failed(error),
        }
    }
}
