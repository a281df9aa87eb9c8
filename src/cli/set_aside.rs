//! The command `runspan set-aside`: lists, retries and drops entries of the journal that cannot be parsed.

use clap::{Args, Subcommand};

use super::{Chosen, Database, Failure, counted, listing, print_line};
use runspan::DatabaseUrl;
use runspan::store::{Selection, SetAside};

/// List journal entries that cannot be parsed; retry or drop them
///
/// Such an entry names no run or no workflow, or was made by triggers of another version. It is kept with the reason, and stops
/// nothing. Its run lacks this one transition.
#[derive(Args)]
pub(super) struct SetAsideArgs {
    #[command(flatten)]
    pub(super) database: Database,
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON, with all columns of each entry
    #[arg(long, global = true)]
    json: bool,
    /// List this many entries at most, the oldest first
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
}

#[derive(Subcommand)]
enum Action {
    /// Put entries back into the journal, once this version can parse them
    Retry(Chosen),
    /// Drop entries permanently
    Drop(Chosen),
}

impl SetAsideArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let store = self.database.open()?;
        store.check().await?;
        match self.action.take() {
            None => {
                let entries = store.list_set_aside(self.limit).await?;
                if self.json {
                    print_line(format_args!("{:#}", serde_json::json!(entries)))
                } else {
                    print_line(table(&entries, store.status().await?.set_aside_entries))
                }
            }
            Some(Action::Retry(chosen)) => {
                let chosen = chosen.selection();
                let count = store.retry_set_aside(&chosen).await?;
                self.report(&chosen, count, "retried", "in the journal again")
            }
            Some(Action::Drop(chosen)) => {
                let chosen = chosen.selection();
                let count = store.discard_set_aside(&chosen).await?;
                self.report(&chosen, count, "dropped", "dropped")
            }
        }
    }

    /// What became of so many entries. Fails unless each id was that of an entry.
    fn report(&self, chosen: &Selection, count: u64, key: &str, done: &str) -> Result<(), Failure> {
        if self.json {
            print_line(serde_json::json!({ key: count }))?;
        } else {
            print_line(format_args!("{} {done}", counted(count, "entry")))?;
        }
        match chosen {
            Selection::Ids(ids) if ids.len() as u64 != count => Err(Failure::failed(format!(
                "found {count} of {} among the entries that are set aside: see `runspan set-aside`",
                counted(ids.len() as u64, "id")
            ))),
            _ => Ok(()),
        }
    }
}

/// A summary, and below it a line per entry.
fn table(entries: &[SetAside], all: i64) -> String {
    let summary = format!("set aside: {}", counted(all, "entry"));
    if entries.is_empty() {
        return summary;
    }
    let row = |entry: &SetAside| {
        let column = |name: &str| match &entry.entry[name] {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        [
            entry.seq.to_string(),
            entry.set_aside_at.clone(),
            column("run_id"),
            column("workflow_name"),
            column("to_status"),
            entry.error.clone(),
        ]
    };
    listing(summary, ["id", "set aside at", "run", "workflow", "to", "error"], entries.iter().map(row))
}
