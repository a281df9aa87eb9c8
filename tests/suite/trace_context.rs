//! docs/traceparent.md: what it shows in other languages is run, and computes what `SpanContext::of_run` does.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use runspan::run::RunId;
use runspan::trace_context::SpanContext;
use sqlx::{Connection as _, Row as _};

/// Runs and their roots: each version of UUIDs, and ids from which zeros would come.
const IDS: [[&str; 2]; 9] = [
    ["f47ac10b-58cc-4372-a567-0e02b2c3d479", "f47ac10b-58cc-4372-a567-0e02b2c3d479"],
    ["0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d", "f47ac10b-58cc-4372-a567-0e02b2c3d479"],
    ["f47ac10b-58cc-4372-a567-0e02b2c3d479", "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d"],
    ["0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d", "2c1d43b8-e6d7-11ee-a951-0242ac120002"],
    ["2c1d43b8-e6d7-11ee-a951-0242ac120002", "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d"],
    ["000003e8-e6d7-21ee-a951-0242ac120002", "000003e8-e6d7-21ee-a951-0242ac120002"],
    ["1eee6d72-c1d4-63b8-a951-0242ac120002", "2c1d43b8-e6d7-11ee-a951-0242ac120002"],
    ["00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000"],
    ["0190a5d4-7d3c-7cc1-0000-000000000000", "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d"],
];

fn expected() -> Vec<String> {
    let id = |text: &str| text.parse::<RunId>().unwrap();
    IDS.iter().map(|[run, root]| SpanContext::of_run(id(run), id(root)).to_string()).collect()
}

/// The first code block under a heading.
fn shown(heading: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/traceparent.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect(heading);
    let (_, block) = section.split_once("```").expect("a code block");
    let (_, code) = block.split_once('\n').expect("its first line names the language");
    code.split_once("```").expect("its end").0.to_owned()
}

/// The lines that a program prints which gets the files and, as arguments, each run and its root.
fn printed(program: &str, options: &[&str], files: &[(&str, String)]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.args(options).current_dir(&directory);
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
        command.arg(name);
    }
    lines(command.args(IDS.as_flattened()), "")
}

fn lines(command: &mut Command, input: &str) -> Vec<String> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}; `make test` installs what the tests need"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make test`"))
}

#[test]
fn typescript() {
    let rest = "
        const ids: string[] = process.argv.slice(2);
        for (let at = 0; at < ids.length; at += 2) console.log(traceparent(ids[at], ids[at + 1]));";
    let program = shown("TypeScript") + rest;
    assert_eq!(printed(&service("RUNSPAN_TEST_NODE"), &[], &[("ids.mts", program)]), expected());
}

#[test]
fn python() {
    let rest = "
import sys
ids = [UUID(id) for id in sys.argv[1:]]
for run, root in zip(ids[::2], ids[1::2]):
    print(traceparent(run, root))";
    assert_eq!(printed("python3", &[], &[("ids.py", shown("Python") + rest)]), expected());
}

#[test]
fn go() {
    let main = r#"package main

import (
    "encoding/hex"
    "fmt"
    "os"
    "strings"
)

func main() {
    ids := os.Args[1:]
    for at := 0; at < len(ids); at += 2 {
        fmt.Println(traceparent(id(ids[at]), id(ids[at+1])))
    }
}

func id(text string) [16]byte {
    bytes, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
    if err != nil {
        panic(err)
    }
    return [16]byte(bytes)
}"#;
    let shown = format!("package main\n{}", shown("Go"));
    assert_eq!(printed("go", &["run"], &[("shown.go", shown), ("main.go", main.to_owned())]), expected());
}

#[test]
fn postgresql() {
    let calls: String =
        IDS.iter().map(|[run, root]| format!("SELECT traceparent('{run}', '{root}');\n")).collect();
    let script = format!("BEGIN;\n{}\n{calls}ROLLBACK;\n", shown("PostgreSQL"));
    let mut psql = Command::new("psql");
    psql.args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-d", &service("RUNSPAN_TEST_POSTGRES_URL")]);
    assert_eq!(lines(&mut psql, &script), expected());
}

#[tokio::test]
async fn sqlite() {
    let query = shown("SQLite");
    let mut connection = sqlx::SqliteConnection::connect("sqlite::memory:").await.unwrap();
    let mut found = Vec::new();
    for [run, root] in IDS {
        let row =
            sqlx::query(sqlx::AssertSqlSafe(query.clone())).bind(run).bind(root).fetch_one(&mut connection);
        found.push(row.await.unwrap().get::<String, _>("traceparent"));
    }
    assert_eq!(found, expected());
}
