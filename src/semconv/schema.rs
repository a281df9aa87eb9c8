//! The catalogue as a JSON Schema of the event lines.

use serde_json::{Map, Value, json};

use super::{Carried, Event, Field, FieldKind, Level, Presence, field};

/// The JSON Schema (draft 2020-12) of a line of `runspan relay --logs stdout`.
///
/// A line is one of the events, and has of that event's fields those that are always there, perhaps those that are
/// there sometimes, and no other key.
pub fn json_schema() -> Value {
    let fields = field::ALL.iter().map(|field| (field.name.to_owned(), of_field(field)));
    let events = Event::ALL.iter().map(|event| (event.name().to_owned(), of_event(*event)));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An event of a workflow run",
        "description": "A line of `runspan relay --logs stdout`.",
        "oneOf": Event::ALL.iter().map(|event| reference(event.name())).collect::<Value>(),
        "$defs": fields.chain(events).collect::<Map<_, _>>(),
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn of_event(event: Event) -> Value {
    let fields = event.fields();
    let required = fields.iter().filter(|Carried(_, presence)| *presence == Presence::Always);
    let properties = fields.iter().map(|Carried(name, _)| {
        let property = match *name {
            field::EVENT => json!({ "const": event.name() }),
            field::LEVEL => {
                json!({ "enum": event.levels().into_iter().map(Level::as_str).collect::<Value>() })
            }
            name => reference(name),
        };
        ((*name).to_owned(), property)
    });
    json!({
        "description": event.when(),
        "type": "object",
        "required": required.map(|Carried(name, _)| *name).collect::<Value>(),
        "properties": properties.collect::<Map<_, _>>(),
        "additionalProperties": false,
    })
}

fn of_field(field: &Field) -> Value {
    let mut schema = match field.kind {
        FieldKind::Text => json!({ "type": "string" }),
        FieldKind::Integer => json!({ "type": "integer" }),
        FieldKind::Boolean => json!({ "type": "boolean" }),
        FieldKind::Uuid => json!({ "type": "string", "format": "uuid" }),
        FieldKind::Hex(digits) => json!({ "type": "string", "pattern": format!("^[0-9a-f]{{{digits}}}$") }),
        FieldKind::Time => json!({ "type": "string", "format": "date-time" }),
        FieldKind::Event
        | FieldKind::Level
        | FieldKind::Outcome
        | FieldKind::Status
        | FieldKind::ErrorType => {
            json!({ "enum": field.kind.values() })
        }
    };
    schema["description"] = field.meaning.into();
    schema
}
