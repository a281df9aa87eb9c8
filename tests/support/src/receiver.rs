//! An OTLP receiver inside the test process, on a real socket, that answers as it is told.
//!
//! ```ignore
//! let receiver = Receiver::grpc().await;
//! receiver.script([Reply::grpc(Code::Unavailable, "later"), Reply::Hang]); // then it accepts
//! …send to receiver.endpoint()…
//! receiver.wait_for(3).await;
//! assert_eq!(receiver.requests()[0].traces(), expected);
//! ```
//!
//! It does what the Collector does on the wire: HTTP/2 only on the gRPC port and HTTP/1.1 only on the other, answers
//! compressed as the request was, 404 and UNIMPLEMENTED for paths without a signal, 415 for other content.

// Named in full, for tests/chaos has this file too.
mod authority;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest,
    metrics::v1::ExportMetricsServiceRequest,
    trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
};
use prost::Message;
use runspan::otlp::{Signal, config::Protocol};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use self::authority::Authority;

/// How long [`Receiver::wait_until`] waits before it gives the test up.
const DEADLINE: Duration = Duration::from_secs(20);

/// A receiver of every signal over one protocol. It stops when it is dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<AbortOnDropHandle<()>>,
}

/// What to do with one request.
#[derive(Debug)]
pub enum Reply {
    /// Store it and say so.
    Accept,
    /// Store it, but reject a number of spans, records or points.
    Partial { rejected: i64, message: String },
    /// A gRPC status.
    Grpc(Status),
    /// A gRPC response without a message, and with these trailers.
    Trailers(HeaderMap),
    /// An HTTP response as it is.
    Http(Response<Bytes>),
    /// Close the connection before the body of the request is read.
    ResetUnread,
    /// Store it, and say so after this time.
    #[allow(dead_code, reason = "for tests/chaos")]
    AcceptLate(Duration),
    /// Store it, and close the connection instead of saying so.
    AcceptThenReset,
    /// Never answer.
    Hang,
}

impl Reply {
    /// Whether the receiver has what it answers so.
    pub const fn is_stored(&self) -> bool {
        matches!(self, Self::Accept | Self::Partial { .. } | Self::AcceptLate(_) | Self::AcceptThenReset)
    }

    pub fn grpc(code: Code, message: &str) -> Self {
        Self::Grpc(Status::new(code, message))
    }

