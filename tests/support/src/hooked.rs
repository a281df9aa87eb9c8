//! A store with something to happen before and after each call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runspan::projection::Tracked;
use runspan::run::RunId;
use runspan::series::{Change, InFlight, Recorded};
use runspan::store::{
    Admin, Attached, Batch, CaptureProblem, Channel, Commit, Detached, IdentityStore, JournalStore, Lease,
    LeaseStore, LeaseView, OutboxEntry, OutboxStore, PendingTotals, Plan, Position, PurgeLoss, Reconciled,
    Request, Selection, SeriesStore, SetAside, SetAsideStore, Settlement, StatusStore, Store, StoreError,
    StoreStatus, Stuck, Trimmed,
};

/// What happens on either side of a call.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    async fn before(&self, call: &'static str);
    async fn after(&self, call: &'static str);

    /// What is answered to `capture` instead of what the store says.
    fn capture(&self) -> Option<Result<Vec<CaptureProblem>, StoreError>> {
        None
    }

    /// The same of `reconcile`, in place of what the store has found.
    fn reconciled(&self, found: Reconciled) -> Reconciled {
        found
    }
}

pub struct Hooked<H> {
    pub store: Arc<dyn Store>,
    pub hooks: Arc<H>,
}

/// The call, between its hooks.
macro_rules! hooked {
    ($self:ident.$method:ident($($argument:expr),*)) => {{
        $self.hooks.before(stringify!($method)).await;
        let done = $self.store.$method($($argument),*).await;
        $self.hooks.after(stringify!($method)).await;
        done
    }};
}

#[async_trait]
impl<H: Hooks> SeriesStore for Hooked<H> {
    async fn recorded(&self) -> Result<Option<Recorded>, StoreError> {
        hooked!(self.recorded())
    }

    async fn pending_totals(
        &self,
        lease: &Lease,
        after: i64,
        limit: usize,
    ) -> Result<PendingTotals, StoreError> {
        hooked!(self.pending_totals(lease, after, limit))
    }

    async fn record(&self, lease: &Lease, change: &Change) -> Result<(), StoreError> {
        // Once begun it goes on, as in a database, whether or not someone still waits for it.
        let (store, hooks) = (Arc::clone(&self.store), Arc::clone(&self.hooks));
        let (lease, change) = (lease.clone(), change.clone());
        let recording = tokio::spawn(async move {
            hooks.before("record").await;
            let done = store.record(&lease, &change).await;
            hooks.after("record").await;
            done
        });
        recording.await.unwrap()
    }

    async fn in_flight(&self) -> Result<Vec<InFlight>, StoreError> {
        hooked!(self.in_flight())
    }

    async fn skipped_entries(&self) -> Result<u64, StoreError> {
        hooked!(self.skipped_entries())
    }
}

#[async_trait]
impl<H: Hooks> LeaseStore for Hooked<H> {
    async fn lease(&self) -> Result<LeaseView, StoreError> {
        hooked!(self.lease())
    }

    async fn take_lease(
        &self,
        seen: &LeaseView,
        holder: &str,
        term: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        hooked!(self.take_lease(seen, holder, term))
    }

    async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<(), StoreError> {
        hooked!(self.renew_lease(lease, term))
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), StoreError> {
        hooked!(self.release_lease(lease))
    }
}

#[async_trait]
impl<H: Hooks> JournalStore for Hooked<H> {
    async fn position(&self, instance: &str) -> Result<Position, StoreError> {
        hooked!(self.position(instance))
    }

    async fn read(&self, position: Position, limit: usize) -> Result<Batch, StoreError> {
        hooked!(self.read(position, limit))
    }

    async fn open_runs(&self, runs: &[RunId]) -> Result<HashMap<RunId, Tracked>, StoreError> {
        hooked!(self.open_runs(runs))
    }

    async fn commit(&self, lease: &Lease, instance: &str, commit: &Commit) -> Result<(), StoreError> {
        hooked!(self.commit(lease, instance, commit))
    }

    async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        Ok(self.hooks.reconciled(hooked!(self.reconcile())?))
    }

    async fn make_room(&self) -> Result<(), StoreError> {
        hooked!(self.make_room())
    }

    async fn bring_forward(&self, position: &Position, everywhere: bool) -> Result<Option<u64>, StoreError> {
        hooked!(self.bring_forward(position, everywhere))
    }
}

#[async_trait]
impl<H: Hooks> OutboxStore for Hooked<H> {
    async fn next_request(
        &self,
        channel: Channel,
        after: Option<(i64, i64)>,
    ) -> Result<Option<Request>, StoreError> {
        hooked!(self.next_request(channel, after))
    }

    async fn settle(&self, lease: &Lease, settlements: &[Settlement]) -> Result<(), StoreError> {
        hooked!(self.settle(lease, settlements))
    }

    async fn trim(&self, lease: &Lease, max_bytes: u64) -> Result<Trimmed, StoreError> {
        hooked!(self.trim(lease, max_bytes))
    }

    async fn list(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        self.store.list(limit).await
    }

    async fn retry(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.store.retry(selection).await
    }

    async fn discard(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.store.discard(selection).await
    }
}

#[async_trait]
impl<H: Hooks> IdentityStore for Hooked<H> {
    async fn instance(&self) -> Result<String, StoreError> {
        hooked!(self.instance())
    }

    async fn check_original(&self) -> Result<(), StoreError> {
        hooked!(self.check_original())
    }

    async fn reset_identity(&self) -> Result<(), StoreError> {
        hooked!(self.reset_identity())
    }
}

#[async_trait]
impl<H: Hooks> SetAsideStore for Hooked<H> {
    async fn list_set_aside(&self, limit: usize) -> Result<Vec<SetAside>, StoreError> {
        hooked!(self.list_set_aside(limit))
    }

    async fn retry_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        hooked!(self.retry_set_aside(selection))
    }

    async fn discard_set_aside(&self, selection: &Selection) -> Result<u64, StoreError> {
        hooked!(self.discard_set_aside(selection))
    }
}

#[async_trait]
impl<H: Hooks> StatusStore for Hooked<H> {
    async fn check(&self) -> Result<(), StoreError> {
        hooked!(self.check())
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        hooked!(self.status())
    }

    async fn stuck(&self, limit: usize) -> Result<Stuck, StoreError> {
        self.store.stuck(limit).await
    }

    async fn attached_table(&self) -> Result<Option<String>, StoreError> {
        hooked!(self.attached_table())
    }

    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError> {
        let found = hooked!(self.capture());
        self.hooks.capture().unwrap_or(found)
    }
}

#[async_trait]
impl<H: Hooks> Admin for Hooked<H> {
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError> {
        self.store.attach_sql(plan).await
    }

    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError> {
        hooked!(self.attach(plan))
    }

    async fn purge_loss(&self) -> Result<Option<PurgeLoss>, StoreError> {
        self.store.purge_loss().await
    }

    async fn detach(&self, purge: bool) -> Result<Detached, StoreError> {
        self.store.detach(purge).await
    }
}
