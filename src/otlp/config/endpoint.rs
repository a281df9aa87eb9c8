//! The address of a receiver.
//!
//! A URL may hold credentials, and a password with raw reserved characters parses into a different host. So unclear URLs
//! are rejected before anything of them is shown.

use std::fmt;

use url::Url;

use super::Problem;
use crate::otlp::Signal;
use crate::redact::url::{Form, is_unclear};

/// An endpoint has no parameters that runspan knows, and no fragment.
const FORM: Form = Form { parameter: |_, _| false, fragments: &[], sockets: false };

/// The address of a receiver: an `http` or `https` URL with a host.
///
/// Userinfo and query may hold credentials: `Debug` and `Display` show scheme, host, port and path only.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// An OTLP/HTTP URL for all signals: `/v1/{signal}` is appended to its path, with exactly one slash between
    /// (OTLP exporter specification, "Endpoint URLs for OTLP/HTTP").
    pub(super) fn http_base(value: &str, signal: Signal) -> Result<Self, Problem> {
        let mut url = parse_url(value)?;
        let path = format!("{}/v1/{signal}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(Self(url))
    }

    /// An OTLP/HTTP URL for one signal: used as it is, and without a path it is `/` (same section).
    pub(super) fn http_exact(value: &str) -> Result<Self, Problem> {
        parse_url(value).map(Self)
    }

    /// An OTLP/gRPC address: a URL, or `host:port`, which is unencrypted only if `insecure`.
    pub(super) fn grpc(value: &str, insecure: bool) -> Result<Self, Problem> {
        let url = if value.contains("://") {
            parse_url(value)?
        } else {
            parse_url(&format!("{}://{value}", if insecure { "http" } else { "https" }))?
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Problem::GrpcUserinfo);
        }
        if url.path() != "/" || url.query().is_some() {
            return Err(Problem::GrpcPath);
        }
        Ok(Self(url))
    }

    /// The whole URL, with credentials: for the connection only.
    pub(in crate::otlp) fn as_url(&self) -> &Url {
        &self.0
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.0.port().unwrap_or(if self.is_tls() { 443 } else { 80 })
    }

    /// Whether the host is this machine, by its usual names.
    pub(in crate::otlp) fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
    }
}

fn parse_url(value: &str) -> Result<Url, Problem> {
    // Without this `localhost:4318` would be a URL of the scheme `localhost`.
    if !value.contains("://") {
        return Err(Problem::EndpointScheme);
    }
    if is_unclear(value, &FORM) {
        return Err(Problem::EndpointUnclear);
    }
    let url = Url::parse(value).map_err(Problem::EndpointUrl)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Problem::EndpointScheme);
    }
    Ok(url)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().expect("parse_url accepts http and https only, which have a host");
        write!(f, "{}://{host}:{}", self.0.scheme(), self.port())?;
        if self.0.path() == "/" { Ok(()) } else { f.write_str(self.0.path()) }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_general_url_gets_the_signal_path() {
        for (value, expected) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/mycollector/", "https://c:443/mycollector/v1/traces"),
            ("https://c/mycollector", "https://c:443/mycollector/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(Endpoint::http_base(value, Signal::Traces).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_signal_url_is_used_unchanged() {
        let path = |value| Endpoint::http_exact(value).unwrap().as_url().path().to_owned();
        assert_eq!(path("http://c:4318"), "/");
        assert_eq!(path("http://c:4318/v1/traces"), "/v1/traces");
        assert_eq!(path("http://c:4318/otlp/"), "/otlp/");
    }

    #[test]
    fn a_grpc_address_without_a_scheme_follows_insecure() {
        assert_eq!(Endpoint::grpc("c:4317", false).unwrap().to_string(), "https://c:4317");
        assert_eq!(Endpoint::grpc("c:4317", true).unwrap().to_string(), "http://c:4317");
        assert!(Endpoint::grpc("https://c:4317", true).unwrap().is_tls(), "a scheme beats INSECURE");
    }

    #[test]
    fn invalid_addresses_have_distinct_errors() {
        assert_eq!(Endpoint::http_exact("localhost:4318"), Err(Problem::EndpointScheme));
        assert_eq!(Endpoint::http_exact("ftp://localhost"), Err(Problem::EndpointScheme));
        assert_eq!(Endpoint::grpc("unix:///run/otlp.sock", false), Err(Problem::EndpointScheme));
        assert_eq!(Endpoint::grpc("http://c:4317/v1/traces", false), Err(Problem::GrpcPath));
        assert_eq!(Endpoint::grpc("u:p@c:4317", false), Err(Problem::GrpcUserinfo));
        assert!(matches!(Endpoint::http_exact("http://c:port"), Err(Problem::EndpointUrl(_))));
        assert!(matches!(Endpoint::http_exact("http://"), Err(Problem::EndpointUrl(_))));
    }

    #[test]
    fn a_raw_password_is_rejected_before_it_becomes_a_host() {
        for value in [
            "http://u:S3@cr/et@c:4318",
            "http://u:p@ss@c:4318",
            "https://u:12/x@c:4318",
            "http://u:12?x@c:4318",
            "http://u:12?key=x@c:4318",
            "http://u:12#x@c:4318",
            "http://u:12\\x@c:4318",
            "http:u:12/x@c:4318/://",
            "http:///u:12/x@c:4318",
            "http://u:1%@c:4318",
            "http://u:1\t2@c:4318",
        ] {
            assert_eq!(Endpoint::http_exact(value), Err(Problem::EndpointUnclear), "{value}");
            assert_eq!(Endpoint::http_base(value, Signal::Logs), Err(Problem::EndpointUnclear), "{value}");
            assert_eq!(Endpoint::grpc(value, true), Err(Problem::EndpointUnclear), "{value}");
        }
        assert_eq!(Endpoint::grpc("u:12/x@c:4317", true), Err(Problem::EndpointUnclear));
        let encoded = Endpoint::http_exact("http://u:S3%40cr%2Fet@c:4318/a%40b").unwrap();
        assert_eq!(encoded.to_string(), "http://c:4318/a%40b");
    }

    proptest! {
        #[test]
        fn credentials_in_a_url_are_never_shown(
            host in "[a-z]{1,8}", junk in "[a-z:/@%?# ]{0,10}", port in 1_u16..
        ) {
            for value in [
                format!("http://s3cr3t:s3cr3t@{host}:{port}/{host}?key=s3cr3t"),
                format!("http://s3cr3t:s3cr3t@{host}:{port}/{host}?key=s3cr3t#s3cr3t"),
                format!("http://s3cr3t@{host}{junk}"),
                format!("http://{host}:{junk}s3cr3t@{host}"),
                format!("http://{host}:{port}{junk}s3cr3t{junk}@{host}"),
            ] {
                let shown = format!(
                    "{:?} {:?} {:?}",
                    Endpoint::http_base(&value, Signal::Logs),
                    Endpoint::http_exact(&value),
                    Endpoint::grpc(&value, true),
                );
                prop_assert!(!shown.contains("s3cr3t"), "{}", shown);
            }
        }
    }
}
