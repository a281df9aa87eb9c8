//! A receiver that acknowledges what it gets, by default without looking at it: what is measured is who sends.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use runspan::otlp::Signal;
use runspan::otlp::config::Protocol;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::Failure;

/// Five bytes before an empty message: not compressed, no length.
const EMPTY_GRPC_MESSAGE: &[u8] = &[0; 5];

/// Looks at a request.
type Look = Arc<dyn Fn(Signal, &[u8]) + Send + Sync>;

/// Stops when it is dropped.
pub(crate) struct Receiver {
    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) endpoint: String,
    bytes: Arc<AtomicU64>,
    _serving: AbortOnDropHandle<()>,
}

impl Receiver {
    pub(crate) async fn start(protocol: Protocol) -> Result<Self, Failure> {
        Self::serve(protocol, None).await
    }

    /// Shows each request (uncompressed) to `look` before it is acknowledged.
    pub(crate) async fn observing(
        protocol: Protocol,
        look: impl Fn(Signal, &[u8]) + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        Self::serve(protocol, Some(Arc::new(look))).await
    }

    async fn serve(protocol: Protocol, look: Option<Look>) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, look) = (Arc::clone(&counter), look.clone());
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        acknowledge(request, Arc::clone(&counter), look.clone(), protocol)
                    });
                    let stream = TokioIo::new(stream);
                    // A sender that hangs up is none of the bench's business.
                    let _ = match protocol {
                        Protocol::Grpc => {
                            let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            http2.initial_stream_window_size(4 << 20).initial_connection_window_size(4 << 20);
                            http2.serve_connection(stream, service).await
                        }
                        Protocol::HttpProtobuf => {
                            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
                        }
                    };
                });
            }
        });
        Ok(Self { endpoint, bytes, _serving: AbortOnDropHandle::new(serving) })
    }

    /// How many bytes of bodies have arrived.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

async fn acknowledge(
    request: Request<Incoming>,
    counter: Arc<AtomicU64>,
    look: Option<Look>,
    protocol: Protocol,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            counter.fetch_add(data.len() as u64, Ordering::Relaxed);
            if look.is_some() {
                seen.extend_from_slice(data);
            }
        }
    }
    if let Some(look) = look {
        let path = head.uri.path().to_lowercase();
        let signal =
            Signal::ALL.into_iter().find(|signal| path.contains(signal.as_str().trim_end_matches('s')));
        let message = if protocol == Protocol::Grpc { seen.get(5..).unwrap_or_default() } else { &seen };
        if let Some(signal) = signal {
            look(signal, message);
        }
    }
    let (content_type, body) = match protocol {
        Protocol::HttpProtobuf => ("application/x-protobuf", Full::default().boxed()),
        Protocol::Grpc => {
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let message = Full::new(Bytes::from_static(EMPTY_GRPC_MESSAGE));
            ("application/grpc", message.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
