//! Parses the standard `OTEL_*` variables.
//!
//! Names, defaults and precedence are those of the OTLP exporter specification (`specification/protocol/exporter.md`)
//! and of the SDK's environment variables for resources. A per-signal variable overrides the general one, an empty value
//! counts as unset, and an invalid value is an error, never a silent default: a relay that exports to the wrong place
//! would be noticed too late.
//!
//! The environment is a parameter, so that tests do not change that of their process.

mod endpoint;
mod headers;
mod metrics;
mod pairs;
mod resource;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, time::Duration};

pub use endpoint::Endpoint;
pub use headers::Headers;
pub use metrics::MetricsConfig;
pub use resource::{Resource, UNKNOWN_SERVICE};

use super::Signal;
use crate::redact::{redact, url::ENCODE};

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The timeout of a request if no variable sets one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and how the requests of one signal are sent.
///
/// `Debug` shows no secrets: see [`Headers`] and [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalConfig {
    /// The signal.
    pub signal: Signal,
    /// The transport.
    pub protocol: Protocol,
    /// The receiver. Over gRPC its path is `/`; over HTTP it is the complete URL.
    pub endpoint: Endpoint,
    /// The variable that sets the endpoint, for messages: the one that is set, or the general one.
    pub endpoint_variable: String,
    /// Headers for every request.
    pub headers: Headers,
    /// The timeout of a request, which includes connecting.
    pub timeout: Duration,
    /// How requests are compressed.
    pub compression: Compression,
    /// Trusted certificates and the client's own. Not used without TLS.
    pub tls: TlsFiles,
    /// The variable of a proxy for this endpoint that is set, such as `HTTPS_PROXY`. Over gRPC it is not used.
    pub proxy_variable: Option<String>,
    /// The variable of exporters, if it names others beside `otlp`, which are ignored: one line for the log.
    pub ignored_exporters: Option<String>,
}

impl SignalConfig {
    /// Reads the configuration of a signal, `None` when `OTEL_{signal}_EXPORTER=none` or `OTEL_SDK_DISABLED=true` switches
    /// it off.
    ///
    /// # Errors
    /// The first invalid variable.
    pub fn from_env(signal: Signal, env: Env<'_>) -> Result<Option<Self>, ConfigError> {
        let variables = Variables { signal, env };
        if is_sdk_disabled(env) {
            return Ok(None);
        }
        for variable in ["OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"] {
            if variables.value(variable).is_some() {
                return Err(ConfigError { variable: variable.to_owned(), problem: Problem::ConfigFile });
            }
        }
        let Some(Exporters { ignored }) = variables.exporters()? else { return Ok(None) };
        let protocol = variables.parse("PROTOCOL", Protocol::parse)?.unwrap_or(Protocol::HttpProtobuf);
        let (endpoint, endpoint_variable) = variables.endpoint(protocol)?;
        Ok(Some(Self {
            signal,
            protocol,
            endpoint_variable,
            headers: variables.parse("HEADERS", Headers::parse)?.unwrap_or_default(),
            timeout: variables.parse("TIMEOUT", parse_timeout)?.unwrap_or(DEFAULT_TIMEOUT),
            compression: variables.parse("COMPRESSION", Compression::parse)?.unwrap_or(Compression::None),
            tls: variables.tls_files()?,
            proxy_variable: variables.proxy(&endpoint),
            endpoint,
            ignored_exporters: ignored,
        }))
    }

    /// The same, but also `None` if no variable sets an endpoint: nobody asked for the default, localhost.
    pub fn if_endpoint_named(signal: Signal, env: Env<'_>) -> Result<Option<Self>, ConfigError> {
        let named = Variables { signal, env }.option("ENDPOINT").is_some();
        if named { Self::from_env(signal, env) } else { Ok(None) }
    }

    /// The signal's own form of an option's variable, as in `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`.
    pub fn variable(&self, option: &str) -> String {
        specific(self.signal, option)
    }
}

