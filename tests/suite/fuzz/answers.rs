//! What receivers answer, and what is made of it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use prost::Message as _;
use runspan::otlp::Signal;
use runspan::otlp::answer::{
    Answer, LONGEST_MESSAGE, LONGEST_WAIT, NotGrpc, drop_unreadable_details, from_grpc, from_grpc_response,
    from_http, from_transport,
};
use runspan::otlp::config::SignalConfig;
use tonic::{Code, Status};

use super::{fuzz, text};

/// The header that each request carries, which a receiver may well repeat.
const SECRET: &str = "s3cr3t-t0ken";

#[test]
fn any_answer_over_http() {
    let inputs = (status(), headers(), body(), any::<bool>());
    fuzz("any answer over HTTP", &inputs, |(status, headers, body, grpc)| {
        let answer = from_http(&config(grpc), status, &headers, &body, SystemTime::now());
        sane(&answer)?;
        // Deleted only when it was taken, and given up only when it was understood and called wrong.
        match &answer {
            Answer::Accepted { .. } => prop_assert!(status.is_success() && !grpc, "{answer:?}"),
            Answer::Rejected(_) => prop_assert!(status == 400 && !grpc, "{answer:?}"),
            Answer::Retry { .. } | Answer::Misconfigured(_) | Answer::TooLarge { .. } => {}
        }
        Ok(())
    });
}

#[test]
fn any_answer_over_grpc() {
    let inputs = (-3_i32..30, said(), details());
    fuzz("any answer over gRPC", &inputs, |(code, message, details)| {
        let status = Status::with_details(Code::from(code), message, details.into());
        of_status(&status)
    });
}

#[test]
fn any_trailers() {
    let value = prop_oneof!["-?[0-9]{1,3}", "[ -~]{0,60}", Just(format!("%0a{SECRET}%"))];
    let details = prop_oneof!["[A-Za-z0-9+/=]{0,120}", "[ -~]{0,60}"];
    let inputs = (value.clone(), value, details, headers());
    fuzz("any trailers", &inputs, |(code, message, details, mut headers)| {
        for (name, value) in
            [("grpc-status", code), ("grpc-message", message), ("grpc-status-details-bin", details)]
        {
            headers.insert(name, HeaderValue::from_str(&value).unwrap());
        }
        drop_unreadable_details(&mut headers);
        match Status::from_header_map(&headers) {
            Some(status) => of_status(&status),
            None => Ok(()),
        }
    });
}

#[test]
fn any_answer_that_is_not_grpcs() {
    fuzz("any answer that is not gRPC's", &(status(), headers()), |(status, headers)| {
        let status = Status::from_error(Box::new(NotGrpc { status, headers }));
        let answer = from_grpc(&config(true), &status, SystemTime::now());
        sane(&answer)?;
        prop_assert!(!matches!(answer, Answer::Accepted { .. } | Answer::Rejected(_)), "{answer:?}");
        Ok(())
    });
}

#[test]
fn any_broken_connection() {
    let said = prop_oneof![
        said(),
        said().prop_map(|said| format!("received fatal alert: {said}")),
        prop::sample::select(vec!["BadCertificate", "UnknownCA", "NoApplicationProtocol", "InternalError"])
            .prop_map(|alert| format!("received fatal alert: {alert}")),
    ];
    fuzz("any broken connection", &(said, any::<bool>()), |(said, grpc)| {
        let error = std::io::Error::other(said);
        let answer = from_transport(&config(grpc), &error);
        sane(&answer)?;
        prop_assert!(
            matches!(answer, Answer::Retry { .. } | Answer::Misconfigured(_)),
            "nothing was answered: {answer:?}"
        );
        Ok(())
    });
}

#[test]
fn any_acceptance() {
    let partial = (any::<i64>(), said()).prop_map(|(rejected_log_records, error_message)| {
        let partial = ExportLogsPartialSuccess { rejected_log_records, error_message };
        ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    });
    fuzz("any acceptance", &prop_oneof![body(), partial], |body| {
        let answer = from_grpc_response(&config(true), &body);
        sane(&answer)?;
        prop_assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
        Ok(())
    });
}

fn config(grpc: bool) -> SignalConfig {
    let env = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(if grpc { "grpc" } else { "http/protobuf" }.to_owned()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some(format!("authorization=Bearer {SECRET}")),
        _ => None,
    };
    SignalConfig::from_env(Signal::Logs, &env).unwrap().unwrap()
}

