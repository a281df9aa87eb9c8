//! The command `runspan new-identity`.

use clap::Args;

use super::{Database, Failure, counted, print_line};
use runspan::DatabaseUrl;

/// Make a copy of a database independent of its original
///
/// A copied database has the original's journal, outbox and metrics: a relay would send all of it once more, as a second writer
/// of the same series. This discards what the copy has of them, and gives it another `service.instance.id`. Triggers and grants
/// stay.
///
/// Runs in flight in the copied table have the ids of the original's: end or delete them before you start a relay, or they are
/// reported from both databases.
#[derive(Args)]
pub(super) struct NewIdentityArgs {
    #[command(flatten)]
    pub(super) database: Database,
    /// Discard what is pending
    #[arg(long)]
    yes: bool,
}

impl NewIdentityArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        store.check().await?;
        let status = store.status().await?;
        let pending = format!(
            "{} of the journal, {} in the outbox ({} dead), {} set aside, {} in flight",
            counted(status.journal_entries, "entry"),
            counted(status.waiting_requests + status.dead_requests, "request"),
            status.dead_requests,
            counted(status.set_aside_entries, "entry"),
            counted(status.open_runs, "run"),
        );
        if !self.yes {
            return Err(Failure::failed(format!(
                "this would discard {pending}: if {} is a copy, add --yes; never do it to the original",
                self.database.url()?
            )));
        }
        store.reset_identity().await?;
        print_line(format_args!("discarded {pending}"))?;
        print_line(format_args!("{} is now {}", self.database.url()?, store.instance().await?))
    }
}
