//! `key=value,key=value` lists, as in `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_RESOURCE_ATTRIBUTES`.
//!
//! The format is that of a W3C `baggage` header without metadata after a semicolon (OTLP exporter specification,
//! "Specifying headers via environment variables"; resource SDK specification). Errors name the position of an
//! entry and never quote it: an entry may be a secret.

use percent_encoding::percent_decode_str;

use super::Problem;

/// Splits a list into percent-decoded keys and values. Empty entries, such as after a trailing comma, are skipped.
///
/// # Errors
/// An entry without `=`, an empty key, or a `%` that does not begin an escape.
pub(super) fn parse(list: &str) -> Result<Vec<Pair>, Problem> {
    let entries = list.split(',').enumerate().map(|(index, entry)| (index + 1, entry.trim()));
    entries
        .filter(|(_, entry)| !entry.is_empty())
        .map(|(position, entry)| {
            let (key, value) = entry.split_once('=').ok_or(Problem::EntryWithoutEquals { position })?;
            let key = decode(key.trim(), position)?;
            if key.is_empty() {
                return Err(Problem::EntryWithoutKey { position });
            }
            Ok(Pair { position, key, value: decode(value.trim(), position)? })
        })
        .collect()
}

/// One entry of a list.
pub(super) struct Pair {
    /// Counted from 1, for messages.
    pub(super) position: usize,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

fn decode(text: &str, position: usize) -> Result<Vec<u8>, Problem> {
    // percent_decode_str keeps a broken escape; a credential mangled like that would fail far from here.
    let escapes = text.split('%').skip(1);
    let well_formed = |after: &str| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !escapes.into_iter().all(well_formed) {
        return Err(Problem::EntryEscape { position });
    }
    Ok(percent_decode_str(text).collect())
}
