//! Subscribers for a part of a test.

use std::sync::LazyLock;

use tracing::Dispatch;
use tracing_subscriber::Registry;

/// A subscriber to add layers to.
///
/// Where a process has just one, tracing asks the current thread's whether it wants a callsite, and keeps the answer:
/// a thread of another test, which has none, would switch that callsite off for all. So there are always two.
pub fn registry() -> Registry {
    static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    LazyLock::force(&ANOTHER);
    tracing_subscriber::registry()
}
