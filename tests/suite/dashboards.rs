//! The dashboards: every panel is complete and means what the others mean, and asks only for what the catalogue knows.

mod layout;
mod names;
mod provisioning;
mod queries;
mod wrong;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

/// What a name's colour is, wherever it is drawn.
const COLOURS: [(&str, &str); 7] = [
    ("succeeded", "green"),
    ("failed", "red"),
    ("incomplete", "orange"),
    ("deleted", "#8E8E8E"),
    ("refused", "purple"),
    ("queued", "blue"),
    ("running", "#0FA3A3"),
];

/// A dashboard: the name of its file, and its text.
type Source = (String, String);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn sources() -> Vec<Source> {
    let entries = fs::read_dir(directory()).expect("the directory is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut read: Vec<Source> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("text"))
        })
        .collect();
    read.sort();
    read
}

#[test]
fn the_dashboards_are_whole_and_true_to_the_catalogue() {
    let sources = sources();
    let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one-run.json", "relay.json", "workflow-runs.json"]);
    let problems = problems(&sources);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A query in PromQL of a panel.
#[derive(Debug)]
pub(crate) struct Query {
    /// The file of its dashboard.
    pub(crate) dashboard: String,
    /// Its panel's title, and its own letter.
    pub(crate) panel: String,
    /// Whether it is asked of one moment; else of a range.
    pub(crate) instant: bool,
    /// The expression.
    pub(crate) expr: String,
}

/// Every PromQL query of every dashboard, with `values` for Grafana's variables, to be asked of a Prometheus.
pub(crate) fn promql(values: &[(&str, &str)]) -> Vec<Query> {
    let mut queries = Vec::new();
    for (dashboard, text) in sources() {
        let json: Value = serde_json::from_str(&text).expect("a dashboard is JSON");
        for panel in panels(&json) {
            for target in list(&panel["targets"]).iter().filter(|target| target["expr"].is_string()) {
                if target["datasource"]["type"] == "prometheus" {
                    queries.push(Query {
                        dashboard: dashboard.clone(),
                        panel: format!("{} {}", text_of(&panel["title"]), text_of(&target["refId"])),
                        instant: target["instant"] == true,
                        expr: filled(text_of(&target["expr"]), values),
                    });
                }
            }
        }
    }
    queries
}

/// `text` with `values` for `$name` and `${name}`.
fn filled(text: &str, values: &[(&str, &str)]) -> String {
    let variable = Regex::new(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))").expect("a constant");
    let value = |found: &regex::Captures<'_>| {
        let name = found.get(1).or(found.get(2)).expect("one of the two").as_str();
        let known = values.iter().find(|(variable, _)| *variable == name);
        known.map_or_else(|| found[0].to_owned(), |(_, value)| (*value).to_owned())
    };
    variable.replace_all(text, value).into_owned()
}

/// The SQL of *What is stuck*, as Grafana sends it for these workflows (none is all) and this target.
#[cfg(feature = "services")]
pub(crate) fn what_is_stuck(workflows: &[&str], target: &str) -> String {
    let workflow = match workflows {
        [] => ".*".to_owned(),
        [one] => regex::escape(one),
        many => format!("({})", many.iter().map(|name| regex::escape(name)).collect::<Vec<_>>().join("|")),
    };
    let target = format!("'{}'", target.replace('\'', "''"));
    let (_, text) =
        sources().into_iter().find(|(name, _)| name == "workflow-runs.json").expect("it is there");
    let json: Value = serde_json::from_str(&text).expect("a dashboard is JSON");
    let sql = panels(&json).into_iter().find_map(|panel| panel["targets"][0]["rawSql"].as_str());
    filled(sql.expect("a panel asks it"), &[("workflow", &workflow), ("target", &target)])
}

#[test]
fn every_query_can_be_filled_in() {
    let values = [
        ("job", ".*"),
        ("database", ".*"),
        ("workflow", ".*"),
        ("__range", "6h"),
        ("__interval", "5m"),
        ("__rate_interval", "5m"),
    ];
    let queries = promql(&values);
    assert!(queries.len() > 50, "{}", queries.len());
    for query in &queries {
        let Query { dashboard, panel, expr, .. } = query;
        assert!(!expr.contains('$'), "{dashboard}: {panel}: {expr}");
    }
    assert!(queries.iter().any(|query| query.instant) && queries.iter().any(|query| !query.instant));
    assert_eq!(filled("$a ${a} ${a:regex} $ab", &[("a", "1")]), "1 1 1 $ab");
}

