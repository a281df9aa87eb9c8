//! The OTLP client against a real socket: every row of the answer table, over both protocols.

use std::{collections::HashMap, fs, io::Write as _, path::Path, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderName, HeaderValue};
use runspan::otlp::{
    Signal,
    answer::{Answer, Cause, FailureKind},
    client::{Client, ClientError},
    config::{Protocol, SignalConfig},
};
use tokio::time::Instant;
use tonic::Code;

use crate::receiver::{Authority, Receiver, Reply};

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::HttpProtobuf];

/// Not what an encoder writes (fields out of order, one unknown), so that decoding and encoding would change it.
const REQUEST: &[u8] = b"\xa2\x06\x03abc\x0a\x00\x0a\x02\x0a\x00";

/// A client of `endpoint`, with further variables by the part of their names after `OTEL_EXPORTER_OTLP_`.
fn try_client(
    signal: Signal,
    protocol: Protocol,
    endpoint: &str,
    options: &[(&str, &str)],
) -> Result<Client, ClientError> {
    let mut variables: HashMap<String, String> = options
        .iter()
        .map(|(name, value)| (format!("OTEL_EXPORTER_OTLP_{name}"), (*value).to_owned()))
        .collect();
    variables.insert("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint.to_owned());
    variables.insert("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), protocol.to_string());
    let config = SignalConfig::from_env(signal, &|name| variables.get(name).cloned());
    Client::new(&config.unwrap().unwrap())
}

fn client(protocol: Protocol, endpoint: &str, options: &[(&str, &str)]) -> Client {
    try_client(Signal::Traces, protocol, endpoint, options).unwrap()
}

async fn send(client: &Client) -> Answer {
    client.send(Bytes::from_static(REQUEST)).await
}

/// As the outbox stores requests.
fn gzip(request: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(request).and_then(|()| encoder.finish()).unwrap().into()
}

fn full_success() -> Answer {
    Answer::Accepted { rejected: 0, message: String::new() }
}

/// The class of an answer, its cause, whether it is suspicious, and the wait in seconds.
fn summary(answer: &Answer) -> String {
    let (class, after) = match answer {
        Answer::Accepted { .. } => ("accepted", None),
        Answer::Retry { after, .. } => ("retry", *after),
        Answer::Misconfigured(_) => ("misconfigured", None),
        Answer::TooLarge { after, .. } => ("too large", *after),
        Answer::Rejected(_) => ("rejected", None),
    };
    let kind = answer.cause().map(|cause| cause.kind().to_string());
    let suspicious = answer.cause().is_some_and(Cause::is_suspicious).then(|| "suspicious".to_owned());
    let after = after.map(|after| format!("after {} s", after.as_secs()));
    let parts = [Some(class.to_owned()), kind, suspicious, after];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn assert_misconfigured(answer: &Answer, kind: FailureKind, words: &[&str]) {
    let Answer::Misconfigured(cause) = answer else { panic!("{answer:?}") };
    assert_eq!(cause.kind(), kind, "{cause}");
    let line = cause.to_string();
    assert!(line.starts_with("traces to http"), "{line}");
    for word in words {
        assert!(line.contains(word), "{word} is missing in: {line}");
    }
    assert!(!line.contains('\n'));
}

#[tokio::test]
async fn each_grpc_status_is_answered_by_its_row() {
    use Code as C;
    let seconds = Duration::from_secs;
    let rows = [
        (Reply::grpc(C::Unavailable, "x"), "retry, unavailable"),
        (Reply::grpc_retry(C::Unavailable, "x", seconds(7)), "retry, unavailable, after 7 s"),
        (Reply::grpc_retry(C::Unavailable, "x", seconds(90_000)), "retry, unavailable, after 3600 s"),
        (Reply::grpc(C::DeadlineExceeded, "x"), "retry, timeout"),
        (Reply::grpc(C::Internal, "x"), "retry, fault, suspicious"),
        (Reply::grpc(C::Unknown, "x"), "retry, fault, suspicious"),
        (Reply::grpc(C::Cancelled, "x"), "retry, unavailable"),
        (Reply::grpc(C::Aborted, "x"), "retry, unavailable"),
        (Reply::grpc(C::OutOfRange, "x"), "retry, unavailable"),
        (Reply::grpc(C::DataLoss, "x"), "retry, unavailable"),
        (Reply::grpc(C::NotFound, "x"), "retry, unavailable"),
        (Reply::grpc(C::AlreadyExists, "x"), "retry, unavailable"),
        (Reply::grpc(C::FailedPrecondition, "x"), "retry, unavailable"),
        (Reply::grpc(C::Unauthenticated, "x"), "misconfigured, credentials"),
        (Reply::grpc(C::PermissionDenied, "x"), "misconfigured, credentials"),
        (Reply::grpc(C::Unimplemented, "x"), "misconfigured, no_pipeline"),
        (Reply::grpc(C::ResourceExhausted, "x"), "too large, size"),
        (Reply::grpc_retry(C::ResourceExhausted, "x", seconds(3)), "too large, size, after 3 s"),
        (Reply::grpc(C::InvalidArgument, "x"), "rejected, invalid"),
        (Reply::ResetUnread, "retry, broken"),
        (Reply::AcceptThenReset, "retry, broken"),
        // What proxies answer, without a word of gRPC.
        (Reply::http(502, &[], "bad gateway"), "retry, unavailable"),
        (Reply::http(503, &[("retry-after", "4")], "busy"), "retry, unavailable, after 4 s"),
        (Reply::http(413, &[], "too large"), "too large, size"),
        (Reply::http(401, &[], "who?"), "misconfigured, credentials"),
        (Reply::http(404, &[], "what?"), "misconfigured, wrong_protocol"),
        (Reply::http(400, &[], "no"), "retry, fault, suspicious"),
        (Reply::http(200, &[("content-type", "text/html")], "<html>"), "misconfigured, wrong_protocol"),
        (Reply::Accept, "accepted"),
    ];
    rows_are_answered(Protocol::Grpc, rows).await;
}

/// What tonic itself panics on.
#[tokio::test]
async fn details_that_nobody_can_read_are_no_details() {
    let details = ["!", "a", "AA=A", ""];
    let rows = details.into_iter().flat_map(|details| {
        let headers = [
            ("grpc-status", "3"),
            ("grpc-status-details-bin", details),
            ("content-type", "application/grpc"),
        ];
        let trailers = headers[..2]
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let reply = Reply::Trailers(trailers.collect());
        [(Reply::http(200, &headers, ""), "rejected, invalid"), (reply, "rejected, invalid")]
    });
    rows_are_answered(Protocol::Grpc, rows).await;
}

#[tokio::test]
async fn each_http_status_is_answered_by_its_row() {
    let rows = [
        (Reply::http(500, &[], "x"), "retry, fault, suspicious"),
        (Reply::http(501, &[], "x"), "retry, unavailable"),
        (Reply::http(502, &[], "x"), "retry, unavailable"),
        (Reply::http(503, &[("retry-after", "9")], "x"), "retry, unavailable, after 9 s"),
        (Reply::http(504, &[], "x"), "retry, timeout"),
        (Reply::http(408, &[], "x"), "retry, timeout"),
        (Reply::http(429, &[], "x"), "retry, unavailable"),
        (
            Reply::http(
                429,
                &[
                    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"),
                ],
                "x",
            ),
            "retry, unavailable, after 30 s",
        ),
        (Reply::http(422, &[], "x"), "retry, unavailable"),
        (Reply::http(401, &[], "x"), "misconfigured, credentials"),
        (Reply::http(403, &[], "x"), "misconfigured, credentials"),
        (Reply::http(404, &[], "x"), "misconfigured, no_pipeline"),
        (Reply::http(405, &[], "x"), "misconfigured, no_pipeline"),
        (Reply::http(415, &[], "x"), "misconfigured, wrong_protocol"),
        (Reply::http(302, &[("location", "https://login/?s=1")], "x"), "misconfigured, wrong_protocol"),
        (Reply::http(413, &[], "x"), "too large, size"),
        (Reply::http(413, &[("retry-after", "2")], "x"), "too large, size, after 2 s"),
        (Reply::http(400, &[], "x"), "rejected, invalid"),
        (
            Reply::http(400, &[], "Client sent an HTTP request to an HTTPS server."),
            "misconfigured, wrong_protocol",
        ),
        (Reply::ResetUnread, "retry, broken"),
        (Reply::AcceptThenReset, "retry, broken"),
        // 200, but nothing was stored.
        (Reply::grpc(Code::Unimplemented, "x"), "misconfigured, wrong_protocol"),
        (Reply::http(200, &[("content-type", "text/html")], "<html>"), "misconfigured, wrong_protocol"),
        (Reply::http(200, &[], "{}"), "accepted"),
        (Reply::http(202, &[], ""), "accepted"),
        (Reply::Accept, "accepted"),
    ];
    rows_are_answered(Protocol::HttpProtobuf, rows).await;
}

async fn rows_are_answered(protocol: Protocol, rows: impl IntoIterator<Item = (Reply, &str)>) {
    let receiver = Receiver::start(protocol, None).await;
    let client = client(protocol, &receiver.endpoint(), &[]);
    let mut sent = 0;
    for (reply, expected) in rows {
        sent += 1;
        let row = format!("{protocol} {reply:?}");
        receiver.script([reply]);
        let answer = send(&client).await;
        assert_eq!(summary(&answer), expected, "{row}: {answer:?}");
    }
    assert_eq!(receiver.attempts(), sent, "every row is one request, and none is tried again in silence");
}

#[tokio::test]
async fn a_request_arrives_byte_for_byte_with_and_without_compression() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        for signal in Signal::ALL {
            for compression in ["none", "gzip"] {
                let options = [("COMPRESSION", compression)];
                let client = try_client(signal, protocol, &receiver.endpoint(), &options).unwrap();
                for is_stored in [false, true] {
                    let answer = if is_stored {
                        client.send_stored(&gzip(REQUEST)).await.unwrap()
                    } else {
                        send(&client).await
                    };
                    assert_eq!(answer, full_success(), "{protocol} {signal} {compression} {is_stored}");
                    let request = receiver.requests().pop().unwrap();
                    assert_eq!(request.body, REQUEST);
                    assert_eq!(request.signal, signal);
                    assert_eq!(request.gzipped, compression == "gzip");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_request_of_three_mebibytes_passes() {
    let request = Bytes::from([&b"\xa2\x06\x80\x80\xc0\x01"[..], &vec![7; 3 << 20][..]].concat());
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[]);
        assert_eq!(client.send(request.clone()).await, full_success());
        assert!(receiver.requests()[0].body == request);
    }
}

#[tokio::test]
async fn headers_go_with_every_request() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let headers = ("HEADERS", "Authorization=Bearer%20s3cr3t,x-scope-orgid=a");
        let client = client(protocol, &receiver.endpoint(), &[headers]);
        for _ in 0..2 {
            assert_eq!(send(&client).await, full_success());
        }
        for request in receiver.requests() {
            assert_eq!(request.headers["authorization"], "Bearer s3cr3t");
            assert_eq!(request.headers["x-scope-orgid"], "a");
            let agent = request.headers["user-agent"].to_str().unwrap();
            assert!(agent.starts_with(concat!("runspan/", env!("CARGO_PKG_VERSION"))), "{agent}");
        }
    }
}

#[tokio::test]
async fn secrets_are_in_no_debug_and_no_answer() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[("HEADERS", "authorization=Bearer s3cr3t")]);
        let echo = "bad token s3cr3t\r\nin 'Bearer s3cr3t'";
        receiver.script([match protocol {
            Protocol::Grpc => Reply::grpc(Code::Unauthenticated, echo),
            Protocol::HttpProtobuf => Reply::http(401, &[], echo),
        }]);
        let answer = send(&client).await;
        assert_misconfigured(
            &answer,
            FailureKind::Credentials,
            &["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "bad token [redacted] in '[redacted]'"],
        );
        assert!(!format!("{client:?} {answer:?}").contains("s3cr3t"));
    }
}

