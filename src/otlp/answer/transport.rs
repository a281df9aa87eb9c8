//! Classifies failures without an answer: of the connection, of TLS, of HTTP.
//!
//! Such a failure may pass, or be a wrong port, protocol or certificate that somebody must fix. Types decide where they
//! reach us, texts where they do not.

use std::{error::Error, io};

use rustls::CertificateError;

use super::{Answer, Cause, FailureKind};
use crate::error_chain::{chain, describe};
use crate::otlp::config::{Protocol, SignalConfig};

/// The configured time for one request has passed.
pub fn timed_out(config: &SignalConfig) -> Answer {
    let what =
        format!("no answer within {}{}", humantime::format_duration(config.timeout), proxy_hint(config));
    Answer::Retry { cause: Cause::new(config, FailureKind::Timeout, &what, ""), after: None }
}

/// Reads an error of the connection, or of TLS or HTTP on it, from the chain of its sources.
pub fn from_transport(config: &SignalConfig, error: &(dyn Error + 'static)) -> Answer {
    // rustls reports the exact problem, inside an io::Error of an unspecific kind.
    if let Some(answer) =
        chain(error).find_map(|error| error.downcast_ref::<rustls::Error>()).and_then(|e| tls(config, e))
    {
        return answer;
    }
    let text = describe(error);
    if let Some(answer) = alert(config, &text).or_else(|| wrong_protocol(config, &text)) {
        return answer;
    }
    let io = chain(error).find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    let variable = &config.endpoint_variable;
    let (kind, what) = match io {
        _ if text.contains("dns error") => (
            FailureKind::Unreachable,
            format!("the host name was not found, check {variable} or the name service"),
        ),
        Some(io::ErrorKind::ConnectionRefused) => (
            FailureKind::Unreachable,
            format!("connection refused, nothing listens on port {}", config.endpoint.port()),
        ),
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            (FailureKind::Unreachable, "no route to the host".to_owned())
        }
        Some(io::ErrorKind::TimedOut) => (FailureKind::Timeout, "the connection timed out".to_owned()),
        _ => (
            FailureKind::Broken,
            format!("the connection broke before a response arrived{}", port_hint(config)),
        ),
    };
    let what = format!("{what}{}", proxy_hint(config));
    Answer::Retry { cause: Cause::new(config, kind, &what, &text), after: None }
}

/// A hint where a proxy is configured that gRPC does not use: perhaps there is no other way to the receiver.
fn proxy_hint(config: &SignalConfig) -> String {
    match &config.proxy_variable {
        Some(variable) if config.protocol == Protocol::Grpc => format!(
            ", and no proxy is used over gRPC, though {variable} is set: set {}={} to use it",
            config.variable("PROTOCOL"),
            Protocol::HttpProtobuf,
        ),
        _ => String::new(),
    }
}

/// A hint where the port is usually the other protocol's: some servers close the connection without an error.
fn port_hint(config: &SignalConfig) -> String {
    let other = match config.protocol {
        Protocol::Grpc => Protocol::HttpProtobuf,
        Protocol::HttpProtobuf => Protocol::Grpc,
    };
    let port = config.endpoint.port();
    if port == other.usual_port() {
        format!(", port {port} usually speaks {other}, check {}", config.variable("PROTOCOL"))
    } else {
        String::new()
    }
}

/// A TLS error that is about the configuration; `None` for one that may pass by itself.
fn tls(config: &SignalConfig, error: &rustls::Error) -> Option<Answer> {
    let variable = &config.endpoint_variable;
    let (kind, what) = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            FailureKind::Certificate,
            format!(
                "the receiver's certificate is for another host name, use a name from the certificate in {variable}"
            ),
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => (FailureKind::Certificate, "the receiver's certificate has expired, renew it".to_owned()),
        // Before anything else, so that trusting it changes nothing. It is what `openssl req -x509` makes.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            (
                FailureKind::Certificate,
                format!(
                    "the receiver's certificate is that of an authority (CA:TRUE), with which a server must not identify \
                     itself: give the receiver one that it signed, or a self-signed one with CA:FALSE (openssl req -x509 \
                     -addext basicConstraints=critical,CA:FALSE), and set {} to the signer",
                    tls_variable(config, "CERTIFICATE"),
                ),
            )
        }
        rustls::Error::InvalidCertificate(_) => (
            FailureKind::Certificate,
            format!(
                "the receiver's certificate is not trusted, set {} to a PEM file with the certificate of the authority that signed it",
                tls_variable(config, "CERTIFICATE"),
            ),
        ),
        rustls::Error::InvalidMessage(_) => {
            (FailureKind::WrongProtocol, format!("this port does not use TLS: write http:// in {variable}"))
        }
        _ => return None,
    };
    Some(Answer::Misconfigured(Cause::new(config, kind, &what, &error.to_string())))
}

