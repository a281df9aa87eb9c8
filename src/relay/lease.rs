//! Acquiring and keeping the lease.
//!
//! A relay that slept past its lease notices twice: [`keep`] finds its renewal refused, and every transaction locks the
//! lease's row first, so nothing that it had in progress is written.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::status::RelayStatus;
use crate::store::{Lease, LeaseView, Store, StoreError};

/// How often a standby polls the lease.
const STANDBY_POLL: Duration = Duration::from_millis(500);

/// Waits until the lease is free and takes it; `None` when asked to stop first.
///
/// A lease that `holder` itself still has, from before a failure, is taken again at once: the new epoch fences off
/// whatever the old one may still have in progress.
pub(super) async fn acquire(
    store: &dyn Store,
    holder: &str,
    term: Duration,
    status: &RelayStatus,
    stop: &CancellationToken,
) -> Result<Option<Lease>, StoreError> {
    let mut watch = Watch::default();
    loop {
        let seen = store.lease().await?;
        let unchanged_for = watch.unchanged_for(&seen, Instant::now());
        let free = seen.expired || seen.holder.as_deref() == Some(holder) || unchanged_for > term;
        if free && let Some(lease) = store.take_lease(&seen, holder, term).await? {
            status.update(|state| {
                state.stands_by = false;
                state.lease_epoch = Some(lease.epoch());
            });
            return Ok(Some(lease));
        }
        if !free && watch.is_first() {
            let holder = seen.holder.as_deref().unwrap_or_default();
            status.update(|state| {
                state.stands_by = true;
                state.database_problem = None;
            });
            tracing::info!(holder, epoch = seen.epoch, "another relay holds the lease; standing by");
        }
        if tokio::time::timeout(STANDBY_POLL, stop.cancelled()).await.is_ok() {
            return Ok(None);
        }
    }
}

/// Renews the lease until it is lost; returns why.
///
/// A renewal that fails or takes too long is soon tried again, until a term has passed: the lease may still be held.
pub(super) async fn keep(store: &dyn Store, lease: &Lease, term: Duration) -> StoreError {
    let mut renewed = Instant::now();
    let usual = term / 3;
    let mut pause = usual;
    loop {
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        let why = match tokio::time::timeout(usual, store.renew_lease(lease, term)).await {
            Ok(Ok(())) => {
                renewed = began;
                pause = usual;
                continue;
            }
            Ok(Err(StoreError::LeaseLost)) => return StoreError::LeaseLost,
            Ok(Err(error)) => error,
            Err(_) => StoreError::timed_out(),
        };
        if renewed.elapsed() > term {
            return why;
        }
        if pause == usual {
            tracing::warn!("failed to renew the lease: {why}");
        }
        pause = term / 20;
    }
}

/// Watches a lease by this process's monotonic clock: a holder that does not renew it for a term is gone, whatever the
/// database's clock says (it may have gone back).
#[derive(Default)]
struct Watch {
    last: Option<(i64, i64, Instant)>,
    polls: u32,
}

impl Watch {
    fn unchanged_for(&mut self, seen: &LeaseView, now: Instant) -> Duration {
        self.polls += 1;
        match self.last {
            Some((epoch, expires_at, since)) if (epoch, expires_at) == (seen.epoch, seen.expires_at) => {
                now.duration_since(since)
            }
            _ => {
                self.last = Some((seen.epoch, seen.expires_at, now));
                Duration::ZERO
            }
        }
    }

    fn is_first(&self) -> bool {
        self.polls == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_without_renewal_is_free_by_the_monotonic_clock() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let view = |expires_at| LeaseView { holder: None, epoch: 4, expires_at, expired: false };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.unchanged_for(&view(1), after(0)), Duration::ZERO);
        assert_eq!(watch.unchanged_for(&view(1), after(7)), Duration::from_secs(7));
        // Renewed: the wait starts over.
        assert_eq!(watch.unchanged_for(&view(2), after(9)), Duration::ZERO);
        assert_eq!(watch.unchanged_for(&view(2), after(20)), Duration::from_secs(11));
    }
}