#[tokio::test]
async fn credentials_in_the_url_become_a_header_and_stay_out_of_sight() {
    let receiver = Receiver::http().await;
    let endpoint = receiver.endpoint().replace("http://", "http://user:s3cr3t@");
    let client = client(Protocol::HttpProtobuf, &endpoint, &[]);
    assert_eq!(send(&client).await, full_success());
    assert_eq!(receiver.requests()[0].headers["authorization"], "Basic dXNlcjpzM2NyM3Q=");
    receiver.script([Reply::ResetUnread]);
    let answer = send(&client).await;
    assert!(!format!("{client:?} {answer:?}").contains("s3cr3t"));
}

#[tokio::test]
async fn partial_success_is_counted_and_quoted() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[]);
        receiver.script([
            Reply::Partial { rejected: 3, message: "too\nold".to_owned() },
            Reply::Partial { rejected: 0, message: "slow down".to_owned() },
            Reply::Partial { rejected: -1, message: String::new() },
        ]);
        let accepted = |rejected, message: &str| Answer::Accepted { rejected, message: message.to_owned() };
        assert_eq!(send(&client).await, accepted(3, "too old"));
        assert_eq!(send(&client).await, accepted(0, "slow down"));
        assert_eq!(send(&client).await, full_success());
    }
}