    /// A gRPC status with `RetryInfo`.
    pub fn grpc_retry(code: Code, message: &str, delay: Duration) -> Self {
        Self::Grpc(Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(delay))))
    }

    /// An HTTP response of plain text.
    pub fn http(status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Self {
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        Self::Http(response)
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub signal: Signal,
    pub headers: HeaderMap,
    /// Decompressed, without the framing of gRPC.
    pub body: Bytes,
    pub gzipped: bool,
}

impl Received {
    pub fn traces(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(self.body.clone()).unwrap()
    }

    pub fn logs(&self) -> ExportLogsServiceRequest {
        ExportLogsServiceRequest::decode(self.body.clone()).unwrap()
    }

    pub fn metrics(&self) -> ExportMetricsServiceRequest {
        ExportMetricsServiceRequest::decode(self.body.clone()).unwrap()
    }
}

type Rule = Box<dyn FnMut(&Received) -> Reply + Send>;

struct Shared {
    protocol: Protocol,
    is_tls: bool,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

struct State {
    tls: Option<TlsAcceptor>,
    script: VecDeque<Reply>,
    rule: Rule,
    stored: Vec<Received>,
    attempts: usize,
    connections: usize,
}

impl Receiver {
    /// A receiver of OTLP/gRPC without TLS.
    pub async fn grpc() -> Self {
        Self::start(Protocol::Grpc, None).await
    }

    /// A receiver of OTLP/HTTP without TLS.
    pub async fn http() -> Self {
        Self::start(Protocol::HttpProtobuf, None).await
    }

    /// A receiver with the TLS configuration of an [`Authority`], or without.
    pub async fn start(protocol: Protocol, tls: Option<rustls::ServerConfig>) -> Self {
        let is_tls = tls.is_some();
        let state = State {
            tls: tls.map(|config| acceptor(protocol, config)),
            script: VecDeque::new(),
            rule: Box::new(|_| Reply::Accept),
            stored: Vec::new(),
            attempts: 0,
            connections: 0,
        };
        let shared =
            Arc::new(Shared { protocol, is_tls, state: Mutex::new(state), changes: watch::Sender::new(()) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut receiver = Self { address, shared, serving: None };
        receiver.serve(listener);
        receiver
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.is_tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// Answers the next requests with these, in order, and those after them by the rule.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.shared.state().script.extend(replies);
    }

    /// Answers every request that no script answers; without a rule they are accepted.
    pub fn rule(&self, rule: impl FnMut(&Received) -> Reply + Send + 'static) {
        self.shared.state().rule = Box::new(rule);
    }

    /// The requests it has stored, in the order of their arrival.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.state().stored.clone()
    }

    /// How many requests reached it, stored or not.
    pub fn attempts(&self) -> usize {
        self.shared.state().attempts
    }

    /// How many connections were opened to it.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Waits until so many requests are stored.
    pub async fn wait_for(&self, stored: usize) {
        let what = format!("{stored} stored requests");
        self.wait_until(&what, |receiver| receiver.requests().len() >= stored).await;
    }

    /// Waits until a condition holds. It is looked at after every request.
    pub async fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            while !holds(self) {
                changes.changed().await.expect("self holds the sender");
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let (attempts, stored) = (self.attempts(), self.requests().len());
            panic!("no {what} within {DEADLINE:?}: {attempts} requests arrived, {stored} were stored");
        }
    }

    /// Closes the port and every connection, as a receiver that is down.
    pub async fn go_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // The port is free only once the task is gone.
            let _ = serving.await;
        }
    }

    /// Uses another TLS configuration for connections from now on.
    pub fn identify_as(&self, tls: rustls::ServerConfig) {
        self.shared.state().tls = Some(acceptor(self.shared.protocol, tls));
    }

    /// Listens again, on the same port.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        self.serving = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                shared.state().connections += 1;
                connections.spawn(async move {
                    let Some(stream) = refuse_http2(stream, &shared).await else { return };
                    let tls = shared.state().tls.clone();
                    match tls {
                        None => connection(stream, shared).await,
                        Some(tls) => match tls.accept(stream).into_fallible().await {
                            Ok(stream) => connection(stream, shared).await,
                            Err((_, stream)) => drain(stream).await,
                        },
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        })));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Chooses the reply, and stores the request if it is to be stored.
    fn decide(&self, request: Received) -> Reply {
        let mut state = self.state();
        let scripted = state.script.pop_front();
        let reply = scripted.unwrap_or_else(|| (state.rule)(&request));
        if reply.is_stored() {
            state.stored.push(request);
        }
        drop(state);
        self.changes.send_replace(());
        reply
    }
}

/// Serves a connection until either side closes it.
async fn connection<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let reset = Arc::new(Notify::new());
    let stream = TokioIo::new(stream);
    let protocol = shared.protocol;
    let service = {
        let reset = Arc::clone(&reset);
        service_fn(move |request| respond(request, Arc::clone(&shared), Arc::clone(&reset)))
    };
    // Dropping the connection closes it at once, whatever is still to be answered on it.
    match protocol {
        Protocol::Grpc => {
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = http2.serve_connection(stream, service) => {}
                () = reset.notified() => {}
            }
        }
        Protocol::HttpProtobuf => {
            let http1 = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                _ = http1.serve_connection(stream, service) => {}
                () = reset.notified() => {}
            }
        }
    }
}

/// Answers HTTP/2 on the HTTP port as Go's server does: in HTTP/1. hyper would only hang up.
async fn refuse_http2(mut stream: TcpStream, shared: &Shared) -> Option<TcpStream> {
    if shared.protocol == Protocol::Grpc || shared.is_tls {
        return Some(stream);
    }
    let mut start = [0; 3];
    if stream.peek(&mut start).await.is_err() || start != *b"PRI" {
        return Some(stream);
    }
    let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let _ = stream.write_all(answer).await;
    drain(stream).await;
    None
}

