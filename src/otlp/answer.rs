//! Classifies a receiver's answer: what it means for the request.
//!
//! Everything here is a pure function of the answer and the configuration. The rules are stricter than OTLP's
//! (`opentelemetry-proto`, `docs/specification.md`, "Failures"), which lets a client drop whatever is not retryable:
//! here a request is rejected only if the receiver has parsed it and reported it as invalid.

mod grpc;
mod http;
#[cfg(test)]
mod tests;
mod transport;

use std::{fmt, time::Duration};

pub use self::{
    grpc::{NotGrpc, drop_unreadable_details, from_grpc, from_grpc_response},
    http::from_http,
    transport::{from_transport, timed_out},
};
use super::config::SignalConfig;

/// The longest wait that a receiver can request; longer ones are cut to it.
pub const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// Longer requests are mistakes, such as a Unix time where seconds belong, or a date without end.
const LONGEST_CREDIBLE: Duration = Duration::from_hours(7 * 24);

/// The wait that a receiver requests, `None` if it says nothing useful: no time at all, or more than a week.
fn requested_wait(wait: Duration) -> Option<Duration> {
    (!wait.is_zero() && wait <= LONGEST_CREDIBLE).then(|| wait.min(LONGEST_WAIT))
}

/// The most characters of a receiver's message that are kept.
pub const LONGEST_MESSAGE: usize = 300;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver accepted it: delete it.
    Accepted {
        /// How many spans, records or points it rejected all the same (`partial_success`). OTLP forbids sending them
        /// again.
        rejected: u64,
        /// Why, or a warning when nothing was rejected; empty for a full success.
        message: String,
    },
    /// Not now: keep it and back off.
    Retry {
        /// Why.
        cause: Cause,
        /// The wait that the receiver requests (`Retry-After`, `RetryInfo`), at most [`LONGEST_WAIT`] and never zero.
        after: Option<Duration>,
    },
    /// No request of this signal will be accepted until somebody fixes the configuration here or there: keep everything,
    /// back off, and log an error.
    Misconfigured(Cause),
    /// Too large, or too much at once.
    TooLarge {
        /// Why.
        cause: Cause,
        /// With a wait the receiver is only busy: keep the request whole and wait. Without one, halve it.
        after: Option<Duration>,
    },
    /// The request is invalid: halve it until the invalid span or record is alone.
    Rejected(Cause),
}

impl Answer {
    /// Why the request was not accepted; `None` when it was.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Accepted { .. } => None,
            Self::Retry { cause, .. }
            | Self::Misconfigured(cause)
            | Self::TooLarge { cause, .. }
            | Self::Rejected(cause) => Some(cause),
        }
    }
}

/// Why a request was not accepted: a class and one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    kind: FailureKind,
    text: String,
}

impl Cause {
    /// A line that names the signal and the receiver before what happened, and quotes the receiver's `message`.
    fn new(config: &SignalConfig, kind: FailureKind, what: &str, message: &str) -> Self {
        let message = sanitize(config, message);
        let SignalConfig { signal, protocol, endpoint, .. } = config;
        let text = if message.is_empty() {
            format!("{signal} to {endpoint} ({protocol}): {what}")
        } else {
            format!("{signal} to {endpoint} ({protocol}): {what}: \"{message}\"")
        };
        Self { kind, text }
    }

    /// The class, for metrics and for counting repetitions.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Whether the receiver failed on the request (INTERNAL, UNKNOWN, 500): if this repeats while other requests pass, the
    /// request is worth halving.
    pub fn is_suspicious(&self) -> bool {
        self.kind == FailureKind::Fault
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The class of a [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// No connection: refused, unknown host, no route.
    Unreachable,
    /// No response in time.
    Timeout,
    /// The connection broke before the response, or the response was malformed.
    Broken,
    /// The receiver is busy or not ready, or its answer is not about the request.
    Unavailable,
    /// The receiver itself failed: INTERNAL, UNKNOWN or 500.
    Fault,
    /// The address serves another protocol than OTLP, or its other transport.
    WrongProtocol,
    /// TLS: one side does not trust the other's certificate.
    Certificate,
    /// The credentials are missing, wrong or insufficient.
    Credentials,
    /// The receiver has no pipeline for this signal at that address.
    NoPipeline,
    /// The request is too large.
    Size,
    /// The request is invalid.
    Invalid,
}

impl FailureKind {
    /// The name in `snake_case`, for metric attributes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Unavailable => "unavailable",
            Self::Fault => "fault",
            Self::WrongProtocol => "wrong_protocol",
            Self::Certificate => "certificate",
            Self::Credentials => "credentials",
            Self::NoPipeline => "no_pipeline",
            Self::Size => "size",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The body of every OTLP response. Its three messages differ only in names, so one reads them all.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    /// A string in OTLP; bytes here, so that one that is not UTF-8 does not hide the count.
    #[prost(bytes = "vec", tag = "2")]
    error_message: Vec<u8>,
}

/// An accepted request, of which parts may be rejected.
fn accepted(config: &SignalConfig, response: ExportResponse) -> Answer {
    let PartialSuccess { rejected, error_message } = response.partial_success.unwrap_or_default();
    Answer::Accepted {
        rejected: u64::try_from(rejected).unwrap_or(0),
        message: sanitize(config, &String::from_utf8_lossy(&error_message)),
    }
}

/// A receiver's message as part of one line: without our secrets and control characters, and cut.
fn sanitize(config: &SignalConfig, message: &str) -> String {
    // Secrets first: cutting could leave the first half of one, which would not be found.
    let scrubbed = config.headers.scrub(message);
    let mut line = String::new();
    let mut length = 0;
    for word in scrubbed.split(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c)) {
        if word.is_empty() {
            continue;
        }
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        for character in word.chars() {
            if length >= LONGEST_MESSAGE {
                line.push('…');
                return line;
            }
            line.push(character);
            length += 1;
        }
    }
    line
}

/// Characters that change how the text around them is shown: marks of direction and zero width.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
