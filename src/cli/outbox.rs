//! `runspan outbox`.

use clap::{Args, Subcommand};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::{Database, Failure, print_line};
use crate::store::{Listed, Selection, StoreStatus};

/// List what waits to be sent, and what no receiver takes and why; send that again, or drop it
#[derive(Args)]
pub(super) struct OutboxArgs {
    #[command(flatten)]
    database: Database,
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List this many requests at most, the oldest first
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
}

#[derive(Subcommand)]
enum Action {
    /// Let dead requests wait to be sent again
    Retry(Chosen),
    /// Remove dead requests for good
    Drop(Chosen),
}

#[derive(Args)]
#[group(required = true)]
struct Chosen {
    /// The ids of dead requests
    ids: Vec<i64>,
    /// All dead requests
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Chosen {
    fn selection(self) -> Selection {
        if self.all { Selection::All } else { Selection::Ids(self.ids) }
    }
}

impl OutboxArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        store.check().await?;
        match self.action {
            None => {
                let (status, requests) = (store.status().await?, store.list(self.limit).await?);
                if self.json {
                    let listing = serde_json::json!({ "status": status, "requests": requests });
                    print_line(format_args!("{listing:#}"))
                } else {
                    print_line(table(&status, &requests))
                }
            }
            Some(Action::Retry(chosen)) => {
                let count = store.retry(&chosen.selection()).await?;
                print_line(format_args!("{count} dead requests wait again"))
            }
            Some(Action::Drop(chosen)) => {
                let count = store.discard(&chosen.selection()).await?;
                print_line(format_args!("{count} dead requests are gone"))
            }
        }
    }
}

/// How all stands, and below it a line for each request.
fn table(status: &StoreStatus, requests: &[Listed]) -> String {
    let summary = format!(
        "journal: {} entries; outbox: {} waiting ({}), {} dead; set aside: {} entries; skipped: {} entries",
        status.journal_entries,
        status.waiting_requests,
        bytesize::ByteSize::b(status.waiting_bytes.unsigned_abs()),
        status.dead_requests,
        status.set_aside_entries,
        status.skipped_entries,
    );
    if requests.is_empty() {
        return summary;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["id", "channel", "stored at", "items", "bytes", "state"]);
    for request in requests {
        let state =
            request.dead.as_ref().map_or_else(|| "waiting".to_owned(), |said| format!("dead: {said}"));
        table.add_row([
            request.id.to_string(),
            request.channel.to_string(),
            request.created_at.clone(),
            request.items.to_string(),
            request.bytes.to_string(),
            state,
        ]);
    }
    format!("{summary}\n{table}")
}
