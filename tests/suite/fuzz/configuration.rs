//! What an operator writes: variables, URLs, lists; and the ids and headers that writers write.

use std::collections::HashMap;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;
use runspan::DatabaseUrl;
use runspan::otlp::Signal;
use runspan::otlp::config::{MetricsConfig, Resource, SignalConfig};
use runspan::run::{RunId, Status};
use runspan::series::Buckets;
use runspan::trace_context::{SpanContext, SpanId, TraceId};

use super::{fuzz, text};

/// What no error and no `Debug` may show.
const SECRET: &str = "hunter2hunter2";

const GENERAL: [&str; 9] = [
    "ENDPOINT",
    "HEADERS",
    "PROTOCOL",
    "INSECURE",
    "TIMEOUT",
    "COMPRESSION",
    "CERTIFICATE",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
];

#[test]
fn any_environment() {
    let name = prop_oneof![
        4 => (prop::sample::select(vec!["", "TRACES_", "LOGS_", "METRICS_"]), prop::sample::select(GENERAL.to_vec()))
            .prop_map(|(signal, option)| format!("OTEL_EXPORTER_OTLP_{signal}{option}")),
        1 => prop::sample::select(vec![
            "OTEL_TRACES_EXPORTER",
            "OTEL_METRIC_EXPORT_INTERVAL",
            "OTEL_METRICS_EXEMPLAR_FILTER",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "OTEL_SERVICE_NAME",
            "OTEL_RESOURCE_ATTRIBUTES",
        ])
        .prop_map(str::to_owned),
    ];
    let variables = prop::collection::hash_map(name, value(), 0..8);
    fuzz("any environment", &variables, |variables| {
        let env = |name: &str| variables.get(name).cloned();
        for signal in Signal::ALL {
            let shown = match SignalConfig::from_env(signal, &env) {
                Err(error) => {
                    prop_assert!(variables.contains_key(&error.variable), "{error}: it is not set");
                    format!("{error} {error:?}")
                }
                Ok(None) => continue,
                Ok(Some(config)) => {
                    // Written out, it is the same again; but for what is not shown.
                    let written: HashMap<String, String> = HashMap::from([
                        (format!("{}_ENDPOINT", prefix(signal)), config.endpoint.to_string()),
                        (format!("{}_PROTOCOL", prefix(signal)), config.protocol.to_string()),
                    ]);
                    let again = SignalConfig::from_env(signal, &|name| written.get(name).cloned());
                    let again = again.unwrap().unwrap();
                    prop_assert_eq!(again.endpoint.to_string(), config.endpoint.to_string());
                    prop_assert_eq!(again.protocol, config.protocol);
                    prop_assert!(!config.timeout.is_zero());
                    format!("{config:?} {}", config.endpoint)
                }
            };
            // A path to a file is no place for one.
            let in_the_open = variables.iter().any(|(name, value)| {
                (name.contains("CERT") || name.contains("KEY")) && value.contains(SECRET)
            });
            prop_assert!(in_the_open || !shown.contains(SECRET), "{shown}");
            prop_assert!(
                !shown.chars().any(|c| c == '\n' || c == '\r') || shown.contains("PemFile"),
                "{shown:?}"
            );
        }
        for error in
            [Resource::from_env(&env).err(), MetricsConfig::from_env(&env).err()].into_iter().flatten()
        {
            prop_assert!(variables.contains_key(&error.variable), "{error}: it is not set");
        }
        Ok(())
    });
}

