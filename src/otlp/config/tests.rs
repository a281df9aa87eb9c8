use std::collections::HashMap;

use super::*;

fn read(signal: Signal, variables: &[(&str, &str)]) -> Result<Option<SignalConfig>, ConfigError> {
    let map: HashMap<_, _> = variables.iter().copied().collect();
    SignalConfig::from_env(signal, &|name| map.get(name).map(ToString::to_string))
}

fn traces(variables: &[(&str, &str)]) -> SignalConfig {
    read(Signal::Traces, variables).unwrap().unwrap()
}

fn error(variables: &[(&str, &str)]) -> String {
    read(Signal::Traces, variables).unwrap_err().to_string()
}

fn resource(variables: &[(&str, &str)]) -> Result<Resource, ConfigError> {
    let map: HashMap<_, _> = variables.iter().copied().collect();
    Resource::from_env(&|name| map.get(name).map(ToString::to_string))
}

#[test]
fn unset_variables_have_the_specified_defaults() {
    for signal in Signal::ALL {
        let config = read(signal, &[]).unwrap().unwrap();
        assert_eq!(config.protocol, Protocol::HttpProtobuf);
        assert_eq!(config.endpoint.to_string(), format!("http://localhost:4318/v1/{signal}"));
        assert_eq!(config.timeout, Duration::from_secs(10));
        assert_eq!(config.compression, Compression::None);
        assert_eq!(config.tls, TlsFiles::default());
        assert!(config.headers.as_map().is_empty());
    }
    let grpc = traces(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    assert_eq!(grpc.endpoint.to_string(), "http://localhost:4317");
}

#[test]
fn a_signal_variable_overrides_the_general_one() {
    let config = traces(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://own:2/in"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://other:3"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=general,b=general"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=own"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/general/ca"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/own/ca"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/general/cert"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/own/key"),
    ]);
    assert_eq!(config.endpoint.to_string(), "https://own:2/in");
    assert_eq!(config.endpoint_variable, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    assert_eq!(config.protocol, Protocol::HttpProtobuf);
    assert_eq!(config.headers.as_map()["a"], "own");
    assert!(!config.headers.as_map().contains_key("b"), "lists replace each other, they do not merge");
    assert_eq!(config.timeout, Duration::from_millis(2500));
    assert_eq!(config.compression, Compression::Gzip);
    assert_eq!(config.tls.ca.unwrap().path, PathBuf::from("/own/ca"));
    let client = config.tls.client.unwrap();
    assert_eq!(client.certificate.variable, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
    assert_eq!(client.key.variable, "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY");
}

#[test]
fn an_empty_value_is_unset() {
    let config = traces(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", " "),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:1"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", ""),
        ("OTEL_TRACES_EXPORTER", ""),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", ""),
    ]);
    assert_eq!(config.endpoint.to_string(), "http://general:1/v1/traces");
}

#[test]
fn a_disabled_signal_ignores_its_other_variables() {
    let off = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")];
    assert_eq!(read(Signal::Traces, &off), Ok(None));
    assert!(read(Signal::Logs, &off).is_err());
}

#[test]
fn insecure_selects_the_scheme_of_grpc_addresses() {
    let grpc = |extra: &[(&str, &str)]| {
        let mut variables =
            vec![("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")];
        variables.extend_from_slice(extra);
        traces(&variables).endpoint.to_string()
    };
    assert_eq!(grpc(&[]), "https://collector:4317");
    assert_eq!(grpc(&[("OTEL_EXPORTER_OTLP_INSECURE", "true")]), "http://collector:4317");
    assert_eq!(
        grpc(&[("OTEL_EXPORTER_OTLP_INSECURE", "true"), ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "False")]),
        "https://collector:4317"
    );
}

