//! The files that tell Grafana of its data sources and of the dashboards.

use std::fs;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{directory, list, names, sources as dashboards, strings, text_of};

fn read(path: &str) -> Value {
    let path = directory().join("grafana/provisioning").join(path);
    let text = fs::read_to_string(path).expect("the file is there");
    serde_saphyr::from_str(&text).expect("it is YAML")
}

/// The provisioned data sources.
pub(super) fn sources() -> &'static [Value] {
    static FILE: LazyLock<Value> = LazyLock::new(|| read("datasources/runspan.yaml"));
    list(&FILE["datasources"])
}

#[test]
fn the_data_sources_are_those_that_the_dashboards_name() {
    let uids: Vec<&str> = sources().iter().map(|source| text_of(&source["uid"])).collect();
    assert_eq!(uids, ["prometheus", "tempo", "loki", "runs"]);
    let problems = problems(sources());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_dashboards_are_found_where_compose_puts_them() {
    let providers = read("dashboards/runspan.yaml");
    let [provider] = list(&providers["providers"]) else { panic!("one provider: {providers}") };
    assert_eq!(provider["options"]["path"], "/var/lib/grafana/dashboards");
    assert_eq!(provider["allowUiUpdates"], false);
}

/// What is wrong with the data sources: which one, and the cause.
fn problems(sources: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let uid = text_of(&source["uid"]);
        let mut say = |cause: String| problems.push(format!("{uid}: {cause}"));
        let mut texts = Vec::new();
        strings(source, &mut texts);
        for text in texts {
            of_dollars(text, &mut say);
            if let Some(rest) = text.strip_prefix("/d/") {
                of_link(rest, &mut say);
            }
        }
        of_uids(source, sources, &mut say);
        for query in list(&source["jsonData"]["tracesToMetrics"]["queries"]) {
            let expr = text_of(&query["query"]).replace("$$__tags", "");
            crate::promql::problems(&expr, &std::collections::BTreeSet::new(), &mut say);
        }
        for field in list(&source["jsonData"]["derivedFields"]) {
            names::of_field(text_of(&field["matcherRegex"]), &mut say);
        }
        names::of_logql(text_of(&source["jsonData"]["tracesToLogsV2"]["query"]), &mut say);
    }
    problems
}

/// Grafana reads `$NAME` from the environment (and `${NAME}`, but then a `$` within its value too): what it is to keep
/// is doubled.
fn of_dollars(text: &str, say: &mut dyn FnMut(String)) {
    static VARIABLE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$\$|\$[A-Z]+_[A-Z]+$").expect("a constant"));
    if VARIABLE.replace_all(text, "").contains('$') {
        say(format!("neither $$ nor a variable of the environment: {text}"));
    }
}

fn of_link(rest: &str, say: &mut dyn FnMut(String)) {
    let uid = rest.split('?').next().unwrap_or_default();
    let is_there = |(_, text): &(String, String)| text.contains(&format!("\"uid\": \"{uid}\""));
    if !dashboards().iter().any(is_there) {
        say(format!("a link to {uid}, which is no dashboard"));
    }
}

/// That each data source which another one leads to is there.
fn of_uids(value: &Value, sources: &[Value], say: &mut dyn FnMut(String)) {
    for (key, value) in value.as_object().into_iter().flatten() {
        if key == "datasourceUid" && sources.iter().all(|source| source["uid"] != *value) {
            say(format!("it leads to the data source {value}, which is none"));
        }
        of_uids(value, sources, say);
    }
    for value in list(value) {
        of_uids(value, sources, say);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_source() {
    let mut said = String::new();
    for (right, wrong) in [
        ("datasourceUid: tempo", "datasourceUid: traces"),
        ("$LOKI_URL", "${LOKI_URL}"),
        ("trace_id=\"$$", "trace_id=\"$"),
        ("| trace_id=", "| traceId="),
        ("/d/runspan-one-run", "/d/one-run"),
        ("sum by (outcome)", "sum by (result)"),
        ("matcherRegex: runId", "matcherRegex: run"),
    ] {
        let path = directory().join("grafana/provisioning/datasources/runspan.yaml");
        let text = fs::read_to_string(path).expect("the file is there");
        assert!(text.contains(right), "{right}");
        let file: Value = serde_saphyr::from_str(&text.replacen(right, wrong, 1)).expect("it is YAML");
        for problem in problems(list(&file["datasources"])) {
            said += &format!("{right} → {wrong}\n    {problem}\n");
        }
    }
    insta::assert_snapshot!(said, @r#"
    datasourceUid: tempo → datasourceUid: traces
        prometheus: it leads to the data source "traces", which is none
    $LOKI_URL → ${LOKI_URL}
        loki: neither $$ nor a variable of the environment: ${LOKI_URL}
    trace_id="$$ → trace_id="$
        tempo: neither $$ nor a variable of the environment: {$${__tags}} | trace_id="${__span.traceId}"
    | trace_id= → | traceId=
        tempo: no field of the catalogue: traceId
    /d/runspan-one-run → /d/one-run
        loki: a link to one-run, which is no dashboard
    sum by (outcome) → sum by (result)
        tempo: nothing here has the label result
    matcherRegex: runId → matcherRegex: run
        loki: no field of the catalogue: run
    "#);
}
