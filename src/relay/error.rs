//! Why a relay ends without being asked to. Whatever may pass by itself is waited for and is not here.

use crate::otlp::client::ClientError;
use crate::otlp::config::ConfigError;
use crate::store::StoreError;

/// Why a relay ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// An environment variable has an invalid value.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An OTLP client cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The database cannot be used, and waiting does not help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Every signal is turned off.
    #[error(
        "every signal is turned off: set OTEL_TRACES_EXPORTER, OTEL_LOGS_EXPORTER or OTEL_METRICS_EXPORTER to otlp, or print the records with --logs stdout"
    )]
    NoSink,
    /// Standard output is closed.
    #[error("cannot write to standard output: {0}")]
    Stdout(std::io::Error),
    /// A task of the relay panicked.
    #[error("a task of the relay panicked")]
    Panicked,
}