#[tokio::test]
async fn a_receivers_words_are_cut_and_cleaned() {
    let long = format!("\u{1b}[31mred\u{0}\u{202e}{}", "é".repeat(4000));
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[]);
        receiver.script([match protocol {
            Protocol::Grpc => Reply::grpc(Code::InvalidArgument, &long),
            Protocol::HttpProtobuf => Reply::http(400, &[], long.clone()),
        }]);
        let answer = send(&client).await;
        let line = answer.cause().unwrap().to_string();
        assert!(line.contains("[31mred é") && line.ends_with("é…\""), "{line}");
        assert!(line.chars().count() < 450 && !line.contains(|c: char| c.is_control()));
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_a_timeout_and_the_next_request_passes() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[("TIMEOUT", "150")]);
        receiver.script([Reply::Hang]);
        let start = Instant::now();
        let answer = send(&client).await;
        assert_eq!(summary(&answer), "retry, timeout");
        assert!(answer.cause().unwrap().to_string().ends_with("no answer within 150ms"), "{answer:?}");
        assert!((150..5000).contains(&start.elapsed().as_millis()));
        for _ in 0..2 {
            assert_eq!(send(&client).await, full_success());
        }
        assert_eq!(
            receiver.connections(),
            2,
            "not the old one, which may be half open, but then one for all"
        );
    }
}

