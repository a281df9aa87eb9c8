//! How long a relay that has worked waits for a database that turns it away.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::StoreError;

/// A role without LOGIN, a password that is being changed, a database that is being restored: usually a matter of seconds. After
/// that the relay ends, so that whoever supervises it starts it with the credentials of today.
const TIMEOUT: Duration = Duration::from_mins(10);

/// Whether the database lets the relay in.
#[derive(Debug, Default)]
pub(super) enum Access {
    /// It never did: something is configured wrongly.
    #[default]
    Never,
    Granted,
    DeniedSince(Instant),
}

impl Access {
    pub(super) fn granted(&mut self) {
        *self = Self::Granted;
    }

    /// Whether the error may pass.
    pub(super) fn may_return(&mut self, error: &StoreError, now: Instant) -> bool {
        if !error.is_access_denied() {
            return false;
        }
        match *self {
            Self::Never => false,
            Self::Granted => {
                *self = Self::DeniedSince(now);
                true
            }
            Self::DeniedSince(since) => now.duration_since(since) < TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_relay_that_has_worked_waits_and_not_for_ever() {
        let now = Instant::now();
        let denied = StoreError::denied();
        let mut access = Access::default();
        assert!(!access.may_return(&denied, now));
        for _ in 0..2 {
            access.granted();
            assert!(!access.may_return(&StoreError::NotAttached, now));
            assert!(access.may_return(&denied, now));
            assert!(access.may_return(&denied, now + TIMEOUT - Duration::from_secs(1)));
            assert!(!access.may_return(&denied, now + TIMEOUT));
        }
    }
}
