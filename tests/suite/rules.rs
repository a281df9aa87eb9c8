//! Prometheus' rules: promtool checks and tests them, and they are held to the catalogue, to their tests, to the
//! dashboards and to the runbooks.

#[cfg(feature = "services")]
mod promtool;
mod wrong;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::promql;

const PAGE: &str = "docs/operate/alerts.md";

fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files in `directory` with this extension, in order.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path(directory)).expect("the directory is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("it is YAML")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// All that has to agree.
#[derive(Clone)]
struct Sources {
    recording: String,
    alerts: String,
    /// The tests for promtool.
    tests: Vec<String>,
    /// The runbooks.
    page: String,
    /// What else may use a recorded series.
    dashboards: Vec<String>,
}

impl Sources {
    fn of_tree() -> Self {
        let read = |file: PathBuf| fs::read_to_string(file).expect("the file is there");
        Self {
            recording: read(path("dashboards/rules/recording.yaml")),
            alerts: read(path("dashboards/rules/alerts.yaml")),
            tests: files("tests/rules", "yaml").into_iter().map(read).collect(),
            page: read(path(PAGE)),
            dashboards: files("dashboards", "json").into_iter().map(read).collect(),
        }
    }
}

fn rules(text: &str) -> Vec<Value> {
    list(&yaml(text)["groups"]).iter().flat_map(|group| list(&group["rules"])).cloned().collect()
}

#[test]
fn rules_tests_and_runbooks_agree() {
    let problems = problems(&Sources::of_tree());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Each alert of the rules is a row of the index, in order, with its severities and a first step.
#[test]
fn the_index_of_the_runbooks_has_every_alert() {
    let Sources { alerts, page, .. } = Sources::of_tree();
    let mut expected: Vec<(String, Vec<String>)> = Vec::new();
    for rule in rules(&alerts) {
        let (alert, severity) =
            (text(&rule["alert"]).to_owned(), text(&rule["labels"]["severity"]).to_owned());
        match expected.iter_mut().find(|(known, _)| *known == alert) {
            Some((_, severities)) if severities.contains(&severity) => {}
            Some((_, severities)) => severities.push(severity),
            None => expected.push((alert, vec![severity])),
        }
    }
    let index = page.split("\n## ").find(|section| section.starts_with("Index\n")).expect("an index");
    let rows: Vec<Vec<&str>> = index
        .lines()
        .filter(|line| line.starts_with("| ["))
        .map(|line| line.split(" | ").collect())
        .collect();
    let expected: Vec<(String, String)> = expected
        .into_iter()
        .map(|(alert, severities)| (format!("| [{alert}](#{})", alert.to_lowercase()), severities.join(", ")))
        .collect();
    let indexed: Vec<(String, String)> =
        rows.iter().map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    assert_eq!(indexed, expected);
    assert!(rows.iter().all(|row| row[2].trim_end_matches(" |").len() > 5), "a first step each");
}

/// The documented command makes every link absolute.
#[test]
fn one_command_makes_the_runbook_links_absolute() {
    let Sources { page, .. } = Sources::of_tree();
    let command = page.lines().find(|line| line.starts_with("sed -i ")).expect("the command");
    let command = command.replacen("sed -i ", "sed ", 1);
    let output =
        std::process::Command::new("sh").current_dir(path("")).args(["-c", &command]).output().unwrap();
    let rewritten = String::from_utf8(output.stdout).unwrap();
    let links = rewritten.matches("runbook_url: ").count();
    assert!(links > 20);
    assert_eq!(
        rewritten.matches("runbook_url: https://example.com/runspan/docs/operate/alerts.md#").count(),
        links
    );
}

/// Name and expression of every rule.
#[cfg(feature = "services")]
pub(crate) fn expressions() -> Vec<(String, String)> {
    let Sources { recording, alerts, .. } = Sources::of_tree();
    let named = |rule: &Value| {
        let name = rule.get("record").or(rule.get("alert")).expect("a rule has a name");
        (text(name).to_owned(), text(&rule["expr"]).to_owned())
    };
    rules(&recording).iter().chain(&rules(&alerts)).map(named).collect()
}

/// What is wrong with `sources`.
fn problems(sources: &Sources) -> Vec<String> {
    let (recording, alerts) = (rules(&sources.recording), rules(&sources.alerts));
    let recorded: BTreeSet<&str> = recording.iter().map(|rule| text(&rule["record"])).collect();
    let mut problems = Vec::new();
    for rule in recording.iter().chain(&alerts) {
        let name = name(rule);
        promql::problems(text(&rule["expr"]), &recorded, &mut |problem| {
            problems.push(format!("{name}: {problem}"));
        });
    }
    for name in &recorded {
        let users = recording.iter().chain(&alerts).map(|rule| text(&rule["expr"]));
        if !users.chain(sources.dashboards.iter().map(String::as_str)).any(|user| user.contains(name)) {
            problems.push(format!("{name}: nobody asks for it"));
        }
    }
    let tests: Vec<Value> = sources.tests.iter().map(|file| yaml(file)).collect();
    for test in tests.iter().flat_map(|file| list(&file["tests"])) {
        for series in list(&test["input_series"]) {
            promql::problems(text(&series["series"]), &recorded, &mut |problem| {
                problems.push(format!("test {:?}: {problem}", text(&test["name"])));
            });
        }
    }
    for alert in &alerts {
        of_annotations(alert, &mut problems);
        of_tests(alert, &tests, &mut problems);
    }
    of_page(&sources.page, &alerts, &recorded, &mut problems);
    problems
}

fn name(rule: &Value) -> &str {
    rule["alert"].as_str().unwrap_or_else(|| text(&rule["record"]))
}

/// That it says how grave it is, what it means, and where to read on.
fn of_annotations(alert: &Value, problems: &mut Vec<String>) {
    let name = name(alert);
    let annotation = |key: &str| text(&alert["annotations"][key]);
    if text(&alert["for"]).is_empty() {
        problems.push(format!("{name}: no `for`"));
    }
    if !["page", "ticket"].contains(&text(&alert["labels"]["severity"])) {
        problems.push(format!("{name}: its severity is neither page nor ticket"));
    }
    if annotation("summary").is_empty() {
        problems.push(format!("{name}: no summary"));
    }
    if !annotation("description").contains("{{ $labels.") {
        problems.push(format!("{name}: its description does not say which one"));
    }
    let runbook = format!("{PAGE}#{}", name.to_lowercase());
    if annotation("runbook_url") != runbook {
        problems.push(format!("{name}: its runbook_url is not {runbook}"));
    }
}

/// That each rule fires in a case of its alert's, and that the alert is quiet in another, which has series.
fn of_tests(alert: &Value, tests: &[Value], problems: &mut Vec<String>) {
    let name = name(alert);
    let groups = tests.iter().flat_map(|file| list(&file["tests"]));
    let groups = groups.filter(|group| !list(&group["input_series"]).is_empty());
    let cases = groups.flat_map(|group| list(&group["alert_rule_test"]));
    let cases: Vec<&Value> = cases.filter(|case| case["alertname"] == name).collect();
    let labels = &alert["labels"];
    let own = || labels.as_object().into_iter().flatten();
    let is_this = |fired: &Value| own().all(|(key, value)| fired["exp_labels"][key] == *value);
    if !cases.iter().any(|case| list(&case["exp_alerts"]).iter().any(is_this)) {
        problems.push(format!("{name}: no test has it fire as {labels}"));
    }
    if !cases.iter().any(|case| list(&case["exp_alerts"]).is_empty()) {
        problems.push(format!("{name}: no test has it quiet"));
    }
}

/// That the page has one section for each alert and no other, and asks for nothing unknown.
fn of_page(page: &str, alerts: &[Value], recorded: &BTreeSet<&str>, problems: &mut Vec<String>) {
    let known: BTreeSet<&str> = alerts.iter().map(name).collect();
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    for name in &known {
        match sections.iter().filter(|section| *section == name).count() {
            1 => {}
            count => problems.push(format!("{name}: {count} sections, instead of one, in {PAGE}")),
        }
    }
    for section in sections.iter().filter(|section| !known.contains(**section)) {
        problems.push(format!("{PAGE}: there is no alert {section}"));
    }
    for block in page.split("```promql\n").skip(1).filter_map(|rest| rest.split("\n```").next()) {
        for asked in block.split("\n\n") {
            promql::problems(asked, recorded, &mut |problem| problems.push(format!("{PAGE}: {problem}")));
        }
    }
}
