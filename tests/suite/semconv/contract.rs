//! The contract: what the catalogue says of the events is what the projection makes, no more and no less.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use jsonschema::Validator;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use regex::Regex;
use runspan::journal::{Entry, Row};
use runspan::projection::{Projected, Settings, project};
use runspan::runs;
use runspan::semconv::{Carried, Event, Level, Presence, field, json_schema};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::database::Database;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::options().should_validate_formats(true).build(&json_schema()).expect("the schema is one")
});

fn assert_valid(line: &Value) {
    assert!(SCHEMA.is_valid(line), "not in the catalogue: {line:#}");
}

const STATUSES: &[&str] = &[
    "queued",
    "queued",
    "running",
    "running",
    "succeeded",
    "failed",
    "failed",
    "incomplete",
    "cancelled",
    "paused",
];

const REASONS: &[&str] = &[
    "uncaught: a\nb",
    "enqueue failed: no queue",
    "owner lost: executor-3",
    "timeout: 5 min",
    "no such branch",
    "",
    "workflow-dispatch-inflight",
    "context-mismatch",
    "missing-prior-output",
];

/// A row of the journal, whatever the table is like, and the state before if it is not the one that the row before
/// left: writers err, triggers are off for a while.
fn row() -> impl Strategy<Value = (Row, Option<Option<String>>)> {
    let text = |values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values).prop_map(str::to_owned))
    };
    let status = || prop::option::weighted(0.9, prop::sample::select(STATUSES).prop_map(str::to_owned));
    let run = || prop::option::of((1..=4_u128).prop_map(Uuid::from_u128));
    let target =
        (text(&["issue", "pr", "branch"]), text(&["acme"]), text(&["widgets"]), prop::option::of(-1..9_i64));
    let lineage = (run(), run(), text(&["ship"]), run(), text(&["d-0"]));
    let around = (text(REASONS), text(&["d-1"]), prop::bool::weighted(0.3));
    let run = prop::option::weighted(0.9, (1..=4_u128).prop_map(Uuid::from_u128));
    let before = prop::option::weighted(0.2, status());
    (0..9_000_i64, run, before, status(), target, lineage, around).prop_map(
        |(at, run_id, before, to_status, target, lineage, (reason, delivery_id, reconciled))| {
            let row = Row {
                at,
                run_id,
                workflow_name: Some("plan".to_owned()),
                to_status: to_status.filter(|_| run_id.is_some()),
                target_type: target.0,
                target_owner: target.1,
                target_repo: target.2,
                target_number: target.3,
                parent_run_id: lineage.0,
                root_run_id: lineage.1,
                root_workflow_name: lineage.2,
                root_delivery_id: lineage.4,
                inflight_run_id: lineage.3,
                reason,
                delivery_id,
                reconciled,
                ..Row::default()
            };
            (row, before)
        },
    )
}

/// What a journal comes to.
fn projected() -> impl Strategy<Value = Projected> {
    prop::collection::vec(row(), 1..30).prop_map(|rows| {
        let mut left: HashMap<Uuid, Option<String>> = HashMap::new();
        let entries = rows.into_iter().filter_map(|(mut row, before)| {
            if let Some(run) = row.run_id {
                let left = left.entry(run).or_default();
                row.from_status = before.unwrap_or_else(|| left.clone());
                left.clone_from(&row.to_status);
            }
            Entry::try_from(row).ok()
        });
        project(HashMap::new(), entries.collect::<Vec<_>>(), &Settings::default())
    })
}

fn line(record: impl serde::Serialize) -> Value {
    serde_json::to_value(record).expect("a record is JSON")
}

fn keys(line: &Value) -> BTreeSet<&str> {
    line.as_object().expect("a line is an object").keys().map(String::as_str).collect()
}

proptest! {
    #[test]
    fn every_record_is_in_the_catalogue(projected in projected()) {
        for record in projected.records {
            assert_valid(&line(record));
        }
    }
}

/// What many journals come to, the same each time.
fn many_journals() -> impl Iterator<Item = Projected> {
    let mut runner = TestRunner::deterministic();
    let mut journal = move || projected().new_tree(&mut runner).expect("nothing is rejected").current();
    (0..4_000).map(move |_| journal())
}

/// Their lines.
static LINES: LazyLock<Vec<Value>> =
    LazyLock::new(|| many_journals().flat_map(|projected| projected.records).map(line).collect());

