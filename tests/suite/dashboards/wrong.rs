//! What is wrong is found, and said with the panel it is in.

use serde_json::{Value, json};

use super::{layout, problems};

/// A dashboard that is right, and no larger than it must be.
fn right() -> String {
    let prometheus = json!({ "type": "prometheus", "uid": "${prometheus}" });
    let panel = |id: u64, kind: &str, title: &str, x: u64, target: Value| {
        json!({
            "id": id, "type": kind, "title": title, "description": "What it says.",
            "datasource": target["datasource"], "targets": [target],
            "gridPos": { "x": x, "y": 0, "w": 6, "h": 4 },
            "fieldConfig": { "defaults": { "noValue": "none", "unit": "s" }, "overrides": [] },
        })
    };
    let expr = "sum by (outcome) (rate(workflow_run_duration_seconds_count{workflowName=~\"$workflow\"}[$__rate_interval]))";
    let mut runs =
        panel(1, "timeseries", "Runs", 0, json!({ "datasource": prometheus, "expr": expr, "refId": "A" }));
    runs["interval"] = json!("5m");
    runs["fieldConfig"]["overrides"] = json!([{
        "matcher": { "id": "byName", "options": "failed" },
        "properties": [{ "id": "color", "value": { "fixedColor": "red", "mode": "fixed" } }],
    }]);
    runs["fieldConfig"]["defaults"]["custom"] = json!({ "thresholdsStyle": { "mode": "dashed" } });
    runs["fieldConfig"]["defaults"]["thresholds"] =
        json!({ "steps": [{ "color": "green", "value": null }, { "color": "red", "value": 9 }] });
    let traceql =
        "{ span.outcome = \"failed\" && span.workflowName =~ `${workflow:regex}` } | select(span.reason)";
    let tempo = json!({ "type": "tempo", "uid": "${tempo}" });
    let spans = json!({ "datasource": tempo, "query": traceql, "queryType": "traceql", "refId": "A" });
    let logql = "{service_name=~\".+\"} | event=\"workflow.run.failed\"";
    let lines = json!({ "datasource": { "type": "loki", "uid": "${loki}" }, "expr": logql, "refId": "A" });
    let select = "SELECT run_id FROM runspan.stuck WHERE workflow_name ~ $$(${workflow:regex})$$";
    let postgres = json!({ "type": "grafana-postgresql-datasource", "uid": "${runs}" });
    let rows = json!({ "datasource": postgres, "rawSql": select, "refId": "A" });
    let dashboard = json!({
        "uid": "runs", "title": "Runs", "schemaVersion": 41,
        "links": [{ "type": "link", "title": "Again", "url": "/d/runs?var-workflow=ship" }],
        "panels": [
            runs,
            panel(2, "table", "Latest", 6, spans),
            panel(3, "logs", "Lines", 12, lines),
            panel(4, "table", "Stuck", 18, rows),
        ],
        "templating": { "list": [
            { "name": "prometheus", "type": "datasource", "query": "prometheus" },
            { "name": "tempo", "type": "datasource", "query": "tempo" },
            { "name": "loki", "type": "datasource", "query": "loki" },
            { "name": "runs", "type": "datasource", "query": "grafana-postgresql-datasource" },
            { "name": "workflow", "type": "query", "datasource": prometheus,
              "definition": "label_values(workflow_run_active, workflowName)",
              "query": { "query": "label_values(workflow_run_active, workflowName)" } },
        ] },
    });
    layout::canonical(&dashboard)
}

#[test]
fn a_right_dashboard_has_no_problems() {
    assert_eq!(problems(&[("right.json".to_owned(), right())]), Vec::<String>::new());
}