#[test]
fn an_error_is_one_line_with_the_variable_and_the_remedy() {
    let lines: Vec<String> = [
        ("OTEL_TRACES_EXPORTER", "console,zipkin"),
        ("OTEL_CONFIG_FILE", "/etc/otel.yaml"),
        ("OTEL_EXPERIMENTAL_CONFIG_FILE", "/etc/otel.yaml"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http\n"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:s3cr3t@:x"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cr3t"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert"),
    ]
    .into_iter()
    .map(|variable| error(&[variable]))
    .collect();
    assert!(lines.iter().all(|line| !line.contains("s3cr3t")));
    insta::assert_snapshot!(lines.join("\n"), @r#"
    OTEL_TRACES_EXPORTER names the exporter "console,zipkin", which runspan does not support: set it to otlp or none
    OTEL_CONFIG_FILE is set, but runspan does not read declarative configuration: unset it for this process and set OTEL_EXPORTER_OTLP_ENDPOINT and the others
    OTEL_EXPERIMENTAL_CONFIG_FILE is set, but runspan does not read declarative configuration: unset it for this process and set OTEL_EXPORTER_OTLP_ENDPOINT and the others
    OTEL_EXPORTER_OTLP_PROTOCOL asks for http/json, which runspan does not support: set it to http/protobuf (same port) or grpc
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL names the protocol "http": set it to http/protobuf or grpc
    OTEL_EXPORTER_OTLP_TIMEOUT is "10s", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is "0", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000
    OTEL_EXPORTER_OTLP_COMPRESSION names the compression "zstd": set it to gzip or none
    OTEL_EXPORTER_OTLP_INSECURE is "1": set it to true or false
    OTEL_EXPORTER_OTLP_ENDPOINT has no http:// or https:// before its host: write e.g. http://localhost:4318
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not a URL (empty host): write e.g. http://localhost:4318
    OTEL_EXPORTER_OTLP_HEADERS has no = in entry 2: write key1=value1,key2=value2, and a comma inside a value as %2C
    OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY is set without OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE: set both or none
    OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is set without OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY: set both or none
    "#);
}

#[test]
fn otlp_among_other_exporters_is_used_and_the_others_are_named() {
    let ignored = |value| traces(&[("OTEL_TRACES_EXPORTER", value)]).ignored_exporters;
    for value in ["otlp", " OTLP ", "otlp,", "otlp,otlp"] {
        assert_eq!(ignored(value), None, "{value}");
    }
    assert_eq!(
        ignored("console, otlp,zipkin").unwrap(),
        "OTEL_TRACES_EXPORTER names console,zipkin beside otlp: runspan has only otlp and ignores the rest"
    );
    assert!(ignored("otlp,none").is_some());
    for value in ["none", "None, none"] {
        assert_eq!(read(Signal::Traces, &[("OTEL_TRACES_EXPORTER", value)]), Ok(None), "{value}");
    }
    for value in ["none,console", ","] {
        assert!(error(&[("OTEL_TRACES_EXPORTER", value)]).contains("does not support"), "{value}");
    }
}

#[test]
fn the_sdk_can_be_disabled_whatever_else_is_set() {
    for (value, is_disabled) in
        [("true", true), (" TRUE ", true), ("false", false), ("1", false), ("", false)]
    {
        let variables = [("OTEL_SDK_DISABLED", value), ("OTEL_TRACES_EXPORTER", "otlp")];
        assert_eq!(read(Signal::Traces, &variables).unwrap().is_none(), is_disabled, "{value}");
    }
    let variables = [("OTEL_SDK_DISABLED", "true"), ("OTEL_CONFIG_FILE", "/etc/otel.yaml")];
    assert_eq!(read(Signal::Traces, &variables), Ok(None));
}

#[test]
fn a_proxy_is_found_where_http_clients_find_it() {
    let proxy = |endpoint, variable, exempt| {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            (variable, "http://proxy:3128"),
            ("NO_PROXY", exempt),
        ];
        traces(&variables).proxy_variable
    };
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        assert_eq!(proxy("https://collector", variable, "").as_deref(), Some(variable));
    }
    assert_eq!(proxy("http://collector", "http_proxy", "other").as_deref(), Some("http_proxy"));
    assert_eq!(proxy("http://collector", "HTTPS_PROXY", ""), None);
    for exempt in ["*", "collector.example", "a, .example", "example"] {
        assert_eq!(proxy("http://collector.example", "HTTP_PROXY", exempt), None, "{exempt}");
    }
    assert_eq!(proxy("http://localhost", "HTTP_PROXY", ""), None);
}

