//! Bodies of requests, as stored and as sent.
//!
//! Requests for a receiver are stored gzipped: their attributes repeat, and the outbox may have to hold a day of them.
//! Over HTTP with gzip the stored bytes are sent as they are. Lines for standard output are stored as text; older
//! versions gzipped them too, which the first bytes show.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

/// How gzip begins (RFC 1952, 2.3.1). No JSON line does.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The most bytes that are allocated because a trailer claims them.
const LARGEST: usize = 8 * 1024 * 1024;

/// What is stored is not a request that this program wrote.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not gzip, or cut off.
    #[error("cannot decompress the stored request: {0}")]
    Gzip(#[from] std::io::Error),
    /// Not the message that it should be.
    #[error("cannot decode the stored request: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

/// A request on its way to a receiver.
pub(super) enum Body {
    Plain(Bytes),
    Gzip(Bytes),
}

impl Body {
    /// A stored request, for a transport that can send gzip as it is or not.
    pub(super) fn stored(stored: &Bytes, takes_gzip: bool) -> Result<Self, DecodeError> {
        if takes_gzip && stored.starts_with(&GZIP) {
            Ok(Self::Gzip(stored.clone()))
        } else {
            unpack(stored).map(Self::Plain)
        }
    }
}

/// A stored request, decompressed.
pub fn unpack(stored: &[u8]) -> Result<Bytes, DecodeError> {
    // The trailer holds the size (RFC 1952, 2.3.1): allocated at once, as far as that can be true.
    let size = stored.last_chunk().map_or(0, |size| u32::from_le_bytes(*size)) as usize;
    let mut plain = Vec::with_capacity(size.min(LARGEST));
    GzDecoder::new(stored).read_to_end(&mut plain)?;
    Ok(plain.into())
}

/// Stored lines, as text.
pub fn unpack_lines(stored: &Bytes) -> Result<Bytes, DecodeError> {
    if stored.starts_with(&GZIP) { unpack(stored) } else { Ok(stored.clone()) }
}

pub(super) fn gzip(parts: &[&[u8]], level: Compression) -> Bytes {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    let mut encoder = GzEncoder::new(Vec::with_capacity(size / 8), level);
    let written = parts.iter().try_for_each(|part| encoder.write_all(part));
    written.and_then(|()| encoder.finish()).expect("writing to memory does not fail").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_readable_with_and_without_gzip() {
        let lines = Bytes::from_static(b"{\"event\":\"workflow.run.queued\"}\n");
        let gzipped = gzip(&[&lines], Compression::fast());
        assert_eq!(unpack_lines(&lines).unwrap(), lines);
        assert_eq!(unpack_lines(&gzipped).unwrap(), lines);
    }

    #[test]
    fn stored_gzip_passes_through_where_the_transport_takes_it() {
        let stored = gzip(&[b"request"], Compression::fast());
        assert!(matches!(Body::stored(&stored, true), Ok(Body::Gzip(same)) if same == stored));
        assert!(matches!(Body::stored(&stored, false), Ok(Body::Plain(plain)) if plain == "request"));
        assert!(Body::stored(&Bytes::from_static(b"request"), true).is_err());
    }
}
