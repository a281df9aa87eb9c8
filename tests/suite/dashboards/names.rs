//! The names in a query, held to the catalogue.

use std::sync::LazyLock;

use regex::Regex;

use crate::promql::{field_named, of_value};

/// A piece of a query: a string, a range, a name, a number or duration, an operator, any other character.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#""(?:[^"\\]|\\.)*"|`[^`]*`|\[[^\]]*\]|[A-Za-z_][\w:]*|\d[\w.]*|=~|!~|!=|>=|<=|==|\|\||&&|\S"#,
    )
    .expect("a constant")
});

fn tokens(query: &str) -> Vec<&str> {
    TOKEN.find_iter(query).map(|token| token.as_str()).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// What a search of traces may ask besides attributes.
const INTRINSICS: [&str; 10] =
    ["kind", "server", "internal", "client", "name", "status", "error", "duration", "nil", "most_recent"];

/// One filter of spans, what to show of them, and that the newest are wanted; or a trace's id in a variable.
static PLAIN_TRACEQL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:\$\w+|\{(?:[^{}]|\$\{[^{}]*\})*\}(?: \| select\([^(){}|]*\))?(?: with \(most_recent=true\))?)$",
    )
    .expect("a constant")
});

/// What an attribute is matched with: its quote, and a variable in it.
static PATTERN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"=~ (["`])[^"`$]*\$\{?(\w+)[^"`]*"#).expect("a constant"));

/// A string, a variable, or a name with its scope.
static TRACEQL_NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#""[^"]*"|`[^`]*`|\$\w+|[A-Za-z_][\w:]*(?:\.[A-Za-z_][\w.]*)?"#).expect("a constant")
});

/// That a query in TraceQL asks for attributes of the catalogue, span by span: operators between spans, and the name
/// of a trace's root, miss runs whose parts arrived minutes apart.
pub(super) fn of_traceql(query: &str, say: &mut dyn FnMut(String)) {
    if !PLAIN_TRACEQL.is_match(query) {
        say("TraceQL: more than one plain filter, with a select behind it".to_owned());
    }
    for pattern in PATTERN.captures_iter(query) {
        let variable = pattern.get(2).filter(|_| &pattern[1] != "`" || !pattern[0].contains(":regex}"));
        if let Some(variable) = variable {
            say(format!(
                "TraceQL: ${} has to be `${{{0}:regex}}`: a name may hold parentheses",
                variable.as_str()
            ));
        }
    }
    for found in TRACEQL_NAME.find_iter(query).filter(|found| !found.as_str().starts_with(['"', '`', '$'])) {
        let name = found.as_str();
        if let Some(attribute) = name.strip_prefix("span.") {
            of_field(attribute, say);
            let compared = TOKEN.find_iter(&query[found.end()..]).nth(1);
            if let Some(value) = compared.map(|token| token.as_str()).filter(|token| token.starts_with('"')) {
                of_value(attribute, value.trim_matches('"'), say);
            }
        } else if !INTRINSICS.contains(&name) && !["select", "with", "true"].contains(&name) {
            say(format!("TraceQL: {name} is neither span.… nor one of {}", INTRINSICS.join(", ")));
        }
    }
}

/// That a query in LogQL asks for fields of the catalogue.
pub(super) fn of_logql(query: &str, say: &mut dyn FnMut(String)) {
    let tokens = tokens(query);
    for (at, token) in tokens.iter().copied().enumerate().filter(|(_, token)| is_name(token)) {
        let compared = tokens.get(at + 1).is_some_and(|next| ["=", "=~", "!=", "!~"].contains(next));
        if compared && token != "service_name" {
            of_field(token, say);
            let value = tokens.get(at + 2).copied().unwrap_or_default();
            of_value(token, value.trim_matches('"'), say);
        }
    }
}

/// The columns of the view `runspan.stuck`.
const STUCK: [&str; 7] =
    ["run_id", "workflow_name", "target", "status", "since", "age_seconds", "usual_seconds"];

/// The other words that the dashboards' SQL is made of.
const SQL: &str =
    "SELECT AS FROM WHERE AND OR ORDER BY DESC LIMIT text coalesce lower starts_with runspan.stuck";

/// A string, a quoted name, a variable, a new name, or a word.
static SQL_WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"'[^']*'|"[^"]*"|\$\{[^}]*\}|AS \w+|[A-Za-z_][\w.]*"#).expect("a constant")
});

/// A variable in a form that none of its values can leave: quoted by Grafana, or dollar-quoted with every dollar sign
/// behind a backslash.
static ESCAPED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\$\{\w+:sqlstring\}|\$\$\(\$\{\w+:regex\}\)\$\$").expect("a constant"));

static VARIABLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\$(?:\{[^}]*\}|\w+)").expect("a constant"));

/// That SQL asks for columns of the view, of nothing else, and that no value of a variable changes what it asks.
pub(super) fn of_sql(query: &str, say: &mut dyn FnMut(String)) {
    if !query.contains("FROM runspan.stuck") {
        say("SQL: not of the view runspan.stuck".to_owned());
    }
    for variable in VARIABLE.find_iter(&ESCAPED.replace_all(query, "")) {
        say(format!(
            "SQL: {} is not escaped: ${{…:sqlstring}}, or $$(${{…:regex}})$$ for a pattern",
            variable.as_str()
        ));
    }
    let words = SQL_WORD.find_iter(query).map(|word| word.as_str());
    for word in words.filter(|word| is_name(word) && !word.starts_with("AS ")) {
        if !STUCK.contains(&word) && SQL.split(' ').all(|known| known != word) {
            say(format!("SQL: runspan.stuck has no column {word}"));
        }
    }
}

/// That `name` is a field of the catalogue, as records and spans have it.
pub(super) fn of_field(name: &str, say: &mut dyn FnMut(String)) {
    if field_named(name).is_none() {
        say(format!("no field of the catalogue: {name}"));
    }
}