#[test]
fn a_path_is_an_error_over_grpc() {
    let error = error(&[
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces"),
    ]);
    assert!(error.starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT has a path"), "{error}");
}

#[test]
fn debug_shows_no_secret() {
    let config = traces(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:s3cr3t@collector/in?key=s3cr3t"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer s3cr3t"),
    ]);
    let shown = format!("{config:?} {config:#?} {}", config.endpoint);
    assert!(!shown.contains("s3cr3t"), "{shown}");
    assert!(shown.contains("authorization") && shown.contains("https://collector:443/in/v1/traces"));
}

#[test]
fn the_service_name_has_its_own_variable_and_a_default() {
    let name = |variables: &[(&str, &str)]| resource(variables).unwrap().service_name().to_owned();
    assert_eq!(name(&[]), "unknown_service");
    assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=,a=b")]), "unknown_service");
    assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=listed")]), "listed");
    assert_eq!(
        name(&[("OTEL_SERVICE_NAME", "own"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed")]),
        "own"
    );
}

#[test]
fn resource_attributes_are_decoded_and_keep_their_order() {
    let resource = resource(&[(
        "OTEL_RESOURCE_ATTRIBUTES",
        "zone=a, deployment.environment.name=pr%C3%B6d,note=a%2Cb%3Dc,zone=b",
    )])
    .unwrap();
    let pairs: Vec<_> = resource.attributes().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("service.name", "unknown_service"),
            ("zone", "b"),
            ("deployment.environment.name", "pröd"),
            ("note", "a,b=c")
        ]
    );
}

#[test]
fn an_invalid_resource_attribute_is_an_error() {
    let message = |list| resource(&[("OTEL_RESOURCE_ATTRIBUTES", list)]).unwrap_err().to_string();
    assert!(message("a=b,c").starts_with("OTEL_RESOURCE_ATTRIBUTES has no = in entry 2"));
    assert!(message("a=%ff").starts_with("OTEL_RESOURCE_ATTRIBUTES is not UTF-8 in entry 1"));
}

#[test]
fn a_secret_in_the_wrong_variable_is_not_repeated() {
    assert_eq!(
        error(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "https://u:hunter2hunter2@host")]),
        "OTEL_EXPORTER_OTLP_PROTOCOL names the protocol \"https://[redacted]@host\": set it to http/protobuf or grpc"
    );
}

#[test]
fn metrics_variables_are_parsed() {
    let metrics = |variables: &[(&str, &str)]| {
        let map: HashMap<_, _> = variables.iter().copied().collect();
        MetricsConfig::from_env(&|name| map.get(name).map(ToString::to_string))
    };
    let default = MetricsConfig { interval: Duration::from_mins(1), exemplars: true };
    assert_eq!(metrics(&[]), Ok(default.clone()));
    assert_eq!(
        metrics(&[
            ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
            ("OTEL_METRICS_EXEMPLAR_FILTER", "always_off"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Cumulative"),
            ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"),
        ]),
        Ok(MetricsConfig { interval: Duration::from_secs(15), exemplars: false })
    );
    let refused = |variable: &str, value: &str| metrics(&[(variable, value)]).unwrap_err().to_string();
    let temporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    let said = [
        refused(temporality, "delta"),
        refused(temporality, "lowmemory"),
        refused(temporality, "sometimes"),
        refused("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        refused("OTEL_METRIC_EXPORT_INTERVAL", "1m"),
        refused("OTEL_METRICS_EXEMPLAR_FILTER", "on"),
        refused(
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
        ),
    ];
    insta::assert_snapshot!(said.join("\n"), @r#"
    OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for delta temporality: runspan's series are cumulative, because a delta whose acknowledgement is lost would count twice; unset it, and convert in the Collector (cumulativetodelta) for a backend that needs deltas
    OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for delta temporality: runspan's series are cumulative, because a delta whose acknowledgement is lost would count twice; unset it, and convert in the Collector (cumulativetodelta) for a backend that needs deltas
    OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE names the temporality "sometimes": set it to cumulative
    OTEL_METRIC_EXPORT_INTERVAL is "0", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000
    OTEL_METRIC_EXPORT_INTERVAL is "1m", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000
    OTEL_METRICS_EXEMPLAR_FILTER names the filter "on": set it to trace_based, always_on or always_off
    OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION asks for "base2_exponential_bucket_histogram": runspan's histograms have explicit buckets, set it to explicit_bucket_histogram
    "#);
}