#[tokio::test]
async fn an_abandoned_request_leaves_the_client_usable() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[]);
        receiver.script([Reply::Hang]);
        tokio::select! {
            answer = send(&client) => panic!("{answer:?}"),
            () = receiver.wait_until("request", |receiver| receiver.attempts() == 1) => {}
        }
        assert_eq!(send(&client).await, full_success());
    }
}

#[tokio::test]
async fn a_receiver_that_goes_away_and_comes_back_is_found_again() {
    for protocol in PROTOCOLS {
        let mut receiver = Receiver::start(protocol, None).await;
        let client = client(protocol, &receiver.endpoint(), &[]);
        assert_eq!(send(&client).await, full_success());
        receiver.go_away().await;
        // The old connection may be found broken first.
        let mut answer = send(&client).await;
        if summary(&answer) == "retry, broken" {
            answer = send(&client).await;
        }
        assert_eq!(summary(&answer), "retry, unreachable", "{answer:?}");
        assert!(answer.cause().unwrap().to_string().contains("connection refused"), "{answer:?}");
        receiver.come_back().await;
        assert_eq!(send(&client).await, full_success());
        receiver.wait_for(2).await;
    }
}

#[tokio::test]
async fn an_unknown_host_is_named_as_such() {
    for protocol in PROTOCOLS {
        let answer = send(&client(protocol, "http://collector.invalid:4317", &[])).await;
        assert_eq!(summary(&answer), "retry, unreachable");
        // A proxy, where one is set for this process, looks the name up itself.
        if protocol == Protocol::Grpc {
            let line = answer.cause().unwrap().to_string();
            assert!(line.contains("host name was not found"), "{line}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_grpc_does_not_use_is_said() {
    let variables = |name: &str| {
        Some(match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => "https://collector.invalid:4317".to_owned(),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => "grpc".to_owned(),
            "HTTPS_PROXY" => "http://proxy.invalid:3128".to_owned(),
            _ => return None,
        })
    };
    let config = SignalConfig::from_env(Signal::Traces, &variables).unwrap().unwrap();
    let line = send(&Client::new(&config).unwrap()).await.cause().unwrap().to_string();
    assert!(
        line.contains("no proxy is used over gRPC, though HTTPS_PROXY is set: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"),
        "{line}"
    );
}

#[tokio::test]
async fn the_wrong_protocol_on_a_port_is_said_plainly() {
    let authority = Authority::new();
    let ca = authority.ca_file();
    let ca = [("CERTIFICATE", ca.to_str().unwrap())];
    for (spoken, expected) in [
        (
            Protocol::Grpc,
            ["this looks like an HTTP port", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", "4317"],
        ),
        (
            Protocol::HttpProtobuf,
            ["this looks like a gRPC port", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", "4318"],
        ),
    ] {
        let other = PROTOCOLS.into_iter().find(|protocol| *protocol != spoken).unwrap();
        let receiver = Receiver::start(other, None).await;
        let answer = send(&client(spoken, &receiver.endpoint(), &[])).await;
        assert_misconfigured(&answer, FailureKind::WrongProtocol, &expected);
        let receiver = Receiver::start(other, Some(authority.server())).await;
        let answer = send(&client(spoken, &receiver.endpoint(), &ca)).await;
        assert_misconfigured(&answer, FailureKind::WrongProtocol, &expected);
    }
}

#[tokio::test]
async fn tls_where_there_is_none_is_said_plainly() {
    let authority = Authority::new();
    let ca = authority.ca_file();
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, None).await;
        let endpoint = receiver.endpoint().replace("http:", "https:");
        let client = client(protocol, &endpoint, &[("CERTIFICATE", ca.to_str().unwrap())]);
        assert_misconfigured(
            &send(&client).await,
            FailureKind::WrongProtocol,
            &["does not use TLS", "http://"],
        );
    }
    let receiver = Receiver::start(Protocol::HttpProtobuf, Some(authority.server())).await;
    let endpoint = receiver.endpoint().replace("https:", "http:");
    let answer = send(&client(Protocol::HttpProtobuf, &endpoint, &[])).await;
    assert_misconfigured(&answer, FailureKind::WrongProtocol, &["requires TLS", "https://"]);
}

#[tokio::test]
async fn a_certificate_is_trusted_by_its_authority_only() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (ours, theirs) = (authority.ca_file(), stranger.ca_file());
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, Some(authority.server())).await;
        let answer = |ca: &Path| {
            let client = client(protocol, &receiver.endpoint(), &[("CERTIFICATE", ca.to_str().unwrap())]);
            async move { send(&client).await }
        };
        assert_eq!(answer(&ours).await, full_success());
        assert_misconfigured(
            &answer(&theirs).await,
            FailureKind::Certificate,
            &["is not trusted", "OTEL_EXPORTER_OTLP_CERTIFICATE"],
        );
        let receiver = Receiver::start(protocol, Some(authority.server_named("elsewhere"))).await;
        let client = client(protocol, &receiver.endpoint(), &[("CERTIFICATE", ours.to_str().unwrap())]);
        assert_misconfigured(
            &send(&client).await,
            FailureKind::Certificate,
            &["another host name", "elsewhere"],
        );
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_wanted() {
    let authority = Authority::new();
    let ca = authority.ca_file();
    let (certificate, key) = authority.client_files();
    let ca = ("CERTIFICATE", ca.to_str().unwrap());
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, Some(authority.server_for_clients())).await;
        let answer = send(&client(protocol, &receiver.endpoint(), &[ca])).await;
        assert_misconfigured(
            &answer,
            FailureKind::Certificate,
            &["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"],
        );
        let options = [
            ca,
            ("CLIENT_CERTIFICATE", certificate.to_str().unwrap()),
            ("TRACES_CLIENT_KEY", key.to_str().unwrap()),
        ];
        assert_eq!(send(&client(protocol, &receiver.endpoint(), &options)).await, full_success());
    }
}

