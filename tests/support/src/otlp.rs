//! Reading what receivers got.

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use serde_json::{Value, json};

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an attribute, of the three kinds that runspan exports.
pub fn value(attribute: &KeyValue) -> Value {
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::BoolValue(is)) => json!(is),
        other => panic!("{}: {other:?}", attribute.key),
    }
}

/// The value of an attribute that is text.
pub fn text(attribute: &KeyValue) -> String {
    value(attribute).as_str().unwrap_or_else(|| panic!("{} is not text", attribute.key)).to_owned()
}

/// The value of the attribute `key`, if there is one.
pub fn find(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == key).map(value)
}
