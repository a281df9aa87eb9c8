//! OTLP over gRPC, with tonic.
//!
//! tonic would decode answers, guess a status for foreign ones, and panic on malformed details. A codec that leaves
//! messages encoded and a layer below tonic's client keep the receiver's real answer.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::{StatusCode, header, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use tonic::{
    Request, Status,
    body::Body,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::Service,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{ClientError, USER_AGENT, tls::Tls};
use crate::otlp::{
    answer::{self, Answer, NotGrpc},
    config::{Compression, SignalConfig},
};

/// The most bytes of headers in a response. A status and its message are headers: with h2's 16 KiB a rejection with a long
/// message would look like a broken connection, and the request would be kept forever.
const LONGEST_HEADERS: u32 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Grpc {
    endpoint: Endpoint,
    path: PathAndQuery,
    metadata: MetadataMap,
    compression: Compression,
    /// Created by the first request: it spawns a task, which needs a runtime.
    channel: Mutex<Option<Channel>>,
}

/// The endpoint, with TLS and limits.
pub(crate) fn endpoint(config: &SignalConfig) -> Result<Endpoint, ClientError> {
    let setup = |error: tonic::transport::Error| ClientError::Setup(error.to_string());
    let tls = Tls::load(&config.endpoint, &config.tls)?;
    let endpoint = Endpoint::from_shared(config.endpoint.as_url().to_string())
        .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
        .map_err(setup)?
        .http2_max_header_list_size(LONGEST_HEADERS);
    if config.endpoint.is_tls() {
        endpoint.tls_config(tls.for_tonic(&config.endpoint)).map_err(setup)
    } else {
        Ok(endpoint)
    }
}

impl Grpc {
    pub(super) fn new(config: &SignalConfig) -> Result<Self, ClientError> {
        Ok(Self {
            endpoint: endpoint(config)?,
            path: PathAndQuery::from_static(config.signal.grpc_path()),
            metadata: MetadataMap::from_headers(config.headers.as_map().clone()),
            compression: config.compression,
            channel: Mutex::new(None),
        })
    }

    pub(super) async fn send(&self, config: &SignalConfig, body: Bytes) -> Answer {
        let mut grpc = tonic::client::Grpc::new(CheckedChannel(self.channel()));
        if self.compression == Compression::Gzip {
            // Receivers compress their answers too. Without the second call tonic would report a gzipped acceptance as
            // UNIMPLEMENTED.
            grpc =
                grpc.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
        }
        if let Err(error) = grpc.ready().await {
            return answer::from_transport(config, &*error);
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = self.metadata.clone();
        match grpc.unary(request, self.path.clone(), Verbatim).await {
            Ok(response) => answer::from_grpc_response(config, response.get_ref()),
            Err(status) => answer::from_grpc(config, &status, SystemTime::now()),
        }
    }

    /// Makes the next request open a new connection.
    pub(super) fn forget_connection(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn channel(&self) -> Channel {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.get_or_insert_with(|| self.endpoint.connect_lazy()).clone()
    }
}

/// A channel that recognizes answers of servers other than gRPC's, such as a proxy's 502 or 413. tonic would decode their
/// bodies as messages and report INTERNAL.
struct CheckedChannel(Channel);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<http::Request<Body>> for CheckedChannel {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if is_grpc(&response) {
                answer::drop_unreadable_details(response.headers_mut());
                return Ok(response.map(|body| {
                    Body::new(body.map_frame(|mut frame| {
                        frame.trailers_mut().into_iter().for_each(answer::drop_unreadable_details);
                        frame
                    }))
                }));
            }
            let (head, _) = response.into_parts();
            Err(NotGrpc { status: head.status, headers: head.headers }.into())
        })
    }
}

/// Whether a response is gRPC's ("PROTOCOL-HTTP2" in its documentation): a status in its headers, or one that follows a
/// message.
fn is_grpc(response: &http::Response<Body>) -> bool {
    let headers = response.headers();
    let is_message =
        || headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    headers.contains_key("grpc-status") || (response.status() == StatusCode::OK && is_message())
}

/// A codec that leaves messages encoded: requests are sent byte for byte as stored, and a response that cannot be decoded
/// does not become a failure.
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
