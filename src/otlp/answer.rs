//! What a receiver's answer means for the request.
//!
//! Everything here is a pure function of the answer and the configuration. The rules are stricter than OTLP's
//! (`opentelemetry-proto`, `docs/specification.md`, "Failures"), which lets a client drop whatever is not retryable:
//! here a request is given up only when the receiver has seen it, understood it and called it wrong.

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

/// The longest wait that a receiver can ask for; one that asks for more is tried again earlier.
pub const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// The most characters of a receiver's own words that are kept.
pub const LONGEST_MESSAGE: usize = 300;

/// What to do with a request, now that it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver has it: delete it.
    Accepted {
        /// How many spans, records or points it threw away all the same (`partial_success`). Resending them is
        /// not allowed.
        rejected: u64,
        /// Why, or a warning when nothing was rejected; empty for a full success.
        message: String,
    },
    /// Not now: keep it and back off.
    Retry {
        /// Why.
        cause: Cause,
        /// How long the receiver asks to wait (`Retry-After`, `RetryInfo`), at most [`LONGEST_WAIT`].
        after: Option<Duration>,
    },
    /// Nothing of this signal will pass until somebody mends the configuration here or there: keep everything,
    /// back off, and say so loudly.
    Misconfigured(Cause),
    /// Too large, or too much at once.
    TooLarge {
        /// Why.
        cause: Cause,
        /// With a wait the receiver is only busy: keep the request whole and wait. Without, halve it.
        after: Option<Duration>,
    },
    /// The receiver calls the request wrong: halve it until the wrong span or record stands alone.
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

/// Why a request was not accepted, in a word and in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    kind: FailureKind,
    text: String,
}

impl Cause {
    /// A line that names the signal and the receiver before what happened. `said` are the receiver's own words.
    fn new(config: &SignalConfig, kind: FailureKind, what: &str, said: &str) -> Self {
        let said = tidy(config, said);
        let SignalConfig { signal, protocol, endpoint, .. } = config;
        let text = if said.is_empty() {
            format!("{signal} to {endpoint} ({protocol}): {what}")
        } else {
            format!("{signal} to {endpoint} ({protocol}): {what}: \"{said}\"")
        };
        Self { kind, text }
    }

    /// The class of the cause, for metrics and for counting repetitions.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Whether the receiver itself failed on the request (INTERNAL, UNKNOWN, 500), so that a request which fails
    /// like this again and again while others pass is worth halving.
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
    /// No answer in time.
    Timeout,
    /// A connection that broke, or made no sense, before the answer.
    Broken,
    /// The receiver is busy, or not ready, or gave an answer that says nothing about the request.
    Unavailable,
    /// The receiver itself failed: INTERNAL, UNKNOWN or 500.
    Fault,
    /// Another protocol, or no OTLP, is spoken at that address.
    WrongProtocol,
    /// TLS: one of the two sides does not trust the other's certificate.
    Certificate,
    /// The credentials are missing, wrong or not sufficient.
    Credentials,
    /// There is nothing for this signal at that address.
    NoPipeline,
    /// The request is too large.
    Size,
    /// The request is wrong.
    Invalid,
}

impl FailureKind {
    /// A word in `snake_case`, for metric attributes.
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

/// An accepted request, with what the response says of parts of it. A response that cannot be read changes nothing
/// about the acceptance: sending the request again would store it twice.
fn accepted(config: &SignalConfig, response: &[u8]) -> Answer {
    let response = <ExportResponse as prost::Message>::decode(response).unwrap_or_default();
    let PartialSuccess { rejected, error_message } = response.partial_success.unwrap_or_default();
    Answer::Accepted {
        rejected: u64::try_from(rejected).unwrap_or(0),
        message: tidy(config, &String::from_utf8_lossy(&error_message)),
    }
}

/// A receiver's words as part of one line: without our secrets, without control characters, and not too long.
fn tidy(config: &SignalConfig, said: &str) -> String {
    // Secrets first: cutting could leave the first half of one, which no search would find.
    let scrubbed = config.headers.scrub(said);
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
