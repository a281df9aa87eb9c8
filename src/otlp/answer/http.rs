//! Classifies answers over HTTP (OTLP specification, "OTLP/HTTP Response").
//!
//! Anything may listen on an HTTP port: a gRPC server, a login page, a health check. Their successes must not count as
//! acceptance.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use prost::Message as _;

use super::{
    Answer, Cause, ExportResponse, FailureKind, PartialSuccess, accepted, requested_wait, sanitize,
    transport::other_protocol,
};
use crate::otlp::config::{Protocol, SignalConfig};

/// Reads an HTTP response: to OTLP over HTTP, or to a gRPC call that another server answered, such as a proxy.
///
/// `now` is for a `Retry-After` that is a date, in a response without a date.
pub fn from_http(
    config: &SignalConfig,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Answer {
    if let Some(what) = foreign(config, status, headers, body) {
        return Answer::Misconfigured(Cause::new(config, FailureKind::WrongProtocol, &what, ""));
    }
    if status.is_success() {
        return success(config, status, &content_type(headers), body);
    }
    let message = message(headers, body);
    let cause = |kind, hint: &str| Cause::new(config, kind, &format!("HTTP {status}{hint}"), &message);
    let after = retry_after(headers, now);
    let over_grpc = config.protocol == Protocol::Grpc;
    match status.as_u16() {
        401 | 403 => Answer::Misconfigured(cause(
            FailureKind::Credentials,
            &format!(", the credentials are missing or wrong, check {}", config.variable("HEADERS")),
        )),
        404 | 405 | 415 if over_grpc => {
            Answer::Misconfigured(cause(FailureKind::WrongProtocol, &format!(", {}", other_protocol(config))))
        }
        404 | 405 => Answer::Misconfigured(cause(
            FailureKind::NoPipeline,
            &format!(
                ", the receiver does not accept {signal}, check the path in {} or add a {signal} pipeline to the receiver",
                config.endpoint_variable,
                signal = config.signal,
            ),
        )),
        415 => Answer::Misconfigured(cause(
            FailureKind::WrongProtocol,
            &format!(
                ", the receiver does not accept protobuf over HTTP, check the port in {} and {}",
                config.endpoint_variable,
                config.variable("PROTOCOL"),
            ),
        )),
        300..=399 => Answer::Misconfigured(cause(
            FailureKind::WrongProtocol,
            &format!(
                ", a redirect{}, which is not followed, set {} to the receiver's own address",
                redirect_target(config, headers),
                config.endpoint_variable
            ),
        )),
        413 => Answer::TooLarge { cause: cause(FailureKind::Size, ""), after },
        400 if !over_grpc => Answer::Rejected(cause(FailureKind::Invalid, "")),
        // gRPC maps a proxy's 400 to INTERNAL: the proxy never parsed the message.
        400 | 500 => Answer::Retry { cause: cause(FailureKind::Fault, ""), after },
        408 | 504 => Answer::Retry { cause: cause(FailureKind::Timeout, ""), after },
        _ => Answer::Retry { cause: cause(FailureKind::Unavailable, ""), after },
    }
}

/// The problem if another server than an OTLP/HTTP receiver answered. Its success means nothing: nothing was stored.
fn foreign(config: &SignalConfig, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let content_type = content_type(headers);
    let variable = &config.endpoint_variable;
    if config.protocol == Protocol::Grpc {
        return status.is_success().then(|| other_protocol(config));
    }
    // gRPC servers answer 200 with the error in a header, which must not count as acceptance.
    if content_type.starts_with("application/grpc") || headers.contains_key("grpc-status") {
        return Some(other_protocol(config));
    }
    if status.is_success() && is_html(&content_type, body) {
        return Some(format!("answers with a web page, so it is not an OTLP receiver: check {variable}"));
    }
    // Go's and nginx's answers to plain HTTP on a TLS port.
    if status == StatusCode::BAD_REQUEST
        && !config.endpoint.is_tls()
        && [&b"HTTP request to an HTTPS server"[..], b"plain HTTP request was sent to HTTPS port"]
            .iter()
            .any(|phrase| body.windows(phrase.len()).any(|window| window == *phrase))
    {
        return Some(format!("this port requires TLS: write https:// in {variable}"));
    }
    None
}

/// In lower case, without parameters.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a response is a web page, whatever its type says.
fn is_html(content_type: &str, body: &[u8]) -> bool {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii_start();
    let begins = |tag: &[u8]| body.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    matches!(content_type, "text/html" | "application/xhtml+xml")
        || begins(b"<!doctype html")
        || begins(b"<html")
}

/// A success. OTLP/HTTP requires a protobuf response (specification, "Full Success"), but some receivers answer in JSON, with
/// nothing, or in their own words. What they stored they would store again if the request was sent again.
fn success(config: &SignalConfig, status: StatusCode, content_type: &str, body: &[u8]) -> Answer {
    let is_protobuf = content_type.is_empty() || content_type.starts_with("application/x-protobuf");
    let response = if body.is_empty() {
        Some(ExportResponse::default())
    } else if is_protobuf && let Ok(response) = ExportResponse::decode(body) {
        Some(response)
    } else {
        json_response(body)
    };
    response.map_or_else(
        || {
            let kind = if content_type.is_empty() { "a body" } else { content_type };
            let message = format!(
                "answers {status} with {kind} that is not an OTLP response, which counts as accepted: check {} if nothing \
                 is stored",
                config.endpoint_variable
            );
            Answer::Accepted { rejected: 0, message: sanitize(config, &message) }
        },
        |response| accepted(config, response),
    )
}

/// A response in OTLP's JSON encoding, which writes 64-bit numbers as strings.
fn json_response(body: &[u8]) -> Option<ExportResponse> {
    let serde_json::Value::Object(answer) = serde_json::from_slice(body).ok()? else { return None };
    if !answer.keys().all(|key| matches!(key.as_str(), "partialSuccess" | "partial_success")) {
        return None;
    }
    let partial_success = answer.values().find_map(serde_json::Value::as_object).map(|partial| {
        let rejected =
            partial.iter().filter(|(key, _)| key.starts_with("rejected")).find_map(|(_, count)| {
                count.as_i64().or_else(|| count.as_str().and_then(|count| count.parse().ok()))
            });
        let message =
            ["errorMessage", "error_message"].into_iter().find_map(|key| partial.get(key)?.as_str());
        PartialSuccess {
            rejected: rejected.unwrap_or_default(),
            error_message: message.unwrap_or_default().as_bytes().to_vec(),
        }
    });
    Some(ExportResponse { partial_success })
}

/// The receiver's message: that of the `google.rpc.Status` that OTLP requires, or the body as text.
fn message(headers: &HeaderMap, body: &[u8]) -> String {
    let is_protobuf = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/x-protobuf"));
    if is_protobuf && let Ok(status) = tonic_types::Status::decode(body) {
        return status.message;
    }
    String::from_utf8_lossy(body).into_owned()
}

/// Scheme, host and path of a redirect. Its query may hold a session, and any part may repeat our headers.
fn redirect_target(config: &SignalConfig, headers: &HeaderMap) -> String {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match url::Url::parse(&config.headers.scrub(location)) {
        Ok(url) => format!(
            " to {}://{}{}",
            url.scheme(),
            url.host_str().unwrap_or_default().chars().take(100).collect::<String>(),
            url.path().chars().take(100).collect::<String>()
        ),
        Err(_) => String::new(),
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().ok()?)
    } else {
        // The receiver's own clock, if it shows it: then a wrong clock on either side does not matter.
        let date = headers.get(header::DATE).and_then(|value| value.to_str().ok());
        let now = date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
        httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?
    };
    requested_wait(wait)
}
