//! Encodes spans and records as OTLP requests of at most [`MAX_REQUEST`] bytes before gzip, and series as metrics.
//!
//! A stored request is sent unchanged until it is acknowledged, so a resend is byte-identical by construction and costs no
//! encoding. Series are not stored as requests, but encoded when they are sent.

mod metrics;
mod pack;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use flate2::Compression;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;

pub use self::metrics::Points;
use super::body::{DecodeError, gzip, unpack};
use super::config::Resource;
use crate::journal::Context;
use crate::projection::{Attributes, Record, RecordedEvent, Span, SpanKind, Subject, Value, run_attributes};
use crate::run::RunId;
use crate::semconv::field;
use crate::store::{Channel, NewRequest};
use crate::trace_context::SpanContext;

/// The most bytes of a request before compression: below the 4 MiB that gRPC servers accept by default.
pub const MAX_REQUEST: usize = 3 * 1024 * 1024;

const INSTANCE_ID: &str = "service.instance.id";

/// The flags of a link: W3C's in the low byte, and that the other span is remote (`trace.proto`).
const LINK_IS_REMOTE: u32 = 0x300;

/// Encodes for one resource: the application whose runs these are.
#[derive(Clone, Debug)]
pub struct Encoder {
    resource: ProtoResource,
    scope: InstrumentationScope,
}

impl Encoder {
    /// For `resource`, whose `service.instance.id` is `instance`: the database's, whichever process relays.
    pub fn new(resource: &Resource, instance: &str) -> Self {
        let attributes = resource
            .attributes()
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .filter(|(key, _)| *key != INSTANCE_ID)
            .chain([(INSTANCE_ID, instance)])
            .map(|(key, value)| key_value(key, value))
            .collect();
        let resource = ProtoResource { attributes, ..ProtoResource::default() };
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        Self { resource, scope }
    }

    /// The same for another instance.
    #[must_use]
    pub fn for_instance(&self, instance: &str) -> Self {
        let mut encoder = self.clone();
        encoder.resource.attributes.retain(|attribute| attribute.key != INSTANCE_ID);
        encoder.resource.attributes.push(key_value(INSTANCE_ID, instance));
        encoder
    }

    /// Spans as `ExportTraceServiceRequest`s.
    pub fn spans(&self, spans: &[Span]) -> Vec<NewRequest> {
        self.pack(
            Channel::Traces,
            spans.iter().map(|span| Part {
                run: Some(span.run),
                context: Some(&span.context),
                own: encode_span(span),
            }),
        )
    }

    /// Records as `ExportLogsServiceRequest`s.
    pub fn records(&self, records: &[Record]) -> Vec<NewRequest> {
        self.pack(
            Channel::Logs,
            records.iter().map(|record| Part {
                run: record.run(),
                context: match &record.subject {
                    Subject::Run { context, .. } => Some(context),
                    Subject::EndedParent { .. } | Subject::Dispatch(_) => None,
                },
                own: encode_record(record),
            }),
        )
    }

    /// Packs items into as few requests as the size allows.
    fn pack<'a, T: Item>(
        &self,
        channel: Channel,
        parts: impl Iterator<Item = Part<'a, T>>,
    ) -> Vec<NewRequest> {
        let mut requests = Vec::new();
        let mut batch = pack::Batch::new(channel, &self.resource, &self.scope);
        // The attributes of a run are most of its items, so they are encoded once.
        let mut shared: HashMap<RunId, (&Arc<Context>, Vec<u8>)> = HashMap::new();
        let mut item = Vec::new();
        for Part { run, context, own } in parts {
            item.clear();
            if let (Some(run), Some(context)) = (run, context) {
                let encode = || T::with_attributes(key_values(run_attributes(run, context))).encode_to_vec();
                let known = shared.entry(run).or_insert_with(|| (context, encode()));
                // A conflict may come with another context.
                if known.0 != context {
                    *known = (context, encode());
                }
                item.extend_from_slice(&known.1);
            }
            // Appending an encoded message merges it (Protocol Buffers, "Last One Wins"): both lists of attributes
            // become one.
            own.encode(&mut item).expect("a Vec grows");
            if batch.size_with(&item) > MAX_REQUEST && !batch.is_empty() {
                requests.push(batch.finish());
            }
            batch.push(&item, run);
        }
        if !batch.is_empty() {
            requests.push(batch.finish());
        }
        requests
    }
}

/// A span or record to be packed.
struct Part<'a, T> {
    /// The run that it belongs to.
    run: Option<RunId>,
    /// Where it carries the attributes of the run: what they are made of.
    context: Option<&'a Arc<Context>>,
    /// The rest of it.
    own: T,
}

/// Records as JSON lines, in one request.
pub fn lines(records: &[Record]) -> Option<NewRequest> {
    let mut text = Vec::new();
    for record in records {
        serde_json::to_writer(&mut text, record).expect("a record has text keys and plain values only");
        text.push(b'\n');
    }
    let (items, runs) = (records.len(), records.len());
    (!records.is_empty()).then(|| NewRequest { channel: Channel::Stdout, items, runs, body: text.into() })
}

/// The two halves of a stored request; `None` if it cannot be halved: a single item, or lines.
pub fn halve(channel: Channel, stored: &[u8]) -> Result<Option<[NewRequest; 2]>, DecodeError> {
    match channel {
        Channel::Traces => halves::<ExportTraceServiceRequest>(channel, stored),
        Channel::Logs => halves::<ExportLogsServiceRequest>(channel, stored),
        Channel::Stdout => Ok(None),
    }
}

/// An `Export…ServiceRequest` of one resource and one scope, the only form that this module writes.
trait Export: Message + Default + Clone {
    type Item: Item;

