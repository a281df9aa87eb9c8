//! What promtool, of the Prometheus that runs them, says of the rules.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::{files, path};

/// Runs `promtool SUBCOMMAND rules` on each of `files` at once.
fn promtool(subcommand: &str, files: &[PathBuf]) -> Vec<Output> {
    let binary = std::env::var("RUNSPAN_TEST_PROMTOOL")
        .expect("RUNSPAN_TEST_PROMTOOL is not set: run `make test`, which builds it");
    let start = |file: &PathBuf| {
        let mut command = Command::new(&binary);
        command.args([subcommand, "rules"]).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("promtool is there")
    };
    let started: Vec<_> = files.iter().map(start).collect();
    started.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

#[test]
fn finds_the_rules_right() {
    for output in promtool("check", &files("dashboards/rules", "yaml")) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn sees_each_test_of_the_rules_pass() {
    for output in promtool("test", &files("tests/rules", "yaml")) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn sees_a_test_fail_that_expects_another_alert() {
    let directory = tempfile::tempdir().unwrap();
    let right = std::fs::read_to_string(path("tests/rules/receivers.yaml")).unwrap();
    let rules = format!("{}/", path("dashboards/rules").display());
    let wrong =
        right.replace("../../dashboards/rules/", &rules).replacen("signal: logs", "signal: traces", 1);
    let file = directory.path().join("wrong.yaml");
    std::fs::write(&file, wrong).unwrap();
    let [output] = promtool("test", &[file]).try_into().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("CollectorRefusing"), "{}", said(&output));
}