/// Whether `OTEL_SDK_DISABLED` switches off all signals (`sdk-environment-variables.md`, "General SDK Configuration").
pub fn is_sdk_disabled(env: Env<'_>) -> bool {
    env("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

/// The exporters of a signal, `otlp` among them.
struct Exporters {
    /// The others, as a line for the log.
    ignored: Option<String>,
}

/// An OTLP transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `grpc`: protobuf over gRPC, usually on port 4317.
    Grpc,
    /// `http/protobuf`: protobuf over HTTP, usually on port 4318.
    HttpProtobuf,
}

impl Protocol {
    fn parse(value: &str) -> Result<Self, Problem> {
        match value.to_ascii_lowercase().as_str() {
            "grpc" => Ok(Self::Grpc),
            "http/protobuf" => Ok(Self::HttpProtobuf),
            "http/json" => Err(Problem::HttpJson),
            _ => Err(Problem::Protocol { value: excerpt(value) }),
        }
    }

    /// The name, as the variables spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        }
    }

    /// The port on which receivers usually speak this protocol.
    pub const fn usual_port(self) -> u16 {
        match self {
            Self::Grpc => 4317,
            Self::HttpProtobuf => 4318,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// No compression, the specification's default.
    None,
    /// gzip.
    Gzip,
}

impl Compression {
    fn parse(value: &str) -> Result<Self, Problem> {
        match value.to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            _ => Err(Problem::Compression { value: excerpt(value) }),
        }
    }
}

/// The PEM files of a TLS connection. They are read when the client is created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates to trust instead of the system's (`…_CERTIFICATE`).
    pub ca: Option<PemFile>,
    /// The client's certificate chain and its key (`…_CLIENT_CERTIFICATE`, `…_CLIENT_KEY`): both or none.
    pub client: Option<ClientFiles>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate chain, leaf first.
    pub certificate: PemFile,
    /// The private key of the leaf.
    pub key: PemFile,
}

/// A file that a variable names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// The variable, for messages.
    pub variable: String,
    /// The file.
    pub path: PathBuf,
}

/// An invalid variable. Its text is one line: the variable, the problem, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct ConfigError {
    /// The variable.
    pub variable: String,
    /// The problem.
    pub problem: Problem,
}