/// What holds for every answer.
fn sane(answer: &Answer) -> TestCaseResult {
    let (after, line) = match answer {
        Answer::Accepted { message, .. } => (None, message.clone()),
        Answer::Retry { cause, after } | Answer::TooLarge { cause, after } => (*after, cause.to_string()),
        Answer::Misconfigured(cause) | Answer::Rejected(cause) => (None, cause.to_string()),
    };
    prop_assert!(after.unwrap_or_default() <= LONGEST_WAIT, "{after:?}");
    prop_assert!(line.chars().count() <= LONGEST_MESSAGE + 600, "{line}");
    prop_assert!(!line.contains(char::is_control), "{line:?}");
    prop_assert!(!format!("{answer:?}").contains(SECRET), "{answer:?}");
    Ok(())
}

/// What a status says that the receiver itself sent.
fn of_status(status: &Status) -> TestCaseResult {
    let answer = from_grpc(&config(true), status, SystemTime::now());
    sane(&answer)?;
    prop_assert!(!matches!(answer, Answer::Accepted { .. }), "{answer:?}");
    prop_assert_eq!(matches!(answer, Answer::Rejected(_)), status.code() == Code::InvalidArgument);
    Ok(())
}

fn status() -> impl Strategy<Value = StatusCode> {
    let listed = vec![200, 204, 307, 400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504];
    prop_oneof![prop::sample::select(listed), 100..1000_u16]
        .prop_map(|status| StatusCode::from_u16(status).unwrap())
}

/// A receiver's words, ours among them.
fn said() -> impl Strategy<Value = String> {
    (text(), any::<bool>(), text())
        .prop_map(|(before, ours, after)| format!("{before}{}{after}", if ours { SECRET } else { "" }))
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let wait = prop_oneof![
        any::<u64>().prop_map(|seconds| seconds.to_string()),
        (0_u32..40, 0_u32..10_000, 0_u32..30)
            .prop_map(|(day, year, hour)| format!("Thu, {day:02} Jan {year:04} {hour:02}:02:00 GMT")),
        "[ -~]{0,30}",
        "\\PC{0,30}",
    ];
    let name = prop::sample::select(vec!["retry-after", "content-type", "location", "x-any", "grpc-status"]);
    let kind = prop::sample::select(vec![
        "application/x-protobuf",
        "application/json; charset=utf-8",
        "text/html",
        "application/grpc+proto",
    ]);
    let value = prop_oneof![
        2 => wait,
        2 => kind.prop_map(str::to_owned),
        1 => Just(format!("https://{SECRET}@login.example/{SECRET}?session={SECRET}#{SECRET}")),
        1 => said(),
    ];
    prop::collection::vec((name, value), 0..6).prop_map(|entries| {
        let mut map = HeaderMap::new();
        for (name, value) in entries {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                map.append(HeaderName::from_static(name), value);
            }
        }
        map
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        said().prop_map(String::into_bytes),
        (any::<i32>(), said())
            .prop_map(|(code, message)| RpcStatus { code, message, details: Vec::new() }.encode_to_vec()),
    ]
}

/// Bytes of `grpc-status-details-bin`, whole or not, with a wait that may be any.
fn details() -> impl Strategy<Value = Vec<u8>> {
    let info = (any::<i64>(), any::<i32>(), any::<prop::sample::Index>(), any::<bool>(), any::<bool>());
    let retry_info = info.prop_map(|(seconds, nanos, cut, whole, right)| {
        let mut bytes = asking(Delay { seconds, nanos }, if right { "RetryInfo" } else { "Help" });
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    });
    prop_oneof![2 => retry_info, 1 => prop::collection::vec(any::<u8>(), 0..80)]
}

/// `google.protobuf.Duration`, of any value.
#[derive(Clone, PartialEq, prost::Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

fn asking(delay: Delay, kind: &str) -> Vec<u8> {
    let value = RetryInfo { retry_delay: Some(delay) }.encode_to_vec();
    let detail = AnyMessage { type_url: format!("type.googleapis.com/google.rpc.{kind}"), value };
    RpcStatus { code: 8, message: String::new(), details: vec![detail] }.encode_to_vec()
}

#[test]
fn a_wait_is_at_most_an_hour_and_one_that_says_nothing_is_none() {
    let hour = Some(Duration::from_hours(1));
    for (seconds, nanos, expected) in [
        (7_200, 0, hour),
        (604_800, 0, hour),
        (0, 1, Some(Duration::from_nanos(1))),
        (0, 0, None),
        (-1, 0, None),
        (0, -1, None),
        (i64::MIN, i32::MIN, None),
        (1_796_083_200, 0, None),
        (i64::MAX, i32::MAX, None),
    ] {
        let details = asking(Delay { seconds, nanos }, "RetryInfo");
        let status = Status::with_details(Code::ResourceExhausted, "", details.into());
        match from_grpc(&config(true), &status, SystemTime::UNIX_EPOCH) {
            Answer::TooLarge { after, .. } => {
                assert_eq!(after, expected, "{seconds}");
            }
            other => panic!("{other:?}"),
        }
    }
}
