//! The command `runspan outbox`: lists, retries and drops requests.

use clap::{Args, Subcommand};

use super::{Chosen, Database, Failure, counted, listing, print_line};
use runspan::DatabaseUrl;
use runspan::store::{OutboxEntry, Selection, StoreStatus};

/// List pending and dead requests; retry or drop dead ones
#[derive(Args)]
pub(super) struct OutboxArgs {
    #[command(flatten)]
    pub(super) database: Database,
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// List this many requests at most, the oldest first
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
}

#[derive(Subcommand)]
enum Action {
    /// Retry dead requests
    Retry(Chosen),
    /// Drop dead requests permanently
    Drop(Chosen),
}

impl OutboxArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let store = self.database.open()?;
        store.check().await?;
        match self.action.take() {
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
                let chosen = chosen.selection();
                let count = store.retry(&chosen).await?;
                let waiting = if count == 1 { "waits" } else { "wait" };
                self.tell(count, "retried", &format!("{waiting} again"))?;
                all_were_dead(&chosen, count)
            }
            Some(Action::Drop(chosen)) => {
                let chosen = chosen.selection();
                let count = store.discard(&chosen).await?;
                self.tell(count, "dropped", if count == 1 { "is gone" } else { "are gone" })?;
                all_were_dead(&chosen, count)
            }
        }
    }

    /// What became of so many dead requests.
    fn tell(&self, count: u64, key: &str, done: &str) -> Result<(), Failure> {
        if self.json {
            print_line(serde_json::json!({ key: count }))
        } else {
            print_line(format_args!("{} {done}", counted(count, "dead request")))
        }
    }
}

/// Fails unless each id was that of a dead request.
fn all_were_dead(chosen: &Selection, count: u64) -> Result<(), Failure> {
    let Selection::Ids(ids) = chosen else { return Ok(()) };
    match ids.as_slice() {
        ids if ids.len() as u64 == count => Ok(()),
        [id] => Err(Failure::failed(format!("{id} is not the id of a dead request: see `runspan outbox`"))),
        ids => Err(Failure::failed(format!(
            "only {count} of {} ids are dead requests: see `runspan outbox`",
            ids.len()
        ))),
    }
}

/// A summary, and below it a line per request.
fn table(status: &StoreStatus, requests: &[OutboxEntry]) -> String {
    let summary = format!(
        "journal: {}; outbox: {} waiting ({}), {} dead; set aside: {}; skipped: {}",
        counted(status.journal_entries, "entry"),
        status.waiting_requests,
        bytesize::ByteSize::b(status.waiting_bytes.unsigned_abs()),
        status.dead_requests,
        counted(status.set_aside_entries, "entry"),
        counted(status.skipped_entries, "entry"),
    );
    if requests.is_empty() {
        return summary;
    }
    let row = |request: &OutboxEntry| {
        let state =
            request.dead.as_ref().map_or_else(|| "waiting".to_owned(), |said| format!("dead: {said}"));
        [
            request.id.to_string(),
            request.channel.to_string(),
            request.created_at.clone(),
            request.items.to_string(),
            request.bytes.to_string(),
            state,
        ]
    };
    listing(summary, ["id", "channel", "stored at", "items", "bytes", "state"], requests.iter().map(row))
}