/// Files are renewed while the process runs; of a pair one may be written before the other.
#[tokio::test]
async fn certificates_that_change_on_disk_are_used_from_the_next_request_on() {
    for protocol in PROTOCOLS {
        let (before, after) = (Authority::new(), Authority::new());
        let directory = tempfile::tempdir().unwrap();
        let [ca, certificate, key] =
            ["ca.pem", "client.pem", "client.key"].map(|name| directory.path().join(name));
        let replace = |from: &Path, to: &Path| {
            let new = to.with_extension("new");
            fs::copy(from, &new).unwrap();
            fs::rename(new, to).unwrap();
        };
        let (first_certificate, first_key) = before.client_files();
        replace(&before.ca_file(), &ca);
        replace(&first_certificate, &certificate);
        replace(&first_key, &key);
        let options = [
            ("CERTIFICATE", ca.to_str().unwrap()),
            ("CLIENT_CERTIFICATE", certificate.to_str().unwrap()),
            ("CLIENT_KEY", key.to_str().unwrap()),
        ];
        let mut receiver = Receiver::start(protocol, Some(before.server_for_clients())).await;
        let client = client(protocol, &receiver.endpoint(), &options);
        assert_eq!(send(&client).await, full_success());

        // Nothing is lost while only some of them are there: the connection lasts.
        let (second_certificate, second_key) = after.client_files();
        replace(&second_certificate, &certificate);
        assert_eq!(send(&client).await, full_success());
        fs::remove_file(&ca).unwrap();
        assert_eq!(send(&client).await, full_success());
        receiver.identify_as(after.server_for_clients());
        replace(&after.ca_file(), &ca);
        replace(&second_key, &key);
        receiver.go_away().await;
        receiver.come_back().await;
        assert_eq!(send(&client).await, full_success(), "{protocol}");
        assert_eq!(receiver.connections(), 2);
    }
}

