//! Where the requests of a channel go.

use std::io::Write as _;

use bytes::Bytes;

use super::error::RelayError;
use crate::otlp::answer::Answer;
use crate::otlp::client::Client;

/// Where the requests of a channel go.
pub(super) enum Sink {
    Otlp(Box<Client>),
    Stdout,
}

impl Sink {
    /// Sends one request. Standard output has no answer but success: without it the process has nowhere to go on to.
    pub(super) async fn send(&self, body: Bytes) -> Result<Answer, RelayError> {
        match self {
            Self::Otlp(client) => Ok(client.send(body).await),
            Self::Stdout => {
                let written = tokio::task::spawn_blocking(move || {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&body).and_then(|()| out.flush())
                });
                written.await.map_err(|_| RelayError::Panicked)?.map_err(RelayError::Stdout)?;
                Ok(Answer::Accepted { rejected: 0, message: String::new() })
            }
        }
    }
}
