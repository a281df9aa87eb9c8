//! Where the requests of a channel go.

use std::io::Write as _;

use bytes::Bytes;

use super::error::RelayError;
use crate::otlp::answer::Answer;
use crate::otlp::body::{self, DecodeError};
use crate::otlp::client::Client;

/// Where the requests of a channel go.
pub(super) enum Sink {
    Otlp(Box<Client>),
    Stdout,
}

impl Sink {
    /// Sends one stored request. Standard output has no answer but success: without it the process has nowhere to go on to.
    pub(super) async fn send(&self, stored: &Bytes) -> Result<Result<Answer, DecodeError>, RelayError> {
        match self {
            Self::Otlp(client) => Ok(client.send_stored(stored).await),
            Self::Stdout => {
                let lines = match body::unpack_lines(stored) {
                    Ok(lines) => lines,
                    Err(error) => return Ok(Err(error)),
                };
                let written = tokio::task::spawn_blocking(move || {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&lines).and_then(|()| out.flush())
                });
                written.await.map_err(|_| RelayError::Panicked)?.map_err(RelayError::Stdout)?;
                Ok(Ok(Answer::Accepted { rejected: 0, message: String::new() }))
            }
        }
    }
}
