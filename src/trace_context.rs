//! Trace and span ids from run ids, and the W3C `traceparent` header.
//!
//! A run's `trace_id` is the 16 bytes of its root run's UUID, its `span_id` the last 8 bytes of its own. So any process
//! that knows a run's id and its root's can write its traceparent, in any language, without a lookup. All-zero ids are
//! invalid in W3C Trace Context; the FNV-1a hash (64 bit) of the UUID's bytes replaces them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::run::RunId;

/// The first byte of a run's queue span differs from the run span's by these bits: the variant bits of a UUID,
/// so no run's own span id can collide with it.
const QUEUE_SPAN_BITS: u8 = 0xC0;

/// `sampled`: W3C Trace Context level 1, section 3.2.
const SAMPLED: u8 = 0x01;
/// `random-trace-id`: W3C Trace Context level 2, section 3.2.
const RANDOM: u8 = 0x02;

/// A trace's 16 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TraceId([u8; 16]);

/// A span's 8 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SpanId([u8; 8]);

macro_rules! hex_id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// The bytes, as OTLP carries them.
            pub const fn bytes(self) -> [u8; $bytes] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidTraceparent;

            /// Lowercase hex of the full width, not all zero.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $bytes];
                lower_hex(text, &mut bytes).filter(|()| bytes != [0; $bytes]).ok_or(InvalidTraceparent)?;
                Ok(Self(bytes))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidTraceparent;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}

hex_id!(TraceId, 16);
hex_id!(SpanId, 8);

/// The identity of a span: its trace, its id, and the W3C trace flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanContext {
    /// The trace it belongs to.
    pub trace_id: TraceId,
    /// Its own id.
    pub span_id: SpanId,
    /// W3C trace flags.
    pub flags: u8,
}

impl SpanContext {
    /// The context of the span of `run`, whose root is `root` (itself for a run without a parent).
    ///
    /// ```
    /// use runspan::trace_context::SpanContext;
    ///
    /// let run = "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d".parse()?;
    /// assert_eq!(
    ///     SpanContext::of_run(run, run).to_string(),
    ///     "00-0190a5d47d3c7cc18b6a0d2f3a4b5c6d-8b6a0d2f3a4b5c6d-03",
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_run(run: RunId, root: RunId) -> Self {
        let root = root.uuid();
        let random = if matches!(root.get_version_num(), 4 | 7) { RANDOM } else { 0 };
        Self { trace_id: trace_id(root), span_id: span_id(run.uuid()), flags: SAMPLED | random }
    }

    /// The context of the run's queue span, a child of the run span that shows its first wait.
    #[must_use]
    pub fn queue_span(self) -> Self {
        let mut bytes = self.span_id.0;
        bytes[0] ^= QUEUE_SPAN_BITS;
        Self { span_id: if bytes == [0; 8] { SpanId(fnv1a(&bytes)) } else { SpanId(bytes) }, ..self }
    }
}

impl fmt::Display for SpanContext {
    /// The `traceparent` header, version 00.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Not a valid `traceparent` (W3C Trace Context, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid W3C traceparent")]
pub struct InvalidTraceparent;

impl FromStr for SpanContext {
    type Err = InvalidTraceparent;

    /// Parses version 00, and the fields of it in a higher version.
    fn from_str(header: &str) -> Result<Self, Self::Err> {
        let mut parts = header.split('-');
        let mut next = || parts.next().ok_or(InvalidTraceparent);
        let (version, trace, span, flags) = (next()?, next()?, next()?, next()?);
        let byte = |text| {
            let mut byte = [0];
            lower_hex(text, &mut byte).map(|()| byte[0]).ok_or(InvalidTraceparent)
        };
        let version = byte(version)?;
        let has_more = parts.next().is_some();
        if version == 0xff || (version == 0 && has_more) {
            return Err(InvalidTraceparent);
        }
        Ok(Self { trace_id: trace.parse()?, span_id: span.parse()?, flags: byte(flags)? })
    }
}

fn trace_id(root: Uuid) -> TraceId {
    if !root.is_nil() {
        return TraceId(root.into_bytes());
    }
    let half = fnv1a(root.as_bytes());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&half);
    bytes[8..].copy_from_slice(&half);
    TraceId(bytes)
}

fn span_id(run: Uuid) -> SpanId {
    // The last 8 bytes of these versions are the same for all that one host makes.
    if matches!(run.get_version_num(), 1 | 2 | 6) {
        return SpanId(fnv1a(run.as_bytes()));
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&run.as_bytes()[8..]);
    if bytes == [0; 8] { SpanId(fnv1a(run.as_bytes())) } else { SpanId(bytes) }
}

/// FNV-1a, 64 bit, big-endian: a few lines in any language.
fn fnv1a(bytes: &[u8]) -> [u8; 8] {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .to_be_bytes()
}

fn lower_hex(text: &str, into: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != into.len() * 2 {
        return None;
    }
    for (byte, pair) in into.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_of_zeros_falls_back_to_a_hash() {
        let nil = RunId::from(Uuid::nil());
        assert_eq!(
            SpanContext::of_run(nil, nil).to_string(),
            "00-88201fb960ff646588201fb960ff6465-88201fb960ff6465-01"
        );
    }

    #[test]
    fn ids_that_one_host_makes_have_different_spans() {
        // Two of each version, by one host within a moment.
        for (one, other) in [
            ("2c1d43b8-e6d7-11ee-a951-0242ac120002", "2c1d43b9-e6d7-11ee-a951-0242ac120002"),
            ("000003e8-e6d7-21ee-a951-0242ac120002", "000003e9-e6d7-21ee-a951-0242ac120002"),
            ("1eee6d72-c1d4-63b8-a951-0242ac120002", "1eee6d72-c1d4-63b9-a951-0242ac120002"),
        ] {
            let [one, other] =
                [one, other].map(|id| SpanContext::of_run(id.parse().unwrap(), id.parse().unwrap()));
            assert_ne!(one.span_id, other.span_id);
            assert_ne!(one.queue_span().span_id, other.queue_span().span_id);
        }
    }

    #[test]
    fn only_random_ids_set_the_random_flag() {
        let flags = |id: &str| {
            let id = id.parse().unwrap();
            SpanContext::of_run(id, id).flags
        };
        assert_eq!(flags("f47ac10b-58cc-4372-a567-0e02b2c3d479"), 3);
        assert_eq!(flags("0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d"), 3);
        assert_eq!(flags("2c1d43b8-e6d7-11ee-a951-0242ac120002"), 1);
    }

    #[test]
    fn a_higher_version_may_have_more_fields() {
        let base = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(format!("00-{base}").parse::<SpanContext>().is_ok());
        assert!(format!("cc-{base}-more").parse::<SpanContext>().is_ok());
        for bad in [format!("00-{base}-more"), format!("ff-{base}"), format!("00-{}", base.to_uppercase())] {
            assert_eq!(bad.parse::<SpanContext>(), Err(InvalidTraceparent), "{bad}");
        }
        assert!("00-00000000000000000000000000000000-b7ad6b7169203331-01".parse::<SpanContext>().is_err());
    }

    proptest! {
        #[test]
        fn a_traceparent_survives_its_text(run: [u8; 16], root: [u8; 16]) {
            let context = SpanContext::of_run(Uuid::from_bytes(run).into(), Uuid::from_bytes(root).into());
            prop_assert_eq!(context.to_string().parse(), Ok(context));
            prop_assert_ne!(context.queue_span().span_id, context.span_id);
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[0-9a-f-]{0,60}") {
            let _ = text.parse::<SpanContext>();
        }
    }
}
