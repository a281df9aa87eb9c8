//! Panics in the log.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic;

use tracing::Level;

use crate::redact::redact;

/// Logs a panic as one line with its location, instead of raw text on stderr. Without a subscriber that accepts errors,
/// the previous hook prints it.
pub fn log_panics() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !tracing::enabled!(Level::ERROR) {
            return previous(panic);
        }
        // The message also becomes the reason of a run, which is redacted the same way.
        let what = redact(panic.payload_as_str().unwrap_or("no message"));
        let place = panic.location().map(tracing::field::display);
        // Only where RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
        tracing::error!(place, backtrace, "panicked: {what}");
    }));
}
