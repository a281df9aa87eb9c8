//! What the Collector wrote: spans and records from OTLP's JSON.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub type Attributes = BTreeMap<String, Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    pub trace_id: String,
    #[serde(rename = "spanId")]
    pub id: String,
    #[serde(default)]
    pub parent_span_id: String,
    pub name: String,
    pub kind: u8,
    #[serde(rename = "startTimeUnixNano", deserialize_with = "micros")]
    pub start: i64,
    #[serde(rename = "endTimeUnixNano", deserialize_with = "micros")]
    pub end: i64,
    #[serde(deserialize_with = "attributes")]
    pub attributes: Attributes,
    #[serde(default)]
    pub events: Vec<SpanEvent>,
    #[serde(default)]
    pub links: Vec<Link>,
    #[serde(default)]
    pub status: Status,
}

#[derive(Deserialize)]
pub struct SpanEvent {
    #[serde(rename = "timeUnixNano", deserialize_with = "micros")]
    pub at: i64,
    pub name: String,
    #[serde(default, deserialize_with = "attributes")]
    pub attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
}

#[derive(Default, Deserialize, PartialEq, Eq, Debug)]
#[serde(default)]
pub struct Status {
    pub code: u8,
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    #[serde(rename = "timeUnixNano", deserialize_with = "micros")]
    pub at: i64,
    pub event_name: String,
    pub severity_number: u8,
    #[serde(default)]
    pub trace_id: String,
    #[serde(default)]
    pub span_id: String,
    #[serde(deserialize_with = "attributes")]
    pub attributes: Attributes,
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
pub fn without_copies(lines: Vec<String>) -> (Vec<String>, usize) {
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
pub fn items<T: serde::de::DeserializeOwned>(lines: &[String]) -> Vec<T> {
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
