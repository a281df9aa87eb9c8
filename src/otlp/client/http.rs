//! OTLP over HTTP with protobuf bodies, with reqwest.

use std::{io::Write as _, time::SystemTime};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderValue, header};

use super::{ClientError, USER_AGENT, tls::Tls};
use crate::otlp::{
    answer::{self, Answer},
    config::{Compression, SignalConfig},
};

/// More of a response than this is not read. Its beginning says enough.
const LONGEST_RESPONSE: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
}

impl Http {
    pub(super) fn new(config: &SignalConfig, mut tls: Tls) -> Result<Self, ClientError> {
        // Said in the handshake too, a gRPC port can refuse it there, and in words.
        tls.rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut headers = config.headers.as_map().clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.remove(header::CONTENT_ENCODING);
        let mut builder = reqwest::Client::builder()
            // One request at a time gains nothing from HTTP/2, and a request that is given up then closes its
            // connection, so the next one does not hang on it too.
            .http1_only()
            .tls_backend_preconfigured(tls.rustls)
            // A redirected POST may become a GET, and the credentials are not for another host.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(USER_AGENT)
            .default_headers(headers);
        if config.endpoint.is_loopback() {
            // HTTP_PROXY and its kin are for other machines, also where NO_PROXY forgets to say so.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| ClientError::Setup(chain(&error)))?;
        Ok(Self { client })
    }

    pub(super) async fn send(&self, config: &SignalConfig, body: Bytes) -> Answer {
        let mut request = self.client.post(config.endpoint.as_url().clone());
        request = match config.compression {
            Compression::None => request.body(body),
            Compression::Gzip => request.header(header::CONTENT_ENCODING, "gzip").body(gzip(&body)),
        };
        match exchange(request).await {
            Ok((head, body)) => {
                answer::from_http(config, head.status, &head.headers, &body, SystemTime::now())
            }
            // The URL, which may hold credentials, is part of reqwest's text.
            Err(error) => answer::from_transport(config, &error.without_url()),
        }
    }
}

/// The head of a response.
struct Head {
    status: http::StatusCode,
    headers: http::HeaderMap,
}

async fn exchange(request: reqwest::RequestBuilder) -> Result<(Head, Vec<u8>), reqwest::Error> {
    let mut response = request.send().await?;
    let head = Head { status: response.status(), headers: response.headers().clone() };
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() < LONGEST_RESPONSE => body.extend_from_slice(&chunk),
            // The status has decided already: a success whose body breaks off was stored all the same.
            Ok(_) | Err(_) => break,
        }
    }
    Ok((head, body))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("writing to a Vec does not fail")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
