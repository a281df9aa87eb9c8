//! What the tests with real processes have in common with tests/chaos.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a condition may take to come true on a busy machine before the test is given up.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// How often a condition is looked at.
pub const LOOK: Duration = Duration::from_millis(25);

/// Each writer's script under tests/sql/load, and how often it is chosen.
pub const MIX: [(&str, u32); 16] = [
    ("succeeded", 30),
    ("failed", 8),
    ("uncaught", 4),
    ("enqueue_failed", 4),
    ("incomplete", 4),
    ("abandoned", 6),
    ("reaper", 5),
    ("deleted", 4),
    ("ship", 8),
    ("refused", 4),
    ("rolled_back", 4),
    ("back_to_queued", 4),
    ("late", 4),
    ("inserted", 3),
    ("at_once", 4),
    ("slow", 2),
];

/// A variable of tests/with-services.
pub fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make test`"))
}

/// A file under tests/.
pub fn test_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in tests/").join(name)
}

/// Looks until there is something to see.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, look)
}

pub fn wait_within<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < deadline, "no {what} within {deadline:?}");
        std::thread::sleep(LOOK);
    }
}
