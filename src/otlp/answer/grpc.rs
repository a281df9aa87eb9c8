//! Classifies answers over gRPC (OTLP specification, "OTLP/gRPC Response").
//!
//! tonic reports its own failures as statuses too, so this module distinguishes the receiver's statuses from its guesses.

use std::{
    error::Error as _,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, StatusCode};
use prost::Message as _;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::RetryInfo;

use super::{
    Answer, Cause, ExportResponse, FailureKind, accepted, from_http, from_transport, requested_wait,
};
use crate::otlp::config::SignalConfig;

/// Reads the body of a response with status OK. One that cannot be decoded does not change that the request was accepted:
/// sending it again would store it twice.
pub fn from_grpc_response(config: &SignalConfig, response: &[u8]) -> Answer {
    accepted(config, ExportResponse::decode(response).unwrap_or_default())
}

/// An answer to a gRPC call from a server that does not speak gRPC. As the source of a status it preserves what tonic
/// would replace by a guess.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status} without a gRPC status")]
pub struct NotGrpc {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers of the response.
    pub headers: HeaderMap,
}

/// Where a status has its details, base64 of a `google.rpc.Status`.
const DETAILS: &str = "grpc-status-details-bin";

/// Removes malformed details from headers or trailers: tonic panics on them (seen with 0.14.9), so that one answer could
/// end the relay.
pub fn drop_unreadable_details(headers: &mut HeaderMap) {
    let Some(details) = headers.get(DETAILS) else { return };
    let alone = MetadataMap::from_headers(HeaderMap::from_iter([(
        HeaderName::from_static(DETAILS),
        details.clone(),
    )]));
    if alone.get_bin(DETAILS).is_none_or(|details| details.to_bytes().is_err()) {
        headers.remove(DETAILS);
    }
}

/// Reads a status other than OK. `now` is as for [`from_http`].
pub fn from_grpc(config: &SignalConfig, status: &Status, now: SystemTime) -> Answer {
    // Only statuses that tonic makes of its own failures have a source. Their codes are guesses: a reset of the HTTP/2
    // stream is not a judgement on the request.
    if let Some(source) = status.source() {
        if let Some(NotGrpc { status, headers }) = source.downcast_ref() {
            return from_http(config, *status, headers, &[], now);
        }
        return from_transport(config, source);
    }
    let code = status.code();
    let after = retry_info(status.details()).and_then(requested_wait);
    let cause =
        |kind, what: &str| Cause::new(config, kind, &format!("{}{what}", name(code)), status.message());
    let set = |option| config.variable(option);
    match code {
        Code::Unauthenticated | Code::PermissionDenied => Answer::Misconfigured(cause(
            FailureKind::Credentials,
            &format!(", the credentials are missing or wrong, check {}", set("HEADERS")),
        )),
        Code::Unimplemented => Answer::Misconfigured(cause(
            FailureKind::NoPipeline,
            &format!(
                ", the receiver does not accept {signal} over gRPC, add a {signal} pipeline to the receiver or check {}",
                config.endpoint_variable,
                signal = config.signal,
            ),
        )),
        Code::ResourceExhausted => Answer::TooLarge { cause: cause(FailureKind::Size, ""), after },
        Code::InvalidArgument => Answer::Rejected(cause(FailureKind::Invalid, "")),
        Code::Internal | Code::Unknown => Answer::Retry { cause: cause(FailureKind::Fault, ""), after },
        Code::DeadlineExceeded => Answer::Retry { cause: cause(FailureKind::Timeout, ""), after },
        // OK would be a mistake of the caller; keeping the request is safe.
        Code::Ok
        | Code::Unavailable
        | Code::Cancelled
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => Answer::Retry { cause: cause(FailureKind::Unavailable, ""), after },
    }
}

/// The wait in a `google.rpc.RetryInfo` among a status' details. Not by `tonic_types`, which panics on the shortest
/// duration (0.14.9, in a build with overflow checks).
fn retry_info(details: &[u8]) -> Option<Duration> {
    let details = tonic_types::pb::Status::decode(details).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url == RetryInfo::TYPE_URL)?;
    let delay = tonic_types::pb::RetryInfo::decode(&*info.value).ok()?.retry_delay?;
    // Seconds and nanoseconds have the same sign (`google.protobuf.Duration`).
    let (seconds, nanos) = (u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?);
    Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))
}

/// The name in the gRPC specification, which people search for.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
