//! The headers that the user adds to every request.
//!
//! Their values are secrets, and receivers repeat them in error messages: so this module also removes them from such texts.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Problem, pairs};

/// Headers that the connection sets: another value would break the framing of the request.
const OF_THE_CONNECTION: [&str; 7] =
    ["connection", "content-length", "host", "keep-alive", "te", "transfer-encoding", "upgrade"];

/// Shorter parts of header values are not hidden: they would match ordinary words.
const SHORTEST_SECRET: usize = 6;

/// Headers for every request of a signal, from `OTEL_EXPORTER_OTLP_HEADERS` or its per-signal form.
///
/// Values are secrets: neither `Debug` nor an error of this crate shows one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Parses `key1=value1,key2=value2` with percent-encoded values. The last value of a repeated key counts.
    pub(super) fn parse(list: &str) -> Result<Self, Problem> {
        let mut map = HeaderMap::new();
        for pair in pairs::parse(list)? {
            let position = pair.position;
            let name = HeaderName::from_bytes(&pair.key).map_err(|_| Problem::HeaderName { position })?;
            if OF_THE_CONNECTION.contains(&name.as_str()) {
                return Err(Problem::HeaderOfTheConnection { name: name.to_string() });
            }
            let mut value = HeaderValue::from_bytes(&pair.value)
                .map_err(|_| Problem::HeaderValue { name: name.to_string() })?;
            // Also keeps the value out of HPACK's tables and of the map's `Debug`.
            value.set_sensitive(true);
            map.insert(name, value);
        }
        Ok(Self(map))
    }

    /// The headers, each value marked sensitive.
    pub fn as_map(&self) -> &HeaderMap {
        &self.0
    }

    /// Redacts every header value, and every word of one, in a text from outside: a receiver may answer
    /// `invalid token …`.
    pub(in crate::otlp) fn scrub(&self, text: &str) -> String {
        let values: Vec<_> = self.0.values().filter_map(|value| value.to_str().ok()).collect();
        let words = values.iter().copied().flat_map(str::split_whitespace);
        // Whole values first: their words are shorter.
        values
            .iter()
            .copied()
            .map(str::trim)
            .chain(words)
            .filter(|secret| secret.len() >= SHORTEST_SECRET)
            .fold(text.to_owned(), |text, secret| text.replace(secret, "[redacted]"))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name.as_str(), "…"))).finish()
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spaces_and_equal_signs_need_no_escape() {
        let headers = Headers::parse(" Authorization = Basic YWxhZGRpbg== , x-tenant=a%2Cb,, ").unwrap();
        assert_eq!(headers.as_map()["authorization"], "Basic YWxhZGRpbg==");
        assert_eq!(headers.as_map()["x-tenant"], "a,b");
        assert_eq!(headers.as_map().len(), 2);
    }

    #[test]
    fn errors_name_the_position_and_never_the_secret() {
        for (list, expected) in [
            ("a=1,s3cr3t", Problem::EntryWithoutEquals { position: 2 }),
            ("=s3cr3t", Problem::EntryWithoutKey { position: 1 }),
            ("a=s3cr3t%2", Problem::EntryEscape { position: 1 }),
            ("a=%é3cr3t", Problem::EntryEscape { position: 1 }),
            ("s3cr3t !=1", Problem::HeaderName { position: 1 }),
            ("a=s3cr3t%0A", Problem::HeaderValue { name: "a".to_owned() }),
            ("Host=s3cr3t", Problem::HeaderOfTheConnection { name: "host".to_owned() }),
        ] {
            let problem = Headers::parse(list).unwrap_err();
            assert_eq!(problem, expected);
            assert!(!format!("{problem} {problem:?}").contains("3cr3t"));
        }
    }

    #[test]
    fn an_echoed_secret_is_redacted_whole_and_word_by_word() {
        let headers = Headers::parse("authorization=Bearer abc123xyz,x=no").unwrap();
        assert_eq!(headers.scrub("no: bad token abc123xyz"), "no: bad token [redacted]");
        assert_eq!(headers.scrub("got 'Bearer abc123xyz'"), "got '[redacted]'");
    }

    proptest! {
        #[test]
        fn encoded_headers_come_back(entries in proptest::collection::hash_map(
            "x-[a-z0-9]{1,12}", proptest::collection::vec(0x21_u8..0x7f, 1..40), 0..6)
        ) {
            let list: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{key}={}", percent_encode(value, NON_ALPHANUMERIC)))
                .collect();
            let headers = Headers::parse(&list.join(",")).unwrap();
            prop_assert_eq!(headers.as_map().len(), entries.len());
            for (key, value) in &entries {
                prop_assert_eq!(headers.as_map()[key].as_bytes(), &value[..]);
            }
        }

        #[test]
        fn no_list_panics_or_shows_a_secret(list in "([a-z%=, ;é\r\n]|s3cr3t){0,20}") {
            let shown = match Headers::parse(&format!("s3cr3t={list}s3cr3t,{list}=s3cr3t,k=s3cr3t")) {
                Ok(headers) => format!("{:?}", headers.as_map().values().collect::<Vec<_>>()),
                Err(problem) => format!("{problem:?} {problem}"),
            };
            prop_assert!(!shown.contains("s3cr3t") || shown.contains("name: \""), "{}", shown);
        }
    }
}
