//! The names in PromQL, of dashboards and of rules, held to the catalogue.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use runspan::semconv::metric::{self, Metric};
use runspan::semconv::{Field, field};

/// What dashboards and rules ask of the Collector (0.159, as Prometheus scrapes it) and of Tempo: metrics and labels.
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
    ("tempo_discarded_spans_total", &["tenant", "reason"]),
];

const WORDS: [&str; 12] = [
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "offset",
    "bool",
    "inf",
];

/// The labels of a metric; `None`: there is none of this name.
fn labels(metric: &str, recorded: &BTreeSet<&str>) -> Option<BTreeSet<String>> {
    if let Some((level, _)) = metric.split_once(':') {
        return recorded.contains(metric).then(|| level.split('_').map(str::to_owned).collect());
    }
    let of_resource = ["job", "instance"].map(str::to_owned);
    let bound = metric.ends_with("_bucket").then(|| "le".to_owned());
    let ours = metric::ALL.iter().find(|ours| ours.prometheus().iter().any(|name| name == metric));
    let others = || {
        let (_, labels) = OTHERS.iter().find(|(name, _)| *name == metric)?;
        Some(labels.iter().map(|label| (*label).to_owned()).collect())
    };
    let own = ours.map(Metric::labels).or_else(others)?;
    Some(own.into_iter().chain(of_resource).chain(bound).collect())
}

/// The field of this name, in whichever spelling.
pub(crate) fn field_named(name: &str) -> Option<&'static Field> {
    field::ALL.iter().find(|field| field.name == name || field.name.replace('.', "_") == name)
}

/// The values that a label or an attribute of this name can have, if they can be counted.
fn values(name: &str) -> Option<Vec<&'static str>> {
    match name {
        metric::STATUS => Some(vec!["queued", "running", "waiting", "dead"]),
        metric::SIGNAL => Some(vec!["traces", "logs", "metrics", "stdout"]),
        _ => field_named(name)?.kind.values(),
    }
}

/// That `text`, or each alternative of it, is a value of `name`. (Patterns and variables may be anything.)
pub(crate) fn of_value(name: &str, text: &str, say: &mut dyn FnMut(String)) {
    let Some(known) = values(name).filter(|_| !text.is_empty() && !text.contains(['$', '*', '+'])) else {
        return;
    };
    for value in text.split('|').filter(|value| !known.contains(value)) {
        say(format!("{name} is never {value}"));
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant")
}

/// Ranges, offsets and comments, whose letters are no names.
static RANGE: LazyLock<Regex> = LazyLock::new(|| regex(r"\[[^\]]*\]|\boffset \w+|#.*"));
/// Values of labels.
static STRING: LazyLock<Regex> = LazyLock::new(|| regex(r#""[^"]*""#));
/// The labels that a grouping or a matching names.
static GROUPING: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b(?:by|without|on|ignoring|group_left|group_right) ?\(([^)]*)\)"));
/// A metric, with the labels by which it is selected; or a function, or a word.
static NAME: LazyLock<Regex> = LazyLock::new(|| regex(r"\b([a-zA-Z_][\w:]*)(?:\{([^}]*)\}|( *\())?"));
static MATCHER: LazyLock<Regex> = LazyLock::new(|| regex(r"(\w+) ?[=!]"));

/// A label, and what it is or matches.
static VALUE: LazyLock<Regex> = LazyLock::new(|| regex(r#"(\w+) ?[=!]~? ?"([^"]*)""#));

/// What `query` names and is not there.
pub(crate) fn problems(query: &str, recorded: &BTreeSet<&str>, say: &mut dyn FnMut(String)) {
    for [label, matched] in VALUE.captures_iter(query).map(|found| found.extract().1) {
        of_value(label, matched, say);
    }
    let query = STRING.replace_all(query, "\"\"");
    let query = RANGE.replace_all(&query, "");
    let groupings: Vec<&str> =
        GROUPING.captures_iter(&query).map(|found| found.extract::<1>().1[0]).collect();
    let rest = GROUPING.replace_all(&query, "");
    let mut known = BTreeSet::new();
    for found in NAME.captures_iter(&rest) {
        let (name, is_function) = (&found[1], found.get(3).is_some());
        if is_function || WORDS.contains(&name) {
            continue;
        }
        let Some(labels) = labels(name, recorded) else {
            say(format!("there is no metric {name}"));
            continue;
        };
        let selected = found.get(2).map_or("", |selected| selected.as_str());
        for matcher in MATCHER.captures_iter(selected).filter(|matcher| !labels.contains(&matcher[1])) {
            say(format!("{name} has no label {}", &matcher[1]));
        }
        known.extend(labels);
    }
    let grouped = groupings.iter().flat_map(|labels| labels.split(',')).map(str::trim);
    for label in grouped.filter(|label| !label.is_empty() && !known.contains(*label)) {
        say(format!("nothing here has the label {label}"));
    }
}
