//! The names in a query, held to the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use runspan::semconv::{Field, field, metric};

/// What the dashboards ask of the Collector (0.159, as Prometheus scrapes it) and of Tempo: metrics and labels.
const OTHERS: [(&str, &[&str]); 19] = [
    ("otelcol_exporter_enqueue_failed_log_records", &["exporter"]),
    ("otelcol_exporter_enqueue_failed_metric_points", &["exporter"]),
    ("otelcol_exporter_enqueue_failed_spans", &["exporter"]),
    ("otelcol_exporter_queue_capacity", &["exporter", "data_type"]),
    ("otelcol_exporter_queue_size", &["exporter", "data_type"]),
    ("otelcol_exporter_send_failed_log_records", &["exporter"]),
    ("otelcol_exporter_send_failed_metric_points", &["exporter"]),
    ("otelcol_exporter_send_failed_spans", &["exporter"]),
    ("otelcol_exporter_sent_log_records", &["exporter"]),
    ("otelcol_exporter_sent_metric_points", &["exporter"]),
    ("otelcol_exporter_sent_spans", &["exporter"]),
    ("otelcol_process_memory_rss", &[]),
    ("otelcol_receiver_accepted_log_records", &["receiver", "transport"]),
    ("otelcol_receiver_accepted_metric_points", &["receiver", "transport"]),
    ("otelcol_receiver_accepted_spans", &["receiver", "transport"]),
    ("otelcol_receiver_refused_log_records", &["receiver", "transport"]),
    ("otelcol_receiver_refused_metric_points", &["receiver", "transport"]),
    ("otelcol_receiver_refused_spans", &["receiver", "transport"]),
    ("tempo_discarded_spans_total", &["reason"]),
];

/// Every metric in Prometheus, with its labels.
static METRICS: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let of_resource = ["job", "instance"];
    let ours = metric::ALL.iter().flat_map(|metric| {
        metric.prometheus().into_iter().map(|name| {
            let bound = name.ends_with("_bucket").then_some("le");
            let labels = metric.labels().into_iter();
            let labels = labels.chain(of_resource.into_iter().chain(bound).map(str::to_owned)).collect();
            (name, labels)
        })
    });
    let others = OTHERS.iter().map(|(name, labels)| {
        (name.to_string(), labels.iter().copied().chain(of_resource).map(str::to_owned).collect())
    });
    ours.chain(others).collect()
});

/// The values that a label or an attribute of this name can have, if they can be counted.
fn values(name: &str) -> Option<Vec<&'static str>> {
    match name {
        metric::STATUS => Some(vec!["queued", "running", "waiting", "dead"]),
        metric::SIGNAL => Some(vec!["traces", "logs", "metrics", "stdout"]),
        _ => field_named(name)?.kind.values(),
    }
}

/// The field of this name, in whichever spelling.
fn field_named(name: &str) -> Option<&'static Field> {
    field::ALL.iter().find(|field| field.name == name || field.name.replace('.', "_") == name)
}

/// That what stands between quotes, or each alternative of it, is a value of `name`. (Patterns and variables may be
/// anything.)
fn of_value(name: &str, quoted: &str, say: &mut dyn FnMut(String)) {
    let text = quoted.trim_matches('"');
    let Some(known) = values(name).filter(|_| !text.is_empty() && !text.contains(['$', '*', '+'])) else {
        return;
    };
    for value in text.split('|').filter(|value| !known.contains(value)) {
        say(format!("{name} is never {value}"));
    }
}

/// A piece of a query: a string, a range, a name, a number or duration, an operator, any other character.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#""(?:[^"\\]|\\.)*"|\[[^\]]*\]|[A-Za-z_][\w:]*|\d[\w.]*|=~|!~|!=|>=|<=|==|\|\||&&|\S"#)
        .expect("a constant")
});

fn tokens(query: &str) -> Vec<&str> {
    TOKEN.find_iter(query).map(|token| token.as_str()).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// That each metric of an expression in PromQL is known, with the labels that are asked of it.
pub(super) fn of_promql(expr: &str, say: &mut dyn FnMut(String)) {
    let tokens = tokens(expr);
    let mut metrics: Vec<&str> = Vec::new();
    let mut grouped: Vec<&str> = Vec::new();
    let (mut within_braces, mut within_list) = (false, false);
    for (at, token) in tokens.iter().copied().enumerate() {
        let next = tokens.get(at + 1).copied().unwrap_or_default();
        match token {
            "{" => within_braces = true,
            "}" => within_braces = false,
            ")" => within_list = false,
            "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => within_list = next == "(",
            "and" | "or" | "unless" | "bool" | "offset" => {}
            _ if !is_name(token) => {}
            _ if within_list => grouped.push(token),
            _ if within_braces => {
                let metric = metrics.last().copied().unwrap_or_default();
                if METRICS.get(metric).is_some_and(|labels| !labels.contains(token)) {
                    say(format!("{metric} has no label {token}"));
                }
                of_value(token, tokens.get(at + 2).copied().unwrap_or_default(), say);
            }
            // A function, or an aggregation.
            _ if ["(", "by", "without"].contains(&next) => {}
            _ => metrics.push(token),
        }
    }
    for metric in metrics.iter().filter(|metric| !METRICS.contains_key(**metric)) {
        say(format!("no metric of the catalogue: {metric}"));
    }
    let has =
        |label: &str| metrics.iter().filter_map(|name| METRICS.get(*name)).any(|all| all.contains(label));
    for label in grouped.into_iter().filter(|label| !has(label)) {
        say(format!("no metric here has the label {label}"));
    }
}

/// What a search of traces may ask besides attributes.
const INTRINSICS: [&str; 10] =
    ["kind", "server", "internal", "client", "name", "status", "error", "duration", "nil", "most_recent"];

/// One filter of spans, what to show of them, and that the newest are wanted; or a trace's id in a variable.
static PLAIN_TRACEQL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:\$\w+|\{[^{}]*\}(?: \| select\([^(){}|]*\))?(?: with \(most_recent=true\))?)$")
        .expect("a constant")
});

/// A string, a variable, or a name with its scope.
static TRACEQL_NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#""[^"]*"|\$\w+|[A-Za-z_][\w:]*(?:\.[A-Za-z_][\w.]*)?"#).expect("a constant")
});

/// That a query in TraceQL asks for attributes of the catalogue, span by span: operators between spans, and the name
/// of a trace's root, miss runs whose parts arrived minutes apart.
pub(super) fn of_traceql(query: &str, say: &mut dyn FnMut(String)) {
    if !PLAIN_TRACEQL.is_match(query) {
        say("TraceQL: more than one plain filter, with a select behind it".to_owned());
    }
    for found in TRACEQL_NAME.find_iter(query).filter(|found| !found.as_str().starts_with(['"', '$'])) {
        let name = found.as_str();
        if let Some(attribute) = name.strip_prefix("span.") {
            of_field(attribute, say);
            let compared = TOKEN.find_iter(&query[found.end()..]).nth(1);
            if let Some(value) = compared.map(|token| token.as_str()).filter(|token| token.starts_with('"')) {
                of_value(attribute, value, say);
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
            of_value(token, tokens.get(at + 2).copied().unwrap_or_default(), say);
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

/// That SQL asks for columns of the view, of nothing else.
pub(super) fn of_sql(query: &str, say: &mut dyn FnMut(String)) {
    if !query.contains("FROM runspan.stuck") {
        say("SQL: not of the view runspan.stuck".to_owned());
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