/// What is wrong with the dashboards: file, panel and cause.
fn problems(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut parsed = BTreeMap::new();
    for (file, text) in sources {
        match serde_json::from_str::<Value>(text) {
            Ok(json) => {
                layout::of_text(text, &json, &mut |cause| problems.push(format!("{file}: {cause}")));
                parsed.insert(file.as_str(), json);
            }
            Err(error) => problems.push(format!("{file}: no JSON: {error}")),
        }
    }
    for (file, json) in &parsed {
        let mut say = |cause: String| problems.push(format!("{file}: {cause}"));
        layout::of_dashboard(json, &mut say);
        of_links(json, &parsed, &mut say);
        let variables = variables(json);
        for panel in panels(json) {
            let title = text_of(&panel["title"]);
            let mut say = |cause: String| problems.push(format!("{file}: {title}: {cause}"));
            if panel["type"] != "row" {
                layout::of_panel(panel, &mut say);
                of_colours(panel, &mut say);
                queries::of_panel(panel, &variables, &mut say);
            }
        }
        for variable in list(&json["templating"]["list"]) {
            let name = text_of(&variable["name"]);
            let mut say = |cause: String| problems.push(format!("{file}: ${name}: {cause}"));
            queries::of_variable(variable, &variables, &mut say);
        }
    }
    let uids: Vec<&str> = parsed.values().map(|json| text_of(&json["uid"])).collect();
    for (at, uid) in uids.iter().enumerate().filter(|(at, uid)| uids[..*at].contains(*uid)) {
        problems.push(format!("dashboard {at}: the uid {uid} is another's too"));
    }
    problems
}

/// All panels, those in collapsed rows too, and the rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = list(&dashboard["panels"]).iter();
    panels.flat_map(|panel| [panel].into_iter().chain(list(&panel["panels"]))).collect()
}

/// The variables, by name.
fn variables(dashboard: &Value) -> BTreeMap<&str, &Value> {
    let variables = list(&dashboard["templating"]["list"]).iter();
    variables.map(|variable| (text_of(&variable["name"]), variable)).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every string within.
fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// That each link leads to a dashboard that is there, and sets variables that it has.
fn of_links(dashboard: &Value, all: &BTreeMap<&str, Value>, say: &mut dyn FnMut(String)) {
    let link = Regex::new(r"^/d/([\w-]+)(?:\?(.*))?$").expect("a constant");
    let sets = Regex::new(r"\bvar-(\w+)=|\$\{(\w+):queryparam\}").expect("a constant");
    let mut found = Vec::new();
    strings(dashboard, &mut found);
    for url in found.into_iter().filter(|text| text.starts_with("/d/")) {
        let Some(parts) = link.captures(url) else {
            say(format!("no link: {url}"));
            continue;
        };
        let Some(target) = all.values().find(|other| other["uid"] == parts[1]) else {
            say(format!("a link to {}, which is no dashboard", &parts[1]));
            continue;
        };
        let known = variables(target);
        for set in sets.captures_iter(parts.get(2).map_or("", |query| query.as_str())) {
            let name = set.get(1).or(set.get(2)).expect("one of the two").as_str();
            if !known.contains_key(name) {
                say(format!("a link sets {name}, which {} has not", &parts[1]));
            }
        }
    }
}

/// That a name with a meaning has its colour, as a series and as a value.
fn of_colours(panel: &Value, say: &mut dyn FnMut(String)) {
    let config = &panel["fieldConfig"];
    let mut check = |name: &str, colour: &Value| {
        let known = COLOURS.iter().find(|(known, _)| *known == name);
        if let Some((_, meant)) = known.filter(|(_, meant)| colour != meant) {
            say(format!("{name} is {colour} here, {meant} elsewhere"));
        }
    };
    let mut drawn = Vec::new();
    let mut mappings: Vec<&Value> = list(&config["defaults"]["mappings"]).iter().collect();
    for field in list(&config["overrides"]) {
        for property in list(&field["properties"]) {
            match text_of(&property["id"]) {
                "color" => {
                    let name = text_of(&field["matcher"]["options"]);
                    check(name, &property["value"]["fixedColor"]);
                    drawn.push(name);
                }
                "mappings" => mappings.extend(list(&property["value"])),
                _ => {}
            }
        }
    }
    for mapping in mappings {
        for (name, shown) in mapping["options"].as_object().into_iter().flatten() {
            check(name, &shown["color"]);
        }
    }
    for (legend, values) in [("{{outcome}}", &COLOURS[..4]), ("{{status}}", &COLOURS[5..])] {
        if list(&panel["targets"]).iter().any(|target| target["legendFormat"] == legend) {
            for (name, _) in values.iter().filter(|(name, _)| !drawn.contains(name)) {
                say(format!("{name} has no colour of its own"));
            }
        }
    }
}
