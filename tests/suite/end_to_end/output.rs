//! What the Collector wrote: spans and records from OTLP's JSON.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub(super) type Attributes = BTreeMap<String, Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    pub(super) trace_id: String,
    #[serde(rename = "spanId")]
    pub(super) id: String,
    #[serde(default)]
    pub(super) parent_span_id: String,
    pub(super) name: String,
    pub(super) kind: u8,
    #[serde(rename = "startTimeUnixNano", deserialize_with = "micros")]
    pub(super) start: i64,
    #[serde(rename = "endTimeUnixNano", deserialize_with = "micros")]
    pub(super) end: i64,
    #[serde(deserialize_with = "attributes")]
    pub(super) attributes: Attributes,
    #[serde(default)]
    pub(super) events: Vec<SpanEvent>,
    #[serde(default)]
    pub(super) links: Vec<Link>,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Deserialize)]
pub(super) struct SpanEvent {
    #[serde(rename = "timeUnixNano", deserialize_with = "micros")]
    pub(super) at: i64,
    pub(super) name: String,
    #[serde(default, deserialize_with = "attributes")]
    pub(super) attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Link {
    pub(super) trace_id: String,
    pub(super) span_id: String,
}

#[derive(Default, Deserialize, PartialEq, Eq, Debug)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u8,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    #[serde(rename = "timeUnixNano", deserialize_with = "micros")]
    pub(super) at: i64,
    pub(super) event_name: String,
    pub(super) severity_number: u8,
    #[serde(default)]
    pub(super) trace_id: String,
    #[serde(default)]
    pub(super) span_id: String,
    #[serde(deserialize_with = "attributes")]
    pub(super) attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    #[serde(alias = "resourceSpans", alias = "resourceLogs")]
    resources: Vec<ResourceItems>,
}

#[derive(Deserialize)]
struct ResourceItems {
    resource: Resource,
    #[serde(alias = "scopeSpans", alias = "scopeLogs")]
    scopes: Vec<ScopeItems>,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(deserialize_with = "attributes")]
    attributes: Attributes,
}

#[derive(Deserialize)]
struct ScopeItems {
    #[serde(alias = "spans", alias = "logRecords")]
    items: Vec<Value>,
}

/// The requests without resent copies, in the order of their arrival, and how many copies there were. A copy that
/// differs in a single byte is no copy: its spans are then there twice.
pub(super) fn without_copies(lines: Vec<String>) -> (Vec<String>, usize) {
    let all = lines.len();
    let mut seen = HashMap::new();
    for (place, line) in lines.into_iter().enumerate() {
        seen.entry(line).or_insert(place);
    }
    let mut first: Vec<(String, usize)> = seen.into_iter().collect();
    first.sort_unstable_by_key(|(_, place)| *place);
    let copies = all - first.len();
    (first.into_iter().map(|(line, _)| line).collect(), copies)
}

/// The spans or records of requests, all of which have to be the application's.
pub(super) fn items<T: serde::de::DeserializeOwned>(lines: &[String]) -> Vec<T> {
    let mut items = Vec::new();
    for line in lines {
        let request: Request = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for resource in request.resources {
            let name = resource.resource.attributes.get("service.name").and_then(Value::as_str);
            assert_eq!(name, Some("shop"), "a resource that is not the application's");
            items.extend(resource.scopes.into_iter().flat_map(|scope| scope.items));
        }
    }
    items.into_iter().map(|item| serde_json::from_value(item).unwrap()).collect()
}

/// A 64-bit number, which JSON has as a string.
fn micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let nanos: i64 = String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?;
    if nanos % 1_000 == 0 { Ok(nanos / 1_000) } else { Err(serde::de::Error::custom("below a microsecond")) }
}

/// `[{"key": "runId", "value": {"stringValue": "…"}}]` as a map. A key that is there twice is an error.
fn attributes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Attributes, D::Error> {
    #[derive(Deserialize)]
    struct KeyValue {
        key: String,
        value: BTreeMap<String, Value>,
    }
    let mut map = Attributes::new();
    for KeyValue { key, value } in Vec::deserialize(deserializer)? {
        let value = match value.into_iter().next() {
            Some((kind, Value::String(number))) if kind == "intValue" => {
                number.parse::<i64>().map_err(serde::de::Error::custom)?.into()
            }
            Some((_, value)) => value,
            None => Value::Null,
        };
        if map.insert(key.clone(), value).is_some() {
            return Err(serde::de::Error::custom(format!("attribute {key} is there twice")));
        }
    }
    Ok(map)
}
