//! OTLP over HTTP with protobuf bodies, with reqwest.
//!
//! No redirects, no proxy for loopback, no HTTP/2: each would send credentials or requests somewhere unexpected, or let
//! one hung connection block the next request.

use std::time::SystemTime;

use bytes::Bytes;
use flate2::Compression as Level;
use http::{HeaderValue, header};

use super::{ClientError, USER_AGENT, tls::Tls};
use crate::error_chain::describe;
use crate::otlp::{
    answer::{self, Answer},
    body::{Body, gzip},
    config::{Compression, SignalConfig},
};

/// The most bytes of a response that are read: its beginning is enough.
const LONGEST_RESPONSE: usize = 256 * 1024;

/// Connections that send the configured headers.
#[derive(Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
}

impl Http {
    pub(crate) fn new(config: &SignalConfig) -> Result<Self, ClientError> {
        let mut tls = Tls::load(&config.endpoint, &config.tls)?;
        // Announced in the handshake too, so that a gRPC port can refuse with a clear error.
        tls.rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut headers = config.headers.as_map().clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.remove(header::CONTENT_ENCODING);
        let mut builder = reqwest::Client::builder()
            // One request at a time gains nothing from HTTP/2, and a request that is abandoned closes its HTTP/1
            // connection, so that the next one does not hang on it too.
            .http1_only()
            .tls_backend_preconfigured(tls.rustls)
            // A redirected POST may become a GET, and the credentials must not reach another host.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(USER_AGENT)
            .default_headers(headers);
        if config.endpoint.is_loopback() {
            // HTTP_PROXY and the like are for other hosts, even if NO_PROXY does not list this one.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| ClientError::Setup(describe(&error)))?;
        Ok(Self { client })
    }

    pub(super) async fn send(&self, config: &SignalConfig, body: Body) -> Answer {
        let gzip_encoding = Some(HeaderValue::from_static("gzip"));
        let (encoding, body) = match (config.compression, body) {
            (_, Body::Gzip(gzipped)) => (gzip_encoding, gzipped),
            (Compression::Gzip, Body::Plain(plain)) => (gzip_encoding, gzip(&[&plain], Level::default())),
            (Compression::None, Body::Plain(plain)) => (None, plain),
        };
        match self.post(config, encoding, body).await {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers());
                answer::from_http(config, status, headers, response.body(), SystemTime::now())
            }
            Err(error) => answer::from_transport(config, &error),
        }
    }

    /// Posts a body with this content encoding. Reads only the beginning of the response.
    pub(crate) async fn post(
        &self,
        config: &SignalConfig,
        encoding: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<http::Response<Bytes>, reqwest::Error> {
        let encoding = encoding.map(|encoding| (header::CONTENT_ENCODING, encoding));
        let request = self
            .client
            .post(config.endpoint.as_url().clone())
            .headers(encoding.into_iter().collect())
            .body(body);
        // reqwest's text contains the URL, which may hold credentials.
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() < LONGEST_RESPONSE => body.extend_from_slice(&chunk),
                // The status decides: a success whose body breaks off was stored all the same.
                Ok(_) | Err(_) => break,
            }
        }
        let mut read = http::Response::new(body.into());
        *read.status_mut() = response.status();
        std::mem::swap(read.headers_mut(), response.headers_mut());
        Ok(read)
    }
}