    /// Its items; `None` if it has no resource or scope.
    fn items(&mut self) -> Option<&mut Vec<Self::Item>>;
}

/// A span or a record.
trait Item: Message + Clone {
    fn attributes(&self) -> &[KeyValue];

    /// An item with nothing else.
    fn with_attributes(attributes: Vec<KeyValue>) -> Self;
}

impl Export for ExportTraceServiceRequest {
    type Item = trace::Span;

    fn items(&mut self) -> Option<&mut Vec<trace::Span>> {
        Some(&mut self.resource_spans.first_mut()?.scope_spans.first_mut()?.spans)
    }
}

impl Export for ExportLogsServiceRequest {
    type Item = LogRecord;

    fn items(&mut self) -> Option<&mut Vec<LogRecord>> {
        Some(&mut self.resource_logs.first_mut()?.scope_logs.first_mut()?.log_records)
    }
}

impl Item for trace::Span {
    fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn with_attributes(attributes: Vec<KeyValue>) -> Self {
        Self { attributes, ..Self::default() }
    }
}

impl Item for LogRecord {
    fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn with_attributes(attributes: Vec<KeyValue>) -> Self {
        Self { attributes, ..Self::default() }
    }
}

fn encode<R: Export>(channel: Channel, envelope: &R, items: Vec<R::Item>) -> NewRequest {
    let runs = items.iter().filter_map(run_id).collect::<HashSet<_>>().len();
    let count = items.len();
    let mut request = envelope.clone();
    if let Some(place) = request.items() {
        *place = items;
    }
    let body = gzip(&[&request.encode_to_vec()], Compression::fast());
    NewRequest { channel, items: count, runs, body }
}

fn halves<R: Export>(channel: Channel, stored: &[u8]) -> Result<Option<[NewRequest; 2]>, DecodeError> {
    let mut envelope = R::decode(unpack(stored)?)?;
    let mut items = envelope.items().map(std::mem::take).unwrap_or_default();
    if items.len() < 2 {
        return Ok(None);
    }
    let rest = items.split_off(items.len() / 2);
    Ok(Some([items, rest].map(|items| encode(channel, &envelope, items))))
}

fn run_id(item: &impl Item) -> Option<&str> {
    let attribute = item.attributes().iter().find(|attribute| attribute.key == field::RUN_ID)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(id) => Some(id),
        _ => None,
    }
}

/// Without the attributes of its run.
fn encode_span(span: &Span) -> trace::Span {
    let context = span.span_context();
    let status = |reason: &str| trace::Status {
        message: reason.to_owned(),
        code: trace::status::StatusCode::Error.into(),
    };
    trace::Span {
        trace_id: context.trace_id.bytes().to_vec(),
        span_id: context.span_id.bytes().to_vec(),
        parent_span_id: span.parent().map(|id| id.bytes().to_vec()).unwrap_or_default(),
        flags: context.flags.into(),
        name: span.name().into_owned(),
        kind: match span.kind {
            // The CI/CD semantic conventions have SERVER for the run of a pipeline.
            SpanKind::Run(_) => trace::span::SpanKind::Server,
            SpanKind::Queue => trace::span::SpanKind::Internal,
        }
        .into(),
        start_time_unix_nano: span.start.unix_nanos(),
        end_time_unix_nano: span.end.unix_nanos(),
        attributes: key_values(span.own_attributes()),
        events: span.events.iter().map(|event| encode_event(span, event)).collect(),
        dropped_events_count: span.dropped_events,
        links: span.link.iter().map(encode_link).collect(),
        status: span.error().map(status),
        ..trace::Span::default()
    }
}

fn encode_event(span: &Span, event: &RecordedEvent) -> trace::span::Event {
    trace::span::Event {
        time_unix_nano: event.at.unix_nanos(),
        name: event.event.name().to_owned(),
        attributes: key_values(span.event_attributes(event)),
        ..trace::span::Event::default()
    }
}

fn encode_link(link: &SpanContext) -> trace::span::Link {
    trace::span::Link {
        trace_id: link.trace_id.bytes().to_vec(),
        span_id: link.span_id.bytes().to_vec(),
        flags: u32::from(link.flags) | LINK_IS_REMOTE,
        ..trace::span::Link::default()
    }
}

/// Without the attributes of its run.
fn encode_record(record: &Record) -> LogRecord {
    let context = record.span_context();
    let mut attributes = vec![key_value(field::EVENT, record.event.name())];
    attributes.extend(key_values(record.own_attributes()));
    LogRecord {
        time_unix_nano: record.at.unix_nanos(),
        // The journal observed it as it happened.
        observed_time_unix_nano: record.at.unix_nanos(),
        severity_number: record.level().severity_number(),
        body: Some(AnyValue { value: Some(any_value::Value::StringValue(record.body())) }),
        attributes,
        flags: context.map_or(0, |context| context.flags.into()),
        trace_id: context.map(|context| context.trace_id.bytes().to_vec()).unwrap_or_default(),
        span_id: context.map(|context| context.span_id.bytes().to_vec()).unwrap_or_default(),
        event_name: record.event.name().to_owned(),
        ..LogRecord::default()
    }
}

fn key_values(attributes: Attributes<'_>) -> Vec<KeyValue> {
    attributes.into_iter().map(|(key, value)| key_value(key, value)).collect()
}

fn key_value<'a>(key: &str, value: impl Into<Value<'a>>) -> KeyValue {
    let value = match value.into() {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Int(number) => any_value::Value::IntValue(number),
        Value::Bool(yes) => any_value::Value::BoolValue(yes),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