#[test]
fn always_is_always_and_sometimes_is_now_and_then() {
    for event in Event::ALL {
        let lines: Vec<&Value> = LINES.iter().filter(|line| line["event"] == event.name()).collect();
        let seen: BTreeMap<&str, usize> =
            lines.iter().flat_map(|line| keys(line)).fold(BTreeMap::new(), |mut seen, key| {
                *seen.entry(key).or_default() += 1;
                seen
            });
        let seen: BTreeSet<(&str, bool)> =
            seen.into_iter().map(|(key, times)| (key, times == lines.len())).collect();
        let catalogue =
            event.fields().into_iter().map(|Carried(key, presence)| (key, presence == Presence::Always));
        assert_eq!(seen, catalogue.collect(), "{event}: fields, and whether they are always there");

        let levels: BTreeSet<&str> = lines.iter().filter_map(|line| line["level"].as_str()).collect();
        assert_eq!(levels, event.levels().into_iter().map(Level::as_str).collect(), "{event}");
    }
}

#[test]
fn each_value_of_the_catalogue_occurs() {
    for field in field::ALL {
        let seen: BTreeSet<&str> = LINES.iter().filter_map(|line| line.get(field.name)?.as_str()).collect();
        if let Some(values) = field.kind.values() {
            assert_eq!(seen, values.into_iter().collect(), "{}", field.name);
        }
    }
}

#[test]
fn what_is_on_spans_is_in_the_catalogue() {
    let known: BTreeSet<&str> = field::ALL.iter().map(|field| field.name).collect();
    for span in many_journals().flat_map(|projected| projected.spans) {
        let events = span.events.iter().map(|event| span.event_attributes(event));
        for (key, _) in events.chain([span.attributes()]).flatten() {
            assert!(known.contains(key), "{key} on {span:?}");
        }
    }
}

#[test]
fn a_line_that_lacks_a_key_or_has_one_too_many_is_refused() {
    for event in Event::ALL {
        // The one with the most: all that can be dropped or changed is there.
        let line = LINES
            .iter()
            .filter(|line| line["event"] == event.name())
            .max_by_key(|line| keys(line).len())
            .expect("each event occurs");
        assert_valid(line);
        let refused = |change: &dyn Fn(&mut Value), why: &str| {
            let mut changed = line.clone();
            change(&mut changed);
            assert!(!SCHEMA.is_valid(&changed), "{why}: {changed:#}");
        };
        for Carried(key, presence) in event.fields() {
            if presence == Presence::Always {
                refused(&|line| drop(line.as_object_mut().unwrap().remove(key)), key);
            }
            if line.get(key).is_some() {
                refused(&|line| line[key] = Value::Null, key);
                refused(&|line| line[key] = json!(["of", "another", "type"]), key);
            }
        }
        refused(&|line| line["colour"] = "red".into(), "an unknown key");
        refused(&|line| line["event"] = "workflow.run.paused".into(), "an unknown event");
        refused(&|line| line["level"] = "debug".into(), "an unknown level");
    }
}

#[test]
fn the_lines_of_the_demo_are_in_the_catalogue() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_runspan"));
    let output = demo.args(["demo", "--json"]).env_clear().env("TMPDIR", temporary.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for record in report["records"].as_array().unwrap() {
        assert_valid(record);
    }
}

on_every_database!(the_lines_of_a_relay_are_in_the_catalogue);