/// The variable of a file that is set, or the general one as the one to set.
fn tls_variable(config: &SignalConfig, option: &str) -> String {
    let client = config.tls.client.as_ref();
    let file = match option {
        "CERTIFICATE" => config.tls.ca.as_ref(),
        "CLIENT_CERTIFICATE" => client.map(|client| &client.certificate),
        _ => client.map(|client| &client.key),
    };
    file.map_or_else(|| format!("OTEL_EXPORTER_OTLP_{option}"), |file| file.variable.clone())
}

/// A TLS alert from the other side. With TLS 1.3 it checks our certificate after the handshake, where h2 keeps only the
/// text of an error; so the text decides.
fn alert(config: &SignalConfig, text: &str) -> Option<Answer> {
    let (_, after) = text.split_once("received fatal alert: ")?;
    let alert = after.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let (kind, what) = match alert {
        "CertificateRequired"
        | "BadCertificate"
        | "UnsupportedCertificate"
        | "CertificateRevoked"
        | "CertificateExpired"
        | "CertificateUnknown"
        | "UnknownCA"
        | "AccessDenied" => (
            FailureKind::Certificate,
            format!(
                "the receiver rejects the client certificate or requires one, check {} and {}",
                tls_variable(config, "CLIENT_CERTIFICATE"),
                tls_variable(config, "CLIENT_KEY"),
            ),
        ),
        "NoApplicationProtocol" => (FailureKind::WrongProtocol, other_protocol(config)),
        _ => return None,
    };
    Some(Answer::Misconfigured(Cause::new(config, kind, &what, text)))
}

/// Whether the other side speaks another HTTP version. No type of hyper or h2 reaches us, so their text decides; the
/// integration tests check it against real sockets.
fn wrong_protocol(config: &SignalConfig, text: &str) -> Option<Answer> {
    let what = match config.protocol {
        // An HTTP/1 answer read as a frame has a length of "HTT", 4.7 MB.
        Protocol::Grpc
            if text.contains("frame with invalid size") || text.contains("HTTP/2 was not negotiated") =>
        {
            other_protocol(config)
        }
        // HTTP/2 servers speak first.
        Protocol::HttpProtobuf if text.contains("unexpected message from connection") => {
            other_protocol(config)
        }
        // Their frame, read as an answer; but the alert of a TLS server looks the same.
        Protocol::HttpProtobuf if text.contains("invalid HTTP version parsed") => {
            let tls = if config.endpoint.is_tls() { "" } else { "; or it requires TLS: write https://" };
            format!("{}{tls}", other_protocol(config))
        }
        _ => return None,
    };
    Some(Answer::Misconfigured(Cause::new(config, FailureKind::WrongProtocol, &what, "")))
}

/// How to fix a port that speaks the other protocol.
pub(super) fn other_protocol(config: &SignalConfig) -> String {
    let (looks_like, other, own) = match config.protocol {
        Protocol::Grpc => ("an HTTP", Protocol::HttpProtobuf, "gRPC"),
        Protocol::HttpProtobuf => ("a gRPC", Protocol::Grpc, "HTTP"),
    };
    format!(
        "this looks like {looks_like} port: set {}={other}, or use the receiver's {own} port in {} (usually {})",
        config.variable("PROTOCOL"),
        config.endpoint_variable,
        config.protocol.usual_port(),
    )
}
