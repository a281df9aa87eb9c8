//! Sends the demo's requests to the receiver of `OTEL_EXPORTER_OTLP_ENDPOINT` too, if it is set.

use serde::Serialize;

use super::DemoError;
use super::receiver::Receiver;
use runspan::otlp::Signal;
use runspan::otlp::answer::Answer;
use runspan::otlp::client::Client;
use runspan::otlp::config::{Env, SignalConfig};

/// What became of a signal's requests at the receiver of the environment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sent {
    /// `traces`, `logs` or `metrics`.
    pub signal: Signal,
    /// Where they went.
    pub endpoint: String,
    /// How many spans, records or points were taken.
    pub items: usize,
    /// Of how many.
    pub of: usize,
    /// Why not all of them are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What became of all that was forwarded.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Forwarded(pub Vec<Sent>);

impl Forwarded {
    /// Why not everything is there.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.0.iter().find_map(|sent| sent.problem.as_deref())
    }
}

/// Clients for the signals whose endpoint is set.
pub(super) struct Forward(Vec<Client>);

impl Forward {
    pub(super) fn from_env(env: Env<'_>) -> Result<Self, DemoError> {
        let mut clients = Vec::new();
        for signal in Signal::ALL {
            if let Some(config) = SignalConfig::if_endpoint_named(signal, env)? {
                clients.push(Client::new(&config)?);
            }
        }
        Ok(Self(clients))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends everything that was received, once: unlike the relay, the demo does not wait for better times.
    pub(super) async fn send(&self, receiver: &Receiver) -> Forwarded {
        let mut all = Vec::new();
        for client in &self.0 {
            let config = client.config();
            let requests = receiver.requests(config.signal);
            let mut sent = Sent {
                signal: config.signal,
                endpoint: config.endpoint.to_string(),
                items: 0,
                of: requests.iter().map(|(items, _)| items).sum(),
                problem: None,
            };
            for (items, request) in requests {
                sent.problem = match client.send(request).await {
                    Answer::Accepted { rejected: 0, .. } => None,
                    Answer::Accepted { rejected, message } => {
                        Some(format!("{} to {}: {rejected} rejected: {message}", sent.signal, sent.endpoint))
                    }
                    refused => refused.cause().map(ToString::to_string),
                };
                if sent.problem.is_some() {
                    break;
                }
                sent.items += items;
            }
            all.push(sent);
        }
        Forwarded(all)
    }
}
