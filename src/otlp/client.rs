//! Sends one encoded request over gRPC or HTTP, and returns the classified answer.
//!
//! Nothing is retried here: the relay decides what to do next, on the exact cause.

mod files;
mod grpc;
mod http;
mod tls;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use self::grpc::Grpc;
pub(crate) use self::{files::WatchedFiles, grpc::endpoint as grpc_endpoint, http::Http};
use super::{
    answer::{self, Answer},
    body::{Body, DecodeError},
    config::{Compression, Protocol, SignalConfig},
};

/// The user agent of every request (OTLP exporter specification, "User Agent").
const USER_AGENT: &str = concat!("runspan/", env!("CARGO_PKG_VERSION"));

/// A client for the requests of one signal.
///
/// It keeps its connection between requests and opens it with the first one. When the certificate files change, the next
/// request uses the new ones.
#[derive(Debug)]
pub struct Client {
    config: SignalConfig,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    transport: Arc<Transport>,
    files: WatchedFiles,
}

#[derive(Debug)]
enum Transport {
    Grpc(Box<Grpc>),
    Http(Http),
}

impl Transport {
    fn new(config: &SignalConfig) -> Result<Self, ClientError> {
        Ok(match config.protocol {
            Protocol::Grpc => Self::Grpc(Box::new(Grpc::new(config)?)),
            Protocol::HttpProtobuf => Self::Http(Http::new(config)?),
        })
    }
}

/// Logs that new certificate files cannot be used. One of a pair may be written before the other: the next change is read
/// again.
pub(crate) fn keep_certificates(error: &ClientError) {
    tracing::warn!("new certificate files cannot be used, keeping those loaded before: {error}");
}

impl Client {
    /// Prepares a client and reads the certificate files. It does not connect: an unreachable receiver is an [`Answer`],
    /// not an error.
    ///
    /// # Errors
    /// A certificate file that is missing or wrong, or an `https` endpoint without any certificate to trust.
    pub fn new(config: &SignalConfig) -> Result<Self, ClientError> {
        // Before they are read: what changes meanwhile is read again.
        let files = WatchedFiles::of(config);
        let transport = Arc::new(Transport::new(config)?);
        Ok(Self { config: config.clone(), current: Mutex::new(Current { transport, files }) })
    }

    /// The transport, with the certificates that are on disk now.
    fn transport(&self) -> Arc<Transport> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.files.have_changed() {
            match Transport::new(&self.config) {
                Ok(transport) => current.transport = Arc::new(transport),
                Err(error) => keep_certificates(&error),
            }
        }
        Arc::clone(&current.transport)
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &SignalConfig {
        &self.config
    }

    /// Sends an encoded, uncompressed `Export…ServiceRequest` and waits for the answer, at most for the configured
    /// timeout, which includes connecting.
    ///
    /// The bytes are sent unchanged, except for compression. Nothing is retried: every failure is an answer. (A connection
    /// that the other side closed before it read anything may be replaced once.)
    ///
    /// # Cancel safety
    /// Dropping the future abandons the request. Whether the receiver has it is then unknown, as after a timeout: send the
    /// same bytes again. The client stays usable.
    pub async fn send(&self, request: Bytes) -> Answer {
        self.exchange(Body::Plain(request)).await
    }

    /// The same for a request as the outbox stores it.
    ///
    /// # Errors
    /// The stored bytes are not a request.
    pub async fn send_stored(&self, stored: &Bytes) -> Result<Answer, DecodeError> {
        // tonic compresses messages itself.
        let takes_gzip =
            self.config.protocol == Protocol::HttpProtobuf && self.config.compression == Compression::Gzip;
        Ok(self.exchange(Body::stored(stored, takes_gzip)?).await)
    }

    async fn exchange(&self, body: Body) -> Answer {
        let transport = self.transport();
        let exchange = async {
            match (&*transport, body) {
                // Never gzip: see `send_stored`.
                (Transport::Grpc(grpc), Body::Plain(request) | Body::Gzip(request)) => {
                    grpc.send(&self.config, request).await
                }
                (Transport::Http(http), body) => http.send(&self.config, body).await,
            }
        };
        if let Ok(answer) = tokio::time::timeout(self.config.timeout, exchange).await {
            return answer;
        }
        // The connection may be half open, and the next request would hang on it too. HTTP/1 closes it with the request.
        if let Transport::Grpc(grpc) = &*transport {
            grpc.forget_connection();
        }
        answer::timed_out(&self.config)
    }
}

/// Why a client cannot be created. Its text is one line: the variable, the problem, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A file cannot be read.
    #[error(
        "{variable} names {}, which cannot be read ({source}): correct the path or the permissions",
        path.display()
    )]
    Unreadable {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file without a certificate.
    #[error("{variable} names {}, which holds no valid PEM certificate: give a file with BEGIN CERTIFICATE", path.display())]
    NoCertificate {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
    },
    /// A file without a private key.
    #[error("{variable} names {}, which holds no unencrypted PEM private key: give a file with BEGIN PRIVATE KEY", path.display())]
    NoKey {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
    },
    /// A certificate and a key that cannot be used together.
    #[error(
        "{variable} names {}, which cannot be used with the key of {key_variable} ({problem}): give the two files of one pair",
        path.display()
    )]
    Identity {
        /// The variable of the certificate.
        variable: String,
        /// The certificate file.
        path: PathBuf,
        /// The variable of the key.
        key_variable: String,
        /// The error of rustls.
        problem: String,
    },
    /// TLS, but no certificate authority to trust.
    #[error(
        "OTEL_EXPORTER_OTLP_CERTIFICATE is not set and this system has no certificates of authorities: set it, or install the package ca-certificates"
    )]
    NoSystemRoots,
    /// A library rejects the configuration.
    #[error("the OTLP client cannot be set up: {0}")]
    Setup(String),
}
