//! What a panel or a variable asks, and whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{list, names, strings, text_of};
use crate::promql;

type Variables<'a> = BTreeMap<&'a str, &'a Value>;

pub(super) fn of_panel(panel: &Value, variables: &Variables<'_>, say: &mut dyn FnMut(String)) {
    let targets = list(&panel["targets"]);
    if panel["type"] == "text" {
        return;
    }
    if targets.is_empty() {
        say("it asks nothing".to_owned());
    }
    of_source(&panel["datasource"], variables, say);
    let mut letters = Vec::new();
    for target in targets {
        let letter = text_of(&target["refId"]);
        if letter.is_empty() || letters.contains(&letter) {
            say(format!("its query {letter:?} has no letter of its own"));
        }
        letters.push(letter);
        of_source(&target["datasource"], variables, say);
        of_target(target, say);
    }
    of_mentions(panel, variables, say);
    of_interval(panel, say);
}

/// That a window which Grafana chooses holds two exports of the relay, one a minute, whatever the data source says of its
/// scrapes: `rate` of one sample is nothing.
fn of_interval(panel: &Value, say: &mut dyn FnMut(String)) {
    let is_chosen = |target: &Value| {
        ["$__rate_interval", "$__interval"].iter().any(|window| text_of(&target["expr"]).contains(window))
    };
    if list(&panel["targets"]).iter().any(is_chosen) && text_of(&panel["interval"]) != "5m" {
        say("its windows may hold one sample only: \"interval\": \"5m\"".to_owned());
    }
}

/// That the dashboard lets choose it, so that it works beside data sources which are there already.
fn of_source(source: &Value, variables: &Variables<'_>, say: &mut dyn FnMut(String)) {
    let (kind, uid) = (text_of(&source["type"]), text_of(&source["uid"]));
    let name = uid.strip_prefix("${").and_then(|uid| uid.strip_suffix('}'));
    let variable = name.and_then(|name| variables.get(name));
    if !variable.is_some_and(|variable| variable["type"] == "datasource" && variable["query"] == kind) {
        say(format!("its data source {uid:?} is no variable for one of {kind:?}"));
    }
}

fn of_target(target: &Value, say: &mut dyn FnMut(String)) {
    let expr = text_of(&target["expr"]);
    match text_of(&target["datasource"]["type"]) {
        "prometheus" => promql::problems(expr, &BTreeSet::new(), say),
        "loki" => names::of_logql(expr, say),
        "tempo" => names::of_traceql(text_of(&target["query"]), say),
        "grafana-postgresql-datasource" => names::of_sql(text_of(&target["rawSql"]), say),
        other => say(format!("no language is known for the data source {other:?}")),
    }
}

/// That each variable which is mentioned is there. (Grafana's own begin with two underscores.)
fn of_mentions(within: &Value, variables: &Variables<'_>, say: &mut dyn FnMut(String)) {
    static MENTION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$(?:\{([A-Za-z]\w*)[:}]|([A-Za-z]\w*))").expect("a constant"));
    let mut found = Vec::new();
    strings(within, &mut found);
    for mention in found.iter().flat_map(|text| MENTION.captures_iter(text)) {
        let name = mention.get(1).or(mention.get(2)).expect("one of the two").as_str();
        if !variables.contains_key(name) {
            say(format!("there is no variable ${name}"));
        }
    }
}

pub(super) fn of_variable(variable: &Value, variables: &Variables<'_>, say: &mut dyn FnMut(String)) {
    match text_of(&variable["type"]) {
        "query" => {
            of_source(&variable["datasource"], variables, say);
            if variable["datasource"]["type"] == "prometheus" {
                of_label_values(variable, say);
            }
            of_mentions(&variable["query"], variables, say);
        }
        "datasource" | "textbox" => {}
        other => say(format!("a variable of type {other:?}")),
    }
}

fn of_label_values(variable: &Value, say: &mut dyn FnMut(String)) {
    let query = text_of(&variable["query"]["query"]);
    if variable["definition"] != query {
        say("its definition is not its query".to_owned());
    }
    let parts = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    match parts.and_then(|parts| parts.rsplit_once(", ")) {
        Some((series, label)) => {
            promql::problems(&format!("sum by ({label}) ({series})"), &BTreeSet::new(), say);
        }
        None => say(format!("no label_values(series, label): {query}")),
    }
}