/// Reads until the other side closes: closing with unread bytes would reset the connection, perhaps before our last
/// words on it are read.
async fn drain(mut stream: TcpStream) {
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

type Body = BoxBody<Bytes, Infallible>;

async fn respond(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    reset: Arc<Notify>,
) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let grpc = shared.protocol == Protocol::Grpc;
    let (content_type, suffix) =
        if grpc { ("application/grpc", "Service/Export") } else { ("application/x-protobuf", "") };
    if head.headers.get(header::CONTENT_TYPE).is_none_or(|value| value != content_type) {
        return Ok(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let path = head.uri.path().strip_suffix(suffix).unwrap_or_default();
    let signal = match path.rsplit(['/', '.']).next() {
        Some("traces" | "Trace") => Signal::Traces,
        Some("logs" | "Logs") => Signal::Logs,
        Some("metrics" | "Metrics") => Signal::Metrics,
        _ if grpc => return Ok(Status::unimplemented("unknown service").into_http()),
        _ => return Ok(plain(StatusCode::NOT_FOUND)),
    };
    let unread = {
        let mut state = shared.state();
        state.attempts += 1;
        state.script.pop_front_if(|reply| matches!(reply, Reply::ResetUnread)).is_some()
    };
    if unread {
        shared.changes.send_replace(());
        reset.notify_one();
        return std::future::pending().await;
    }
    let (body, gzipped) = decoded(&head.headers, &body.collect().await?.to_bytes(), grpc);
    let reply = shared.decide(Received { signal, headers: head.headers, body, gzipped });
    let (rejected, message) = match reply {
        Reply::Accept => (0, String::new()),
        Reply::AcceptLate(after) => {
            tokio::time::sleep(after).await;
            (0, String::new())
        }
        Reply::Partial { rejected, message } => (rejected, message),
        Reply::Grpc(status) => return Ok(status.into_http()),
        Reply::Trailers(trailers) => return Ok(trailed(Bytes::new(), trailers)),
        Reply::Http(response) => return Ok(response.map(full)),
        Reply::Hang => return std::future::pending().await,
        Reply::ResetUnread | Reply::AcceptThenReset => {
            reset.notify_one();
            return std::future::pending().await;
        }
    };
    // The Collector sends the message for full success too, empty.
    let partial_success =
        Some(ExportTracePartialSuccess { rejected_spans: rejected, error_message: message });
    let response = ExportTraceServiceResponse { partial_success }.encode_to_vec();
    Ok(success(&response, grpc, gzipped))
}

fn success(response: &[u8], grpc: bool, gzipped: bool) -> Response<Body> {
    if !grpc {
        let mut response = Response::new(full(Bytes::copy_from_slice(response)));
        let content_type = HeaderValue::from_static("application/x-protobuf");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        return response;
    }
    let message = if gzipped { gzip(response) } else { response.to_vec() };
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(gzipped.into());
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut response = trailed(frame.freeze(), trailers);
    if gzipped {
        response.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
    }
    response
}

/// A gRPC response.
fn trailed(body: Bytes, trailers: HeaderMap) -> Response<Body> {
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Takes framing and compression off a body.
fn decoded(headers: &HeaderMap, body: &Bytes, grpc: bool) -> (Bytes, bool) {
    let (message, gzipped) = if grpc {
        (body.slice(5..), body[0] == 1)
    } else {
        (body.clone(), headers.get(header::CONTENT_ENCODING).is_some_and(|value| value == "gzip"))
    };
    if !gzipped {
        return (message, false);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&message[..]).read_to_end(&mut plain).unwrap();
    (plain.into(), true)
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn acceptor(protocol: Protocol, mut config: rustls::ServerConfig) -> TlsAcceptor {
    let alpn: &[u8] = if protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