/// What `openssl req -x509` makes. No client of rustls accepts it, trusted or not.
#[tokio::test]
async fn the_certificate_of_an_authority_is_no_servers() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for protocol in PROTOCOLS {
        let receiver = Receiver::start(protocol, Some(authority.server_as_authority())).await;
        for ca in [authority.ca_file(), stranger.ca_file()] {
            let client = client(protocol, &receiver.endpoint(), &[("CERTIFICATE", ca.to_str().unwrap())]);
            let advice = ["CA:TRUE", "basicConstraints=critical,CA:FALSE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
            assert_misconfigured(&send(&client).await, FailureKind::Certificate, &advice);
        }
        // What is advised works.
        let (server, certificate) = Authority::self_signed();
        let receiver = Receiver::start(protocol, Some(server)).await;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(certificate.as_bytes()).unwrap();
        let ca = [("CERTIFICATE", file.path().to_str().unwrap())];
        assert_eq!(send(&client(protocol, &receiver.endpoint(), &ca)).await, full_success());
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_variable() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let nonsense = directory.path().join("nonsense.pem");
    fs::write(&nonsense, "nonsense").unwrap();
    let (certificate, key) = authority.client_files();
    let (_, other_key) = stranger.client_files();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let (ca, nonsense) = (name(&authority.ca_file()), name(&nonsense));
    for protocol in PROTOCOLS {
        let line = |options: &[(&str, &str)]| {
            let client = try_client(Signal::Traces, protocol, "https://localhost:1", options);
            client.unwrap_err().to_string()
        };
        let identity = |certificate: &str, key: &str| {
            line(&[("CERTIFICATE", &ca), ("CLIENT_CERTIFICATE", certificate), ("CLIENT_KEY", key)])
        };
        assert!(
            line(&[("CERTIFICATE", "/nowhere.pem")])
                .starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE names /nowhere.pem, which cannot be read")
        );
        assert!(line(&[("TRACES_CERTIFICATE", &nonsense)]).starts_with(&format!(
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE names {nonsense}, which holds no valid PEM certificate"
        )));
        assert!(identity(&nonsense, &name(&key)).starts_with("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE names"));
        assert!(identity(&name(&certificate), &nonsense).starts_with("OTEL_EXPORTER_OTLP_CLIENT_KEY names"));
        let mismatch = identity(&name(&certificate), &name(&other_key));
        assert!(
            mismatch.contains("cannot be used with the key of OTEL_EXPORTER_OTLP_CLIENT_KEY"),
            "{mismatch}"
        );
    }
}

#[tokio::test]
async fn the_rule_answers_what_no_script_does() {
    let receiver = Receiver::grpc().await;
    receiver.rule(|request| {
        if request.body.len() > 4 { Reply::grpc(Code::ResourceExhausted, "too long") } else { Reply::Accept }
    });
    let client = client(Protocol::Grpc, &receiver.endpoint(), &[]);
    receiver.script([Reply::Accept]);
    assert_eq!(summary(&send(&client).await), "accepted");
    assert_eq!(summary(&send(&client).await), "too large, size");
    assert_eq!(client.send(Bytes::from_static(b"\x0a\x00")).await, full_success());
    assert_eq!(receiver.requests().len(), 2);
}
