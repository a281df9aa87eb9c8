//! The waits between attempts that failed.
//!
//! The relay and the runtime wait on the same kinds of services (a database, a receiver, a queue), so they back off by
//! one rule.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Doubles from 200 ms up to `longest`, with jitter, and never ends.
pub(crate) fn backoff(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(longest)
        .without_max_times()
        .build()
}
