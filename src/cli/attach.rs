//! The commands `runspan attach` and `runspan detach`.

use clap::Args;

use super::purge::Purge;
use super::{Database, Failure, counted, print, print_line};
use runspan::DatabaseUrl;
use runspan::store::{Detached, Plan, StoreError};

/// Install the journal: triggers on the table, and runspan's own schema
///
/// Idempotent. No column of the table changes. Its writers need no privileges on runspan's schema, and whatever is
/// wrong with the journal, their statements commit. Runs in flight are adopted.
#[derive(Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    pub(super) database: Database,
    /// The table of the runs
    #[arg(long, default_value = "workflow_runs", value_name = "TABLE")]
    table: String,
    /// A role that may call `runspan.dispatch_refused` (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    grant: Option<String>,
    /// Create runspan's tables although a publication FOR ALL TABLES would publish them (PostgreSQL)
    #[arg(long)]
    published: bool,
    /// Skip transitions, and count them, while the journal has this many entries: 10,000,000 unless it was attached with
    /// another limit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_journal_entries: Option<u32>,
    /// A role that may run the relay: grants what it needs (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    relay_role: Option<String>,
    /// Print the SQL instead of running it
    #[arg(long)]
    dry_run: bool,
}

impl AttachArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        let plan = Plan {
            table: self.table,
            grant: self.grant,
            published: self.published,
            max_journal_entries: self.max_journal_entries,
        };
        // Before anything is changed: the role may not exist.
        let relay_grants = match &self.relay_role {
            Some(role) => store.relay_grants(role).await?,
            None => String::new(),
        };
        if self.dry_run {
            print(store.attach_sql(&plan).await?)?;
            return print(relay_grants);
        }
        let attached = store.attach(&plan).await?;
        for warning in &attached.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(role) = &self.relay_role {
            store.grant_relay(role).await?;
        }
        print_line(format_args!("attached to {} in {}", attached.table, self.database.url()?))?;
        match attached.adopted {
            None => print_line("the relay adopts the runs in flight when it starts")?,
            Some(0) => {}
            Some(runs) => {
                let are = if runs == 1 { "is" } else { "are" };
                print_line(format_args!("{} in flight {are} adopted", counted(runs, "run")))?;
            }
        }
        print_line(
            "next: OTEL_SERVICE_NAME=APP OTEL_EXPORTER_OTLP_ENDPOINT=http://COLLECTOR:4318 runspan relay",
        )
    }
}

/// Remove the triggers; with --purge also runspan's schema
///
/// Without --purge the journal and the outbox stay: a relay can still send what they hold.
///
/// With --purge it prints what is lost, which roles lose their rights, and which calls of the application fail
/// afterwards. Where anything waits, or such a call is possible, it changes nothing without --yes.
#[derive(Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    pub(super) database: Database,
    /// Remove runspan's schema too, with everything that has not been sent
    #[arg(long)]
    purge: bool,
    /// Purge even if something is lost, or calls of `dispatch_refused` fail afterwards
    #[arg(long, requires = "purge")]
    yes: bool,
}

impl DetachArgs {
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        self.database.url().ok()
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let store = self.database.open()?;
        let loss = if self.purge { store.purge_loss().await? } else { None };
        if let Some(loss) = loss {
            let purge = Purge::new(loss, &self.database.url()?);
            print(&purge)?;
            if !self.yes {
                purge.may_go_on()?;
            }
        }
        match store.detach(self.purge).await? {
            Detached::Removed { table } => print_line(format_args!("detached from {table}")),
            Detached::Nothing => match store.check().await {
                Err(StoreError::NotAttached) => print_line("runspan is not attached: nothing to do"),
                Ok(()) | Err(StoreError::SchemaNewer { .. }) => print_line(
                    "the triggers are gone already; `runspan detach --purge` removes the schema too",
                ),
                Err(error) => Err(error.into()),
            },
        }
    }
}
