//! Assembles requests from encoded items.
//!
//! The generated messages would compute the length of every part of every item at each of four levels.

use std::collections::HashSet;

use flate2::Compression;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::gzip;
use crate::run::RunId;
use crate::store::{Channel, NewRequest};

// The same in `trace_service.proto` and `trace.proto` as in those for logs.
/// `resource_spans` of a request.
const RESOURCE_ITEMS: u32 = 1;
/// `resource` of a `ResourceSpans`.
const RESOURCE: u32 = 1;
/// `scope_spans` of a `ResourceSpans`.
const SCOPE_ITEMS: u32 = 2;
/// `scope` of a `ScopeSpans`.
const SCOPE: u32 = 1;
/// `spans` of a `ScopeSpans`.
const ITEMS: u32 = 2;

/// The items of one request.
pub(super) struct Batch {
    channel: Channel,
    /// The field `resource`, whole.
    resource: Vec<u8>,
    /// The field `scope`, whole.
    scope: Vec<u8>,
    items: Vec<u8>,
    count: usize,
    runs: HashSet<RunId>,
}

impl Batch {
    pub(super) fn new(channel: Channel, resource: &Resource, scope: &InstrumentationScope) -> Self {
        let (mut resource_field, mut scope_field) = (Vec::new(), Vec::new());
        put(RESOURCE, &resource.encode_to_vec(), &mut resource_field);
        put(SCOPE, &scope.encode_to_vec(), &mut scope_field);
        Self {
            channel,
            resource: resource_field,
            scope: scope_field,
            items: Vec::new(),
            count: 0,
            runs: HashSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The most bytes that it would have with one more item.
    pub(super) fn size_with(&self, item: &[u8]) -> usize {
        // Three headers: a tag, and a length of at most five bytes.
        self.resource.len() + self.scope.len() + self.items.len() + item.len() + 3 * 6
    }

    /// Adds an item of `run`.
    pub(super) fn push(&mut self, item: &[u8], run: Option<RunId>) {
        put(ITEMS, item, &mut self.items);
        self.count += 1;
        self.runs.extend(run);
    }

    /// Returns the request and starts an empty one.
    pub(super) fn finish(&mut self) -> NewRequest {
        let mut of_scope = Vec::new();
        head(SCOPE_ITEMS, self.scope.len() + self.items.len(), &mut of_scope);
        let mut beginning = Vec::new();
        let length = self.resource.len() + of_scope.len() + self.scope.len() + self.items.len();
        head(RESOURCE_ITEMS, length, &mut beginning);
        let parts: [&[u8]; 5] = [&beginning, &self.resource, &of_scope, &self.scope, &self.items];
        let body = gzip(&parts, Compression::fast());
        let request = NewRequest { channel: self.channel, items: self.count, runs: self.runs.len(), body };
        self.items.clear();
        self.runs.clear();
        self.count = 0;
        request
    }
}

fn put(tag: u32, bytes: &[u8], buffer: &mut Vec<u8>) {
    head(tag, bytes.len(), buffer);
    buffer.extend_from_slice(bytes);
}

fn head(tag: u32, length: usize, buffer: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}