/// What is right, and what is wrong in its place.
const PLANTED: [(&str, &str); 37] = [
    (r#""schemaVersion": 41"#, r#""schemaVersion": 42, "spec": {}"#),
    (r#""schemaVersion": 41,"#, r#""schemaVersion": 43,"#),
    (r#""id": 2"#, r#""id": 1"#),
    (r#""x": 6"#, r#""x": 5"#),
    (r#""x": 18"#, r#""x": 19"#),
    (r#""title": "Runs""#, r#""title": """#),
    (r#""description": "What it says.""#, r#""description": "…""#),
    (r#""noValue": "none""#, r#""noValue": null"#),
    (r#""unit": "s""#, r#""unit": """#),
    (r#""steps""#, r#""stops""#),
    (r#""mode": "dashed""#, r#""mode": "off""#),
    (r#""uid": "${prometheus}""#, r#""uid": "${mimir}""#),
    (r#""uid": "${prometheus}""#, r#""uid": "${tempo}""#),
    (r#""uid": "${tempo}""#, r#""uid": "tempo""#),
    (r#""fixedColor": "red""#, r#""fixedColor": "blue""#),
    ("/d/runs", "/d/walks"),
    ("var-workflow", "var-workflows"),
    ("_seconds_count{", "_second_count{"),
    ("by (outcome)", "by (target)"),
    ("{workflowName=~", "{event=~"),
    (r#"workflowName=~\"$workflow\""#, r#"outcome=\"lost\""#),
    ("$workflow", "$flow"),
    ("rate(workflow_run", "rate(tempo_run"),
    ("span.outcome", "span.result"),
    (r#"= \"failed\""#, r#"= \"broken\""#),
    ("select(span.reason)", "select(rootName)"),
    ("} | select(span.reason)", "} >> { kind = server }"),
    ("`${workflow:regex}`", r#"\"${workflow:regex}\""#),
    ("`${workflow:regex}`", "`$workflow`"),
    ("$$(${workflow:regex})$$", "'${workflow:regex}'"),
    ("$$(${workflow:regex})$$", "$workflow"),
    (r#""interval": "5m","#, ""),
    ("| event", "| events"),
    ("workflow.run.failed", "workflow.run.broken"),
    ("run_id FROM", "owner FROM"),
    ("FROM runspan.stuck", "FROM workflow_runs"),
    ("(workflow_run_active, workflowName)", "(workflow_run_active, status_code)"),
];

#[test]
fn what_is_wrong_is_named_with_its_panel() {
    let mut said = String::new();
    for (right_text, wrong_text) in PLANTED {
        let page = right();
        assert!(page.contains(right_text), "{right_text}");
        let wrong = page.replacen(right_text, wrong_text, 1);
        let problems = problems(&[("wrong.json".to_owned(), wrong)]);
        let problems: String = problems.iter().map(|problem| format!("    {problem}\n")).collect();
        said += &format!("{right_text} → {wrong_text}\n{problems}");
    }
    insta::assert_snapshot!(said, @r#"
    "schemaVersion": 41 → "schemaVersion": 42, "spec": {}
        wrong.json: line 178: not in two spaces, with keys in their order
        wrong.json: no classic dashboard (schemaVersion up to 42, panels, no spec)
    "schemaVersion": 41, → "schemaVersion": 43,
        wrong.json: no classic dashboard (schemaVersion up to 42, panels, no spec)
    "id": 2 → "id": 1
        wrong.json: Latest: its id 1 is that of Runs too
    "x": 6 → "x": 5
        wrong.json: Latest: it lies on Runs
    "x": 18 → "x": 19
        wrong.json: Stuck: it does not fit the 24 columns
    "title": "Runs" → "title": ""
        wrong.json: : panel 1 has no title
    "description": "What it says." → "description": "…"
        wrong.json: Runs: no description of what it says, and of what to do
    "noValue": "none" → "noValue": null
        wrong.json: null at /panels/0/fieldConfig/defaults/noValue
        wrong.json: Runs: no word for when there is no data (noValue)
    "unit": "s" → "unit": ""
        wrong.json: Runs: no unit
    "steps" → "stops"
        wrong.json: null at /panels/0/fieldConfig/defaults/thresholds/stops/0/value
        wrong.json: Runs: no thresholds
    "mode": "dashed" → "mode": "off"
        wrong.json: Runs: its thresholds are not drawn
    "uid": "${prometheus}" → "uid": "${mimir}"
        wrong.json: Runs: its data source "${mimir}" is no variable for one of "prometheus"
        wrong.json: Runs: there is no variable $mimir
    "uid": "${prometheus}" → "uid": "${tempo}"
        wrong.json: Runs: its data source "${tempo}" is no variable for one of "prometheus"
    "uid": "${tempo}" → "uid": "tempo"
        wrong.json: Latest: its data source "tempo" is no variable for one of "tempo"
    "fixedColor": "red" → "fixedColor": "blue"
        wrong.json: Runs: failed is "blue" here, red elsewhere
    /d/runs → /d/walks
        wrong.json: a link to walks, which is no dashboard
    var-workflow → var-workflows
        wrong.json: a link sets workflows, which runs has not
    _seconds_count{ → _second_count{
        wrong.json: Runs: there is no metric workflow_run_duration_second_count
        wrong.json: Runs: nothing here has the label outcome
    by (outcome) → by (target)
        wrong.json: Runs: nothing here has the label target
    {workflowName=~ → {event=~
        wrong.json: Runs: workflow_run_duration_seconds_count has no label event
    workflowName=~\"$workflow\" → outcome=\"lost\"
        wrong.json: Runs: outcome is never lost
    $workflow → $flow
        wrong.json: Runs: there is no variable $flow
    rate(workflow_run → rate(tempo_run
        wrong.json: Runs: there is no metric tempo_run_duration_seconds_count
        wrong.json: Runs: nothing here has the label outcome
    span.outcome → span.result
        wrong.json: Latest: no field of the catalogue: result
    = \"failed\" → = \"broken\"
        wrong.json: Latest: outcome is never broken
    select(span.reason) → select(rootName)
        wrong.json: Latest: TraceQL: rootName is neither span.… nor one of kind, server, internal, client, name, status, error, duration, nil, most_recent
    } | select(span.reason) → } >> { kind = server }
        wrong.json: Latest: TraceQL: more than one plain filter, with a select behind it
    `${workflow:regex}` → \"${workflow:regex}\"
        wrong.json: Latest: TraceQL: $workflow has to be `${workflow:regex}`: a name may hold parentheses
    `${workflow:regex}` → `$workflow`
        wrong.json: Latest: TraceQL: $workflow has to be `${workflow:regex}`: a name may hold parentheses
    $$(${workflow:regex})$$ → '${workflow:regex}'
        wrong.json: Stuck: SQL: ${workflow:regex} is not escaped: ${…:sqlstring}, or $$(${…:regex})$$ for a pattern
    $$(${workflow:regex})$$ → $workflow
        wrong.json: Stuck: SQL: $workflow is not escaped: ${…:sqlstring}, or $$(${…:regex})$$ for a pattern
        wrong.json: Stuck: SQL: runspan.stuck has no column workflow
    "interval": "5m", → 
        wrong.json: line 63: not in two spaces, with keys in their order
        wrong.json: Runs: its windows may hold one sample only: "interval": "5m"
    | event → | events
        wrong.json: Lines: no field of the catalogue: events
    workflow.run.failed → workflow.run.broken
        wrong.json: Lines: event is never workflow.run.broken
    run_id FROM → owner FROM
        wrong.json: Stuck: SQL: runspan.stuck has no column owner
    FROM runspan.stuck → FROM workflow_runs
        wrong.json: Stuck: SQL: not of the view runspan.stuck
        wrong.json: Stuck: SQL: runspan.stuck has no column workflow_runs
    (workflow_run_active, workflowName) → (workflow_run_active, status_code)
        wrong.json: $workflow: its definition is not its query
    "#);
}