#[test]
fn any_list_of_headers() {
    let entries =
        prop::collection::hash_map("x-[a-z0-9]{1,12}", prop::collection::vec(0x20_u8..=0xff, 1..40), 0..6);
    let unclear = (text(), any::<bool>(), "[=,%; a-z]{0,20}")
        .prop_map(|(text, secret, rest)| format!("{text}{}{rest}", if secret { SECRET } else { "" }));
    fuzz("any list of headers", &(entries, unclear), |(entries, unclear)| {
        let list: Vec<String> = entries
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        match headers(&list.join(",")) {
            Ok(config) => {
                let map = config.headers.as_map();
                prop_assert_eq!(map.len(), entries.len());
                for (name, value) in &entries {
                    prop_assert_eq!(map[name.as_str()].as_bytes(), value.as_slice());
                    prop_assert!(map[name.as_str()].is_sensitive());
                }
            }
            Err(error) => prop_assert!(entries.values().flatten().any(|byte| *byte == 0x7f), "{error}"),
        }
        let shown = match headers(&unclear) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        // A name is shown: it is no secret.
        let names: Vec<&str> =
            unclear.split(',').map(|entry| entry.split('=').next().unwrap_or_default()).collect();
        prop_assert!(!shown.contains(SECRET) || names.iter().any(|name| name.contains(SECRET)), "{shown}");
        Ok(())
    });
}

#[test]
fn any_resource() {
    let entries = prop::collection::btree_map("[a-z.]{1,12}", text(), 0..6);
    fuzz("any resource", &entries, |entries| {
        let list: Vec<String> = entries
            .iter()
            .map(|(key, value)| format!("{key}={}", percent_encode(value.as_bytes(), NON_ALPHANUMERIC)))
            .collect();
        let list = list.join(",");
        let resource =
            Resource::from_env(&|name| (name == "OTEL_RESOURCE_ATTRIBUTES").then(|| list.clone())).unwrap();
        for (key, value) in entries.iter().filter(|(key, _)| *key != "service.name") {
            let found = resource.attributes().iter().find(|(known, _)| known == key);
            prop_assert_eq!(found.map(|(_, value)| value), Some(value));
        }
        prop_assert!(!resource.service_name().is_empty());
        Ok(())
    });
}

#[test]
fn any_database_url() {
    let host =
        prop_oneof![Just("db.example".to_owned()), Just("[::1]".to_owned()), Just(String::new()), text()];
    let port =
        prop_oneof![Just(String::new()), "[0-9]{1,6}".prop_map(|port| format!(":{port}")), "\\PC{0,6}"];
    let options = prop_oneof![
        Just(String::new()),
        "(sslmode|options|host|port|user|dbname|sslrootcert|connect_timeout|statement-cache-capacity)=[a-z0-9%-]{0,12}"
            .prop_map(|option| format!("?{option}")),
        Just(format!("?password={SECRET}&sslmode=require")),
        text().prop_map(|text| format!("?{text}")),
    ];
    let scheme = prop::sample::select(vec!["postgres", "postgresql", "mysql", "postgres ", ""]);
    let path = prop_oneof!["/[a-z]{0,8}", text()];
    let urls = (scheme.clone(), "[a-z%]{0,6}", host, port, path, options).prop_map(
        |(scheme, user, host, port, path, options)| {
            format!("{scheme}://{user}:{SECRET}@{host}{port}{path}{options}")
        },
    );
    // A password that nobody has encoded, whole or in part.
    let piece = || "[0-9a-z]{0,3}[@/?#%:&=\\[\\]\\\\ \t\n]{0,2}";
    let raw = (scheme, "[a-z]{0,6}", piece(), piece(), "(/[a-z]{0,8})?(\\?sslmode=disable)?").prop_map(
        |(scheme, user, before, after, path)| {
            format!("{scheme}://{user}:{before}{SECRET}{after}@db.example{path}")
        },
    );
    let any =
        prop_oneof![4 => urls, 4 => raw, 1 => text(), 1 => text().prop_map(|text| format!("sqlite:{text}"))];
    fuzz("any database URL", &any, |text| {
        let shown = match text.parse::<DatabaseUrl>() {
            Ok(url) => format!("{url} {url:?}"),
            Err(error) => {
                let said = error.to_string();
                prop_assert!(
                    said.ends_with("(write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)"),
                    "{said}"
                );
                format!("{error} {error:?}")
            }
        };
        prop_assert!(!shown.contains(SECRET), "{text}: {shown}");
        Ok(())
    });
}

