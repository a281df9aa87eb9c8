use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;
use prost::Message as _;
use tonic::Status;

use super::*;
use crate::otlp::{Signal, config::Env};

fn config(protocol: &str) -> SignalConfig {
    let env: Env<'_> = &|name| match name {
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("authorization=Bearer s3cr3t-t0ken".to_owned()),
        _ => None,
    };
    SignalConfig::from_env(Signal::Logs, env).unwrap().unwrap()
}

fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
    entries
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn http(status: u16, entries: &[(&'static str, &str)], body: &[u8]) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    from_http(&config("http/protobuf"), status, &headers(entries), body, SystemTime::UNIX_EPOCH)
}

fn wait(retry_after: &str) -> Option<u64> {
    match http(503, &[("retry-after", retry_after)], b"") {
        Answer::Retry { after, .. } => after.map(|after| after.as_secs()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn retry_after_accepts_each_form() {
    assert_eq!(wait("120"), Some(120));
    assert_eq!(wait("  120\t"), Some(120));
    assert_eq!(wait("Thu, 01 Jan 1970 00:02:00 GMT"), Some(120));
    assert_eq!(wait("Thursday, 01-Jan-70 00:02:00 GMT"), Some(120));
    assert_eq!(wait("Thu Jan  1 00:02:00 1970"), Some(120));
}

#[test]
fn an_invalid_retry_after_is_ignored() {
    assert_eq!(wait("604800"), Some(3600), "too long");
    let date = "Thu, 01 Jan 1970 00:02:00 GMT";
    for past in ["Thu, 01 Jan 1970 00:00:00 GMT", date] {
        let past = http(503, &[("retry-after", past), ("date", date)], b"");
        assert!(matches!(past, Answer::Retry { after: None, .. }), "{past:?}");
    }
    for nonsense in [
        "",
        "0",
        "000",
        "-0",
        "-5",
        "+5",
        "1.5",
        "1e3",
        "NaN",
        "inf",
        "soon",
        "5 s",
        "5, 10",
        "604801",
        "1796083200",
        "99999999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "1970-01-01T00:02:00Z",
    ] {
        assert_eq!(wait(nonsense), None, "{nonsense}");
    }
}

#[test]
fn a_success_in_other_words_is_accepted_with_a_warning() {
    for (content_type, body) in [
        ("text/plain", "ok"),
        ("text/plain; charset=utf-8", "Accepted\n"),
        ("application/json", r#"{"status":"success"}"#),
        ("application/json", "[]"),
        ("application/x-protobuf", "ok"),
        ("application/xml", "<ok/>"),
        ("", "ok"),
    ] {
        for status in [200, 202] {
            let Answer::Accepted { rejected: 0, message } =
                http(status, &[("content-type", content_type)], body.as_bytes())
            else {
                panic!("{content_type}: {body}")
            };
            assert!(message.contains("is not an OTLP response"), "{content_type}: {message:?}");
            assert!(
                !message.contains(body),
                "bodies may differ each time, but one warning is enough: {message}"
            );
        }
    }
    for (content_type, body) in [("", ""), ("text/plain", ""), ("application/json", "{}")] {
        let answer = http(200, &[("content-type", content_type)], body.as_bytes());
        assert_eq!(
            answer,
            Answer::Accepted { rejected: 0, message: String::new() },
            "{content_type}: {body}"
        );
    }
    let partial = br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#;
    let answer = http(200, &[("content-type", "application/json")], partial);
    assert_eq!(answer, Answer::Accepted { rejected: 3, message: "too old".to_owned() });
}

#[test]
fn a_web_page_is_another_server() {
    for (content_type, body) in [
        ("text/html", ""),
        ("Text/HTML; charset=utf-8", "welcome"),
        ("", "<!DOCTYPE html><p>"),
        ("text/plain", "\u{feff}\n  <HTML lang=en>"),
        ("application/json", "<html>"),
    ] {
        let answer = http(200, &[("content-type", content_type)], body.as_bytes());
        let kind = answer.cause().map(Cause::kind);
        assert!(matches!(answer, Answer::Misconfigured(_)), "{content_type}: {answer:?}");
        assert_eq!(kind, Some(FailureKind::WrongProtocol));
    }
}

#[test]
fn an_http_error_quotes_its_status_message() {
    let body = tonic_types::Status { code: 3, message: "span id is empty".to_owned(), details: Vec::new() };
    let answer = http(400, &[("content-type", "application/x-protobuf")], &body.encode_to_vec());
    insta::assert_snapshot!(
        answer.cause().unwrap(),
        @r#"logs to http://localhost:4318/v1/logs (http/protobuf): HTTP 400 Bad Request: "span id is empty""#
    );
}

#[test]
fn a_missing_pipeline_suggests_a_remedy() {
    insta::assert_snapshot!(
        http(404, &[], b"404 page not found\n").cause().unwrap(),
        @r#"logs to http://localhost:4318/v1/logs (http/protobuf): HTTP 404 Not Found, the receiver does not accept logs, check the path in OTEL_EXPORTER_OTLP_ENDPOINT or add a logs pipeline to the receiver: "404 page not found""#
    );
    let status = Status::unimplemented("unknown service");
    insta::assert_snapshot!(
        from_grpc(&config("grpc"), &status, SystemTime::UNIX_EPOCH).cause().unwrap(),
        @r#"logs to http://localhost:4317 (grpc): UNIMPLEMENTED, the receiver does not accept logs over gRPC, add a logs pipeline to the receiver or check OTEL_EXPORTER_OTLP_ENDPOINT: "unknown service""#
    );
}

#[test]
fn a_redirect_is_reported_without_its_query() {
    let answer = http(307, &[("location", "https://login.example/sso?session=s3cr3t-t0ken")], b"");
    let line = answer.cause().unwrap().to_string();
    assert!(line.contains("to https://login.example/sso,"), "{line}");
    assert!(!line.contains("s3cr3t"), "{line}");
    let answer = http(307, &[("location", "https://login.example/s3cr3t-t0ken/sso")], b"");
    let line = answer.cause().unwrap().to_string();
    assert!(line.contains("to https://login.example/[redacted]/sso,"), "{line}");
}

#[test]
fn a_transport_status_is_not_a_rejection() {
    // What tonic makes of an HTTP/2 reset: INTERNAL with a source.
    let status = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
    let answer = from_grpc(&config("grpc"), &status, SystemTime::UNIX_EPOCH);
    let cause = answer.cause().unwrap();
    assert_eq!((cause.kind(), cause.is_suspicious()), (FailureKind::Broken, false));
}

#[test]
fn the_other_protocols_usual_port_is_a_hint() {
    let mut config = config("grpc");
    config.endpoint = self::config("http/protobuf").endpoint;
    let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let line = from_transport(&config, &broken).cause().unwrap().to_string();
    assert!(
        line.contains("port 4318 usually speaks http/protobuf, check OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"),
        "{line}"
    );
}

#[test]
fn failure_kinds_have_distinct_names() {
    let kinds = [
        FailureKind::Unreachable,
        FailureKind::Timeout,
        FailureKind::Broken,
        FailureKind::Unavailable,
        FailureKind::Fault,
        FailureKind::WrongProtocol,
        FailureKind::Certificate,
        FailureKind::Credentials,
        FailureKind::NoPipeline,
        FailureKind::Size,
        FailureKind::Invalid,
    ];
    let names: std::collections::HashSet<_> = kinds.into_iter().map(FailureKind::as_str).collect();
    assert_eq!(names.len(), kinds.len());
}

/// What holds for every answer, whatever a receiver sends.
fn assert_sane(answer: &Answer) {
    let (after, text) = match answer {
        Answer::Accepted { message, .. } => (None, message.clone()),
        Answer::Retry { cause, after } | Answer::TooLarge { cause, after } => (*after, cause.to_string()),
        Answer::Misconfigured(cause) | Answer::Rejected(cause) => (None, cause.to_string()),
    };
    assert!(after.unwrap_or_default() <= LONGEST_WAIT);
    assert!(text.chars().count() <= LONGEST_MESSAGE + 600, "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(!format!("{answer:?}").contains("s3cr3t-t0ken"), "{answer:?}");
}

proptest! {
    #[test]
    fn no_http_answer_panics_leaks_or_is_lost(
        status in 100_u16..1000,
        retry_after in "\\PC{0,30}",
        content_type in prop_oneof![
            Just("application/x-protobuf"), Just("text/html"), Just("application/grpc"), Just("")
        ],
        location in "[ -~]{0,300}",
        body in proptest::collection::vec(any::<u8>(), 0..600),
        at in 0_usize..600,
        grpc in any::<bool>(),
    ) {
        let mut body = body;
        let at = at.min(body.len());
        body.splice(at..at, *b"s3cr3t-t0ken");
        let mut map = headers(&[("content-type", content_type), ("location", &location)]);
        if let Ok(value) = HeaderValue::from_bytes(retry_after.as_bytes()) {
            map.insert("retry-after", value);
        }
        let config = config(if grpc { "grpc" } else { "http/protobuf" });
        let status = StatusCode::from_u16(status).unwrap();
        let answer = from_http(&config, status, &map, &body, SystemTime::now());
        assert_sane(&answer);
        // Only what the receiver has understood may be deleted or given up.
        prop_assert_eq!(
            matches!(answer, Answer::Accepted { .. } | Answer::Rejected(_)),
            !grpc
                && (status.is_success() && !["text/html", "application/grpc"].contains(&content_type)
                    || status == 400 && content_type != "application/grpc")
        );
    }

    #[test]
    fn the_rejected_count_comes_through(rejected in any::<i64>(), message in "[a-z]{0,20}") {
        let response = ExportResponse {
            partial_success: Some(PartialSuccess { rejected, error_message: message.clone().into_bytes() }),
        };
        let expected = Answer::Accepted { rejected: u64::try_from(rejected).unwrap_or(0), message };
        prop_assert_eq!(from_grpc_response(&config("grpc"), &response.encode_to_vec()), expected.clone());
        prop_assert_eq!(http(200, &[], &response.encode_to_vec()), expected);
    }

    #[test]
    fn a_wait_is_never_longer_than_the_longest(seconds in any::<u64>()) {
        let useful = (1..=LONGEST_CREDIBLE.as_secs()).contains(&seconds);
        let expected = useful.then(|| Duration::from_secs(seconds).min(LONGEST_WAIT));
        prop_assert_eq!(wait(&seconds.to_string()).map(Duration::from_secs), expected);
    }
}
