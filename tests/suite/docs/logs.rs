//! docs/operate/logs.md has each warning and error that a process logs, and the runbooks quote messages that exist.

use std::collections::BTreeSet;
use std::fs;
use std::sync::LazyLock;

use regex::Regex;

use super::phrases::{files, has_extension, is_test, literals, root, shipped};

const PAGE: &str = "docs/operate/logs.md";

const ALERTS: &str = "docs/operate/alerts.md";
const RUNTIME: &str = "docs/runtime.md";

/// Messages that runbooks tell operators to search for: the page, and the beginning of the message.
const RELIED_ON: &[(&str, &str)] = &[
    (ALERTS, "failed to take jobs from the queue"),
    (ALERTS, "cannot read the table"),
    (ALERTS, "standing by"),
    (ALERTS, "failed to renew the lease"),
    (ALERTS, "capture works again"),
    (ALERTS, "are gone without a DELETE that the triggers saw"),
    (ALERTS, "receiver rejected items"),
    (RUNTIME, "failed orphaned run"),
    (RUNTIME, "re-enqueued run without a job"),
    (RUNTIME, "run already ended; ignoring later outcome"),
    (RUNTIME, "failed to renew executor lease"),
    (RUNTIME, "failed to take jobs from the queue"),
    (RUNTIME, "failed to acknowledge job"),
    (RUNTIME, "failed to claim run; retrying"),
    (RUNTIME, "failed to record outcome; retrying"),
];

/// A message as pages quote it: placeholders are an ellipsis.
fn quoted(literal: &str) -> String {
    static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{[^{}]*\}").expect("a constant"));
    static CONTINUED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\\\n\s*").expect("a constant"));
    let joined = CONTINUED.replace_all(literal, "");
    PLACEHOLDER.replace_all(&joined, "…").replace("\\\"", "\"")
}

/// Level and message of each `warn!` and `error!` in `code`, and of those that `macros` names.
fn messages(code: &str) -> BTreeSet<(String, String)> {
    static CALL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b(warn|error)!\(").expect("a constant"));
    CALL.captures_iter(code)
        .filter_map(|call| {
            let begin = call.get(0).expect("the whole").end();
            // The message is the last literal, behind the fields.
            let literal = literals_within(&code[begin..]).pop()?;
            Some((call[1].to_owned(), quoted(&literal)))
        })
        .collect()
}

/// The string literals up to the parenthesis that closes the one before `code`.
fn literals_within(code: &str) -> Vec<String> {
    static TOKEN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#"(?s)"((?:\\.|[^"\\])*)"|[()]"#).expect("a constant"));
    let (mut depth, mut literals) = (1, Vec::new());
    for token in TOKEN.captures_iter(code) {
        match (&token[0], token.get(1)) {
            (_, Some(literal)) => literals.push(literal.as_str().to_owned()),
            ("(", None) => depth += 1,
            _ => depth -= 1,
        }
        if depth == 0 {
            break;
        }
    }
    literals
}

fn sources() -> impl Iterator<Item = String> {
    let paths = files("src", true).into_iter().filter(|path| has_extension(path, &["rs"]) && !is_test(path));
    paths.map(|path| shipped(&fs::read_to_string(root().join(path)).expect("text")).to_owned())
}

#[test]
fn every_warning_and_error_is_explained() {
    let page = fs::read_to_string(root().join(PAGE)).expect("the page exists");
    // In Markdown a message with backticks has two at either end.
    let row =
        Regex::new(r"(?m)^\| (?:`` (.+) ``|`([^`]+)`) \| (warn|error) \| .{5,} \|$").expect("a constant");
    let explained: BTreeSet<(String, String)> = row
        .captures_iter(&page)
        .map(|row| {
            let message = row.get(1).or(row.get(2)).expect("one of the two");
            (row[3].to_owned(), message.as_str().to_owned())
        })
        .collect();
    let mut logged: BTreeSet<_> = sources().flat_map(|code| messages(&code)).collect();
    // Only a cause, which says all.
    logged.retain(|(_, message)| message != "…");
    let missing: Vec<_> = logged.difference(&explained).collect();
    let unknown: Vec<_> = explained.difference(&logged).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{PAGE} lacks {missing:#?}\nand no code logs {unknown:#?}"
    );
}

#[test]
fn every_quoted_message_exists() {
    let literals: Vec<String> = sources().map(|code| quoted(&literals(&code, false))).collect();
    for (page, message) in RELIED_ON {
        let text = fs::read_to_string(root().join(page)).expect("the page exists");
        assert!(text.contains(&format!("`{message}")), "{page} no longer quotes `{message}`");
        assert!(literals.iter().any(|literal| literal.contains(message)), "{page}: nothing logs `{message}`");
    }
}

#[test]
fn messages_are_found_behind_fields_and_across_lines() {
    let code = "tracing::warn!(a = f(1), name = \"x\", \"lost {n} of \\\n    them: {error}\");\nerror!(\"{said}\")\ninfo!(\"no\")";
    let expected = [("error", "…"), ("warn", "lost … of them: …")];
    assert_eq!(messages(code), expected.map(|(level, text)| (level.to_owned(), text.to_owned())).into());
}