#[test]
fn any_buckets() {
    let number = prop_oneof![
        "[0-9]{1,9}",
        "[0-9]{0,3}\\.[0-9]{0,9}",
        "[0-9]e[-+]?[0-9]{1,3}",
        Just("NaN".to_owned()),
        Just("inf".to_owned()),
        text()
    ];
    let sorted = prop::collection::btree_set(1_u64..400_000_000_000_000, 0..110).prop_map(|micros| {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
        micros.into_iter().map(|micros| (micros as f64 / 1e6).to_string()).collect::<Vec<_>>()
    });
    let lists = prop_oneof![prop::collection::vec(number, 0..6), sorted];
    fuzz("any buckets", &lists, |bounds| {
        let text = bounds.join(",");
        match text.parse::<Buckets>() {
            Ok(buckets) => {
                prop_assert!(
                    buckets.micros().is_sorted_by(|one, next| one < next) && buckets.micros()[0] > 0
                );
                prop_assert_eq!(buckets.to_string().parse(), Ok(buckets.clone()));
                for (index, bound) in buckets.micros().iter().enumerate() {
                    prop_assert_eq!(buckets.index(*bound), index);
                    prop_assert_eq!(buckets.index(*bound + 1), index + 1);
                }
            }
            Err(error) => {
                let said = error.to_string();
                prop_assert!(said.len() < 300 && !said.contains(char::is_control), "{said:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn any_traceparent_and_any_id() {
    let text = prop_oneof![
        4 => "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]{0,3})?",
        1 => "00-0{32}-[0-9a-f]{16}-01|00-[0-9a-f]{32}-0{16}-01",
        2 => "[0-9a-fA-F-]{0,70}",
        2 => "[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}|[0-9a-f]{16}|[0-9a-f]{32}",
        1 => text(),
    ];
    fuzz("any traceparent and any id", &text, |text| {
        if let Ok(context) = text.parse::<SpanContext>() {
            prop_assert_eq!(context.to_string().parse(), Ok(context));
            if text.starts_with("00") {
                prop_assert_eq!(context.to_string(), text.as_str());
            }
        }
        if let Ok(id) = text.parse::<TraceId>() {
            prop_assert_eq!(id.to_string(), text.as_str());
        }
        if let Ok(id) = text.parse::<SpanId>() {
            prop_assert_eq!(id.to_string(), text.as_str());
        }
        if let Ok(id) = text.parse::<RunId>() {
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }
        if let Ok(status) = text.parse::<Status>() {
            prop_assert_eq!(status.to_string(), text.as_str());
        }
        Ok(())
    });
}

fn prefix(signal: Signal) -> String {
    format!("OTEL_EXPORTER_OTLP_{}", signal.as_str().to_uppercase())
}

fn headers(list: &str) -> Result<SignalConfig, runspan::otlp::config::ConfigError> {
    let env = |name: &str| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| list.to_owned());
    SignalConfig::from_env(Signal::Traces, &env).map(|config| config.unwrap())
}

fn value() -> impl Strategy<Value = String> {
    let plain = vec![
        "grpc",
        "http/protobuf",
        "http/json",
        "gzip",
        "none",
        "otlp",
        "true",
        "FALSE",
        "0",
        "1",
        "10000",
        "-1",
        "4294967296",
        "cumulative",
        "delta",
        "always_off",
        "/ca.pem",
        "http://localhost:4318",
        "https://h/in/",
        "localhost:4317",
        "http://[::1]:4317",
        "https://host:0",
        "http://host:99999",
        "http://%00",
        "https://ex%41mple",
        "http://xn--a",
        "ftp://h",
        "http:///x",
        "unix:///tmp/s",
        "http://host?query=1",
        "HTTP://HOST",
    ];
    prop_oneof![
        4 => prop::sample::select(plain).prop_map(str::to_owned),
        2 => "[a-z]{0,5}".prop_map(|path| format!("https://u:{SECRET}@host/{path}?key={path}")),
        2 => "[-a-z]{1,8}".prop_map(|name| format!("{name}=Bearer {SECRET}")),
        1 => "(https?://)?[a-z.]{0,9}(:[0-9]{0,6})?(/\\PC{0,9})?",
        1 => text(),
    ]
}
