//! The command `runspan stuck`.

use std::time::Duration;

use clap::Args;

use super::{Database, Exit, Failure, counted, listing, print_line};
use runspan::DatabaseUrl;
use runspan::store::{Stuck, StuckRun};

/// The widest cell, in characters. JSON has everything.
const WIDEST: usize = 60;

/// List the runs that are stuck now: in flight, and long past what is usual for their workflow
///
/// A run is stuck when it was queued longer ago than twice what 99 of 100 runs of its workflow take, and at least a
/// minute; where too few of them have ended to tell, an hour. A run that waits for its children counts like any other.
#[derive(Args)]
pub(super) struct StuckArgs {
    #[command(flatten)]
    pub(super) database: Database,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 5 if a run is stuck, for scripts and checks
    #[arg(long)]
    exit_code: bool,
    /// List this many runs at most, the oldest first
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl StuckArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        store.check().await?;
        if store.attached_table().await?.is_none() {
            return Err(Failure::failed("no table has runspan's triggers: run `runspan attach` first"));
        }
        let stuck = store.stuck(usize::try_from(self.limit).unwrap_or(usize::MAX)).await?;
        if self.json {
            let listing = serde_json::json!(stuck);
            print_line(format_args!("{listing:#}"))?;
        } else {
            print_line(table(&stuck))?;
        }
        if self.exit_code && stuck.count > 0 {
            let are = if stuck.count == 1 { "is" } else { "are" };
            let line = format!("{} {are} stuck", counted(stuck.count, "run"));
            return Err(Failure::new(Exit::Stuck, line));
        }
        Ok(())
    }
}

/// How many, and below it a line for each.
fn table(stuck: &Stuck) -> String {
    let summary = match stuck.count {
        0 => return "nothing is stuck".to_owned(),
        1 => "1 run is stuck".to_owned(),
        count if count > stuck.runs.len() as u64 => {
            format!("{} are stuck, the oldest {} of them:", counted(count, "run"), stuck.runs.len())
        }
        count => format!("{} are stuck", counted(count, "run")),
    };
    listing(summary, ["run", "workflow", "target", "status", "age", "usual"], stuck.runs.iter().map(row))
}

fn row(run: &StuckRun) -> [String; 6] {
    [
        run.run_id.to_string(),
        in_a_line(&run.workflow_name),
        in_a_line(run.target.as_deref().unwrap_or_default()),
        run.status.clone(),
        roughly(run.age_seconds),
        run.usual_seconds.map_or_else(|| "unknown".to_owned(), roughly),
    ]
}

/// The two largest units of a duration: nobody needs the seconds of a day.
fn roughly(seconds: f64) -> String {
    let exact = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let whole = if exact < Duration::from_secs(1) {
        Duration::from_millis(u64::from(exact.subsec_millis()))
    } else {
        Duration::from_secs(exact.as_secs())
    };
    humantime::format_duration(whole).to_string().split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// What the application wrote, harmless to a terminal, and no wider than a line: one long name widens all rows.
fn in_a_line(text: &str) -> String {
    let mut line: String = text.chars().take(WIDEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(WIDEST).is_some() {
        line.pop();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_a_line_and_not_wide() {
        assert_eq!(in_a_line("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(in_a_line(&"ä".repeat(WIDEST)), "ä".repeat(WIDEST));
        assert_eq!(in_a_line(&"ä".repeat(WIDEST + 1)), "ä".repeat(WIDEST - 1) + "…");
    }
}