async fn the_lines_of_a_relay_are_in_the_catalogue(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let done = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), done).await.unwrap();
    runs::mark_succeeded(session.runs(), done).await.unwrap();
    let left = session.queue("plan", 1).await;
    runs::mark_running(session.runs(), left).await.unwrap();
    runs::mark_incomplete(session.runs(), left, "2 of 5 threads are open").await.unwrap();
    let unpublished = session.queue("plan", 2).await;
    runs::mark_failed(session.runs(), unpublished, "enqueue failed: connection refused").await.unwrap();
    session.execute("UPDATE workflow_runs SET status = 'queued' WHERE status = 'failed'").await;
    session.queue("review", 2).await;
    session.execute("DELETE FROM workflow_runs WHERE workflow_name = 'review'").await;
    session.queue("resolve", 3).await;
    // The bundled table allows no such status; others do.
    session
        .execute(if database.is_postgres() {
            "ALTER TABLE workflow_runs DROP CONSTRAINT workflow_runs_status_check"
        } else {
            "PRAGMA ignore_check_constraints = ON"
        })
        .await;
    session.execute("UPDATE workflow_runs SET status = 'cancelled' WHERE workflow_name = 'resolve'").await;
    session.execute(if database.is_postgres() {
        "SELECT runspan.dispatch_refused('ship', 'issue', 'acme', 'widgets', 42, 'context-mismatch', 'd-1', NULL)"
    } else {
        "INSERT INTO runspan_dispatch_refused VALUES ('ship', 'issue', 'acme', 'widgets', 42, 'context-mismatch', 'd-1', NULL)"
    }).await;

    let relayed = Command::new(env!("CARGO_BIN_EXE_runspan"))
        .args(["relay", "--until-idle", "--logs", "stdout"])
        .env("DATABASE_URL", &database.url)
        .env("OTEL_TRACES_EXPORTER", "none")
        .output()
        .unwrap();
    assert!(relayed.status.success(), "{}", String::from_utf8_lossy(&relayed.stderr));
    let text = String::from_utf8(relayed.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter().for_each(assert_valid);
    let told: BTreeSet<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    let handed_off = Event::HandedOff.name();
    assert_eq!(
        told,
        Event::ALL.iter().map(|event| event.name()).filter(|name| *name != handed_off).collect()
    );
}

#[test]
fn the_schema_in_the_documentation_is_the_programs() {
    let printed = Command::new(env!("CARGO_BIN_EXE_runspan")).arg("schema").output().unwrap().stdout;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.schema.json");
    assert!(
        fs::read(file).is_ok_and(|documented| documented == printed),
        "docs/events.schema.json is out of date: cargo run -- schema > docs/events.schema.json"
    );
}

/// The only dependencies of the table's mutators: telling what happened is the journal's business.
const MUTATORS_USE: [&str; 4] = ["serde_json", "sqlx", "thiserror", "uuid"];

#[test]
fn mutators_neither_log_nor_know_of_telemetry() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let below = fs::read_dir(root.join("src/runs")).unwrap().map(|entry| entry.unwrap().path());
    let files = below.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    for path in files.chain([root.join("src/runs.rs")]) {
        let text = fs::read_to_string(&path).unwrap();
        let found = foreign(&text, &manifest);
        assert!(found.is_empty(), "{} uses {found:?}", path.display());
    }
}

/// What a mutator must not use, and this text does: other dependencies of the manifest, standard streams, and macros
/// that print or log.
fn foreign<'a>(text: &'a str, manifest: &str) -> Vec<&'a str> {
    let section = manifest.split_once("[dependencies]\n").expect("the manifest has dependencies").1;
    let dependencies = section.lines().take_while(|line| !line.starts_with('['));
    let names =
        dependencies.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.replace('-', "_"));
    let forbidden: Vec<String> = names.filter(|name| !MUTATORS_USE.contains(&name.as_str())).collect();
    let found = Regex::new(&format!(
        r"\b(?:(?:{})(?:::|\b[^\n]*;)|std::io\b|(?:e?println|e?print|dbg|trace|debug|info|warn|error|log)!)",
        forbidden.join("|")
    ))
    .expect("names of crates are plain");
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter_map(|line| Some(found.find(line)?.as_str())).collect()
}

#[test]
fn a_mutator_that_logs_is_found() {
    let manifest = "[package]\n[dependencies]\nsqlx = \"1\"\ntracing = \"1\"\nopentelemetry-otlp = { version = \"1\" }\n[dev-dependencies]\n";
    for (text, expected) in [
        ("use sqlx::Row as _;\n/// As `tracing::info!` would.\nsqlx::query(\"SELECT status::text\");", ""),
        ("use tracing::info;", "tracing::"),
        ("use tracing as t;", "tracing as t;"),
        ("    tracing::warn!(%id);\n    error!(\"gone\");", "tracing:: error!"),
        ("use opentelemetry_otlp::SpanExporter;", "opentelemetry_otlp::"),
        ("fn f() { println!(\"queued\") }", "println!"),
        ("use std::io::Write as _;", "std::io"),
    ] {
        assert_eq!(foreign(text, manifest).join(" "), expected, "{text}");
    }
}