/// The problem of a variable. It contains no value that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// An exporter other than `otlp` or `none`.
    #[error("names the exporter \"{value}\", which runspan does not support: set it to otlp or none")]
    Exporter {
        /// The beginning of the value.
        value: String,
    },
    /// A file of the declarative configuration, in whose place the variables would be ignored.
    #[error(
        "is set, but runspan does not read declarative configuration: unset it for this process and set OTEL_EXPORTER_OTLP_ENDPOINT and the others"
    )]
    ConfigFile,
    /// An unknown protocol.
    #[error("names the protocol \"{value}\": set it to http/protobuf or grpc")]
    Protocol {
        /// The beginning of the value.
        value: String,
    },
    /// `http/json`, which exists but is not supported.
    #[error(
        "asks for http/json, which runspan does not support: set it to http/protobuf (same port) or grpc"
    )]
    HttpJson,
    /// An unknown compression.
    #[error("names the compression \"{value}\": set it to gzip or none")]
    Compression {
        /// The beginning of the value.
        value: String,
    },
    /// Not a positive number of milliseconds.
    #[error("is \"{value}\", not a number of milliseconds from 1 to 4294967295: set it to e.g. 10000")]
    Timeout {
        /// The beginning of the value.
        value: String,
    },
    /// Delta temporality.
    #[error(
        "asks for delta temporality: runspan's series are cumulative, because a delta whose acknowledgement is lost would count twice; unset it, and convert in the Collector (cumulativetodelta) for a backend that needs deltas"
    )]
    Delta,
    /// An unknown temporality.
    #[error("names the temporality \"{value}\": set it to cumulative")]
    Temporality {
        /// The beginning of the value.
        value: String,
    },
    /// Another histogram aggregation.
    #[error(
        "asks for \"{value}\": runspan's histograms have explicit buckets, set it to explicit_bucket_histogram"
    )]
    HistogramAggregation {
        /// The beginning of the value.
        value: String,
    },
    /// An unknown exemplar filter.
    #[error("names the filter \"{value}\": set it to trace_based, always_on or always_off")]
    ExemplarFilter {
        /// The beginning of the value.
        value: String,
    },
    /// Neither `true` nor `false`.
    #[error("is \"{value}\": set it to true or false")]
    Boolean {
        /// The beginning of the value.
        value: String,
    },
    /// An endpoint without `http` or `https`.
    #[error("has no http:// or https:// before its host: write e.g. http://localhost:4318")]
    EndpointScheme,
    /// An endpoint that is not a URL.
    #[error("is not a URL ({0}): write e.g. http://localhost:4318")]
    EndpointUrl(url::ParseError),
    /// An endpoint with a raw character that may belong to a password.
    #[error(
        "holds a reserved character that is not percent-encoded: write {ENCODE}, or put credentials into OTEL_EXPORTER_OTLP_HEADERS"
    )]
    EndpointUnclear,
    /// A path in the address of a gRPC receiver.
    #[error(
        "has a path, which OTLP over gRPC does not: write scheme, host and port only, or set the protocol to http/protobuf"
    )]
    GrpcPath,
    /// Userinfo in the address of a gRPC receiver.
    #[error("has a user name, which gRPC cannot send: put credentials into OTEL_EXPORTER_OTLP_HEADERS")]
    GrpcUserinfo,
    /// A list entry that is not `key=value`.
    #[error("has no = in entry {position}: write key1=value1,key2=value2, and a comma inside a value as %2C")]
    EntryWithoutEquals {
        /// Counted from 1.
        position: usize,
    },
    /// A list entry that begins with `=`.
    #[error("has no key in entry {position}: write key1=value1,key2=value2")]
    EntryWithoutKey {
        /// Counted from 1.
        position: usize,
    },
    /// A percent sign that does not begin an escape.
    #[error("has a % without two hexadecimal digits in entry {position}: write % as %25")]
    EntryEscape {
        /// Counted from 1.
        position: usize,
    },
    /// Bytes that are not UTF-8 where text is needed.
    #[error("is not UTF-8 in entry {position} once its escapes are decoded: encode the text as UTF-8")]
    EntryNotUtf8 {
        /// Counted from 1.
        position: usize,
    },
    /// A key that is not a header name.
    #[error("has a key in entry {position} that is not an HTTP header name: use letters, digits and dashes")]
    HeaderName {
        /// Counted from 1.
        position: usize,
    },
    /// A value that a header cannot hold.
    #[error("has a control character in the value of {name}: remove it (a trailing newline, perhaps)")]
    HeaderValue {
        /// The name of the header.
        name: String,
    },
    /// A header that the connection itself sets.
    #[error("sets {name}, which the connection sets itself: remove it")]
    HeaderOfTheConnection {
        /// The name of the header.
        name: String,
    },
    /// A client certificate without its key, or the other way round.
    #[error("is set without {missing}: set both or none")]
    HalfAnIdentity {
        /// The variable that is missing.
        missing: String,
    },
}

/// The variables of one signal.
struct Variables<'a> {
    signal: Signal,
    env: Env<'a>,
}

