//! Panics in the log.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic;

use tracing::Level;

use crate::redact::redact;

/// Makes a panic one line of the log, with its place, instead of raw text on stderr. Where nobody takes log lines,
/// the hook that was there before goes on printing.
pub fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !tracing::enabled!(Level::ERROR) {
            return before(panic);
        }
        // It becomes the reason of a run too, which is redacted as well.
        let what = redact(panic.payload_as_str().unwrap_or("no message"));
        let place = panic.location().map(tracing::field::display);
        // Only where RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
        tracing::error!(place, backtrace, "panicked: {what}");
    }));
}
