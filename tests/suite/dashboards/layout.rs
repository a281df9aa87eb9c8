//! What Grafana, and whoever looks at it, needs of a dashboard whatever it asks for.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{list, panels, text_of};

/// The newest classic model: what files may be provisioned with.
const NEWEST_CLASSIC: u64 = 42;

/// How wide a dashboard is.
const COLUMNS: u64 = 24;

/// As Grafana exports it: two spaces, keys in their order.
pub(super) fn canonical(json: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Array(values) => values.iter().map(sorted).collect(),
            Value::Object(fields) => {
                let fields: BTreeMap<&String, Value> =
                    fields.iter().map(|(key, value)| (key, sorted(value))).collect();
                fields.into_iter().map(|(key, value)| (key.clone(), value)).collect()
            }
            plain => plain.clone(),
        }
    }
    serde_json::to_string_pretty(&sorted(json)).expect("JSON of JSON") + "\n"
}

/// That a change shows as a small difference, and that nothing is said by null.
pub(super) fn of_text(text: &str, json: &Value, say: &mut dyn FnMut(String)) {
    let canonical = canonical(json);
    if let Some(line) = text.lines().zip(canonical.lines()).position(|(is, ought)| is != ought) {
        say(format!("line {}: not in two spaces, with keys in their order", line + 1));
    } else if text != canonical {
        say("it ends otherwise than in one line break".to_owned());
    }
    nulls(json, "", say);
}

/// A threshold without a lower bound is the one null that means something.
fn nulls(value: &Value, path: &str, say: &mut dyn FnMut(String)) {
    match value {
        Value::Null if !path.ends_with("/steps/0/value") => say(format!("null at {path}")),
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                nulls(value, &format!("{path}/{at}"), say);
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                nulls(value, &format!("{path}/{key}"), say);
            }
        }
        _ => {}
    }
}

pub(super) fn of_dashboard(json: &Value, say: &mut dyn FnMut(String)) {
    let classic = json["schemaVersion"].as_u64().is_some_and(|version| version <= NEWEST_CLASSIC);
    if !classic || !json["panels"].is_array() || ["spec", "apiVersion"].iter().any(|key| !json[key].is_null())
    {
        say(format!("no classic dashboard (schemaVersion up to {NEWEST_CLASSIC}, panels, no spec)"));
    }
    for key in ["uid", "title"] {
        if text_of(&json[key]).is_empty() {
            say(format!("no {key}"));
        }
    }
    let mut ids = BTreeMap::new();
    for panel in panels(json) {
        let title = text_of(&panel["title"]);
        match panel["id"].as_u64() {
            None => say(format!("{title}: no id")),
            Some(id) => {
                if let Some(other) = ids.insert(id, title) {
                    say(format!("{title}: its id {id} is that of {other} too"));
                }
            }
        }
    }
    of_places(list(&json["panels"]), say);
    for row in list(&json["panels"]) {
        of_places(list(&row["panels"]), say);
    }
}

/// That panels which are seen together lie side by side.
fn of_places(panels: &[Value], say: &mut dyn FnMut(String)) {
    let mut taken: Vec<([u64; 4], &str)> = Vec::new();
    for panel in panels {
        let title = text_of(&panel["title"]);
        let [Some(x), Some(y), Some(w), Some(h)] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64())
        else {
            say(format!("{title}: no place in the grid"));
            continue;
        };
        if x + w > COLUMNS || w == 0 || h == 0 {
            say(format!("{title}: it does not fit the {COLUMNS} columns"));
        }
        for ([left, top, wide, high], other) in &taken {
            if x < left + wide && *left < x + w && y < top + high && *top < y + h {
                say(format!("{title}: it lies on {other}"));
            }
        }
        taken.push(([x, y, w, h], title));
    }
}

/// That whoever looks at a panel learns what it says, in which unit, and why it is empty.
pub(super) fn of_panel(panel: &Value, say: &mut dyn FnMut(String)) {
    let kind = text_of(&panel["type"]);
    let defaults = &panel["fieldConfig"]["defaults"];
    if text_of(&panel["title"]).is_empty() {
        say(format!("panel {} has no title", panel["id"]));
    }
    if text_of(&panel["description"]).split_whitespace().count() < 3 {
        say("no description of what it says, and of what to do".to_owned());
    }
    let has_numbers = !["table", "text", "logs", "traces"].contains(&kind);
    if has_numbers && text_of(&defaults["unit"]).is_empty() {
        say("no unit".to_owned());
    }
    if ["stat", "timeseries", "state-timeline"].contains(&kind) {
        of_thresholds(defaults, say);
    }
    if kind != "text" && text_of(&defaults["noValue"]).is_empty() {
        say("no word for when there is no data (noValue)".to_owned());
    }
}

/// That it says from where on a value is bad, and shows that. (One step says that none is; without any, Grafana takes 80
/// for bad.)
fn of_thresholds(defaults: &Value, say: &mut dyn FnMut(String)) {
    let is_drawn = match text_of(&defaults["color"]["mode"]) {
        "thresholds" => true,
        _ => !["", "off"].contains(&text_of(&defaults["custom"]["thresholdsStyle"]["mode"])),
    };
    match list(&defaults["thresholds"]["steps"]).len() {
        0 => say("no thresholds".to_owned()),
        1 => {}
        _ if is_drawn => {}
        _ => say("its thresholds are not drawn".to_owned()),
    }
}