impl Variables<'_> {
    /// The value of a variable without surrounding white space; an empty one is unset.
    fn value(&self, variable: &str) -> Option<String> {
        (self.env)(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The variable that holds an exporter option, the signal's own before the general one, and its value.
    fn option(&self, option: &str) -> Option<(String, String)> {
        [specific(self.signal, option), general(option)]
            .into_iter()
            .find_map(|variable| self.value(&variable).map(|value| (variable, value)))
    }

    fn parse<T>(
        &self,
        option: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Result<Option<T>, ConfigError> {
        self.option(option)
            .map(|(variable, value)| parse(&value).map_err(|problem| ConfigError { variable, problem }))
            .transpose()
    }

    /// `None` if the signal is off. The variable is a list (`sdk-environment-variables.md`, "Exporter Selection").
    fn exporters(&self) -> Result<Option<Exporters>, ConfigError> {
        let variable = format!("OTEL_{}_EXPORTER", self.signal.in_variables());
        let Some(value) = self.value(&variable) else { return Ok(Some(Exporters { ignored: None })) };
        let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
        let (otlp, others): (Vec<&str>, Vec<&str>) =
            names.partition(|name| name.eq_ignore_ascii_case("otlp"));
        if otlp.is_empty() {
            let is_off = !others.is_empty() && others.iter().all(|name| name.eq_ignore_ascii_case("none"));
            let problem = Problem::Exporter { value: excerpt(&value) };
            return if is_off { Ok(None) } else { Err(ConfigError { variable, problem }) };
        }
        let ignored = (!others.is_empty()).then(|| {
            let others = excerpt(&others.join(","));
            format!("{variable} names {others} beside otlp: runspan has only otlp and ignores the rest")
        });
        Ok(Some(Exporters { ignored }))
    }

    /// The variable of a proxy for this endpoint, as most HTTP clients read them.
    fn proxy(&self, endpoint: &Endpoint) -> Option<String> {
        let names =
            if endpoint.is_tls() { ["HTTPS_PROXY", "ALL_PROXY"] } else { ["HTTP_PROXY", "ALL_PROXY"] };
        let names = names.into_iter().flat_map(|name| [name.to_ascii_lowercase(), name.to_owned()]);
        let host = endpoint.as_url().host_str().unwrap_or_default().to_ascii_lowercase();
        let exempt =
            ["no_proxy", "NO_PROXY"].into_iter().find_map(|name| self.value(name)).unwrap_or_default();
        let is_exempt = exempt.split(',').map(|name| name.trim().trim_start_matches('.')).any(|name| {
            name == "*" || !name.is_empty() && (host == name || host.ends_with(&format!(".{name}")))
        });
        let is_direct = is_exempt || endpoint.is_loopback();
        names.filter(|_| !is_direct).find(|name| self.value(name).is_some())
    }

    fn endpoint(&self, protocol: Protocol) -> Result<(Endpoint, String), ConfigError> {
        let insecure = self.parse("INSECURE", parse_boolean)?.unwrap_or(false);
        let set = self.option("ENDPOINT");
        let (variable, value) = set
            .unwrap_or_else(|| (general("ENDPOINT"), format!("http://localhost:{}", protocol.usual_port())));
        let endpoint = match protocol {
            Protocol::Grpc => Endpoint::grpc(&value, insecure),
            Protocol::HttpProtobuf if variable == general("ENDPOINT") => {
                Endpoint::http_base(&value, self.signal)
            }
            Protocol::HttpProtobuf => Endpoint::http_exact(&value),
        };
        match endpoint {
            Ok(endpoint) => Ok((endpoint, variable)),
            Err(problem) => Err(ConfigError { variable, problem }),
        }
    }

    fn tls_files(&self) -> Result<TlsFiles, ConfigError> {
        let file = |option| {
            self.option(option).map(|(variable, path)| PemFile { variable, path: PathBuf::from(path) })
        };
        let half = |set: PemFile, missing| ConfigError {
            variable: set.variable,
            problem: Problem::HalfAnIdentity { missing: specific(self.signal, missing) },
        };
        let client = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientFiles { certificate, key }),
            (Some(certificate), None) => return Err(half(certificate, "CLIENT_KEY")),
            (None, Some(key)) => return Err(half(key, "CLIENT_CERTIFICATE")),
        };
        Ok(TlsFiles { ca: file("CERTIFICATE"), client })
    }
}

fn specific(signal: Signal, option: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_{}_{option}", signal.in_variables())
}

fn general(option: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_{option}")
}

fn parse_timeout(value: &str) -> Result<Duration, Problem> {
    // 0 could mean no time or no limit; without a limit a request that hangs would block its signal.
    match value.parse::<u32>() {
        Ok(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds.into())),
        _ => Err(Problem::Timeout { value: excerpt(value) }),
    }
}

fn parse_boolean(value: &str) -> Result<bool, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Problem::Boolean { value: excerpt(value) }),
    }
}

/// The beginning of a value that should not be a secret, on one line. A credential put there by mistake is redacted.
fn excerpt(value: &str) -> String {
    const LONGEST: usize = 40;
    let clean = redact(value);
    let mut characters = clean.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut excerpt: String = characters.by_ref().take(LONGEST).collect();
    if characters.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}
