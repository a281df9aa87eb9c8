//! `make docs-check`: the operators' page says what the catalogue says, and cites code that is there.

mod architecture;
mod logs;
mod phrases;
mod queries;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use runspan::semconv::metric::{Instrument, Metric, Source};
use runspan::semconv::{Carried, Event, Field, Level, Presence, Set, field, metric};
use runspan::series::{Buckets, MAX_WORKFLOWS, OTHER};

const PAGE: &str = "docs/operate/observability.md";

/// Each event has a query in each of these.
const LANGUAGES: [&str; 4] = ["logql", "traceql", "promql", "datadog"];

#[test]
fn the_page_is_true_to_catalogue_and_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join(PAGE)).expect("the page is there");
    let problems = problems(&page, &|path| fs::read_to_string(root.join(path)).ok());
    assert!(problems.is_empty(), "{PAGE}:\n{}", problems.join("\n"));
}

#[test]
fn the_page_on_metrics_has_them_as_the_catalogue_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(path).expect("the page is there");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `workflow.") || line.starts_with("| `runspan."))
        .collect();
    let expected = metric::ALL.iter().filter(|metric| metric.source == Source::Runs).map(|metric| {
        let attributes: Vec<String> = metric.attributes.iter().map(|name| format!("`{name}`")).collect();
        let attributes = if attributes.is_empty() { "–".to_owned() } else { attributes.join(", ") };
        let Metric { name, instrument, unit, meaning, .. } = metric;
        format!("| `{name}` | {instrument}, {unit} | {attributes} | {meaning} |")
    });
    assert_eq!(rows, expected.collect::<Vec<_>>());
    let bounds = Buckets::default().to_string().replace(',', " ");
    assert!(page.contains(&format!("by default {bounds}. Other bounds")), "{bounds}");
    assert!(
        page.contains(&format!("**At most {MAX_WORKFLOWS} workflow names**"))
            && page.contains(&format!("`{OTHER}`"))
    );
}

#[test]
fn each_promise_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/guarantees.md")).expect("the page is there");
    let lines = lines(&page);
    let mut problems = Vec::new();
    of_citations(&lines, &|path| fs::read_to_string(root.join(path)).ok(), &mut problems);
    for heading in ["## For the application", "## For the telemetry"] {
        let [(_, below)] = sections(&lines, heading)[..] else { panic!("{heading} is there once") };
        // A promise begins in bold, and is shown before the next one.
        let promises: Vec<usize> = (0..below.len()).filter(|at| below[*at].text.starts_with("**")).collect();
        assert!(!promises.is_empty(), "{heading}");
        for (index, at) in promises.iter().enumerate() {
            let next = promises.get(index + 1).copied().unwrap_or(below.len());
            if !below[*at..next].iter().any(|line| line.text.starts_with("Shown by `")) {
                problems.push(format!("line {}: no test shows it", below[*at].number));
            }
        }
    }
    // No name of a test is written so that it is not checked.
    for line in lines.iter().filter(|line| line.code.is_none() && line.text.contains(".rs#")) {
        let cited = CITATION.find_iter(line.text).count();
        if line.text.matches(".rs#").count() != cited {
            problems.push(format!("line {}: a citation that cannot be read", line.number));
        }
    }
    assert!(problems.is_empty(), "docs/guarantees.md:\n{}", problems.join("\n"));
}

/// A line of the page.
struct Line<'a> {
    number: usize,
    text: &'a str,
    /// Within a block of code: its language.
    code: Option<&'a str>,
}

fn lines(page: &str) -> Vec<Line<'_>> {
    let mut code = None;
    let read = page.lines().zip(1..).filter_map(|(text, number)| {
        if let Some(info) = text.strip_prefix("```") {
            code = code.is_none().then(|| info.split(' ').next().unwrap_or_default());
            return None;
        }
        Some(Line { number, text, code })
    });
    read.collect()
}

/// The heading that begins with `prefix`, and what is below it up to the next one of its depth or above.
fn sections<'a>(lines: &'a [Line<'a>], prefix: &str) -> Vec<(&'a Line<'a>, &'a [Line<'a>])> {
    let depth = prefix.chars().take_while(|c| *c == '#').count();
    let ends = |line: &Line<'_>| {
        let hashes = line.text.chars().take_while(|c| *c == '#').count();
        line.code.is_none() && (1..=depth).contains(&hashes)
    };
    let begins = |line: &Line<'_>| line.code.is_none() && line.text.starts_with(prefix);
    let found = lines.iter().enumerate().filter(|(_, line)| begins(line)).map(|(at, heading)| {
        let below = &lines[at + 1..];
        (heading, &below[..below.iter().position(ends).unwrap_or(below.len())])
    });
    found.collect()
}

/// What is wrong with `page`: line and cause. `source` reads a file of the tree.
fn problems(page: &str, source: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let lines = lines(page);
    let mut problems = Vec::new();
    of_fields(&lines, &mut problems);
    of_events(&lines, &mut problems);
    of_citations(&lines, source, &mut problems);
    of_the_relay(&lines, &mut problems);
    of_names(&lines, &mut problems);
    problems
}

/// That one of `lines` begins with `label`, and is `expected`.
fn verbatim(lines: &[Line<'_>], label: &str, expected: &str, place: &str, problems: &mut Vec<String>) {
    match lines.iter().find(|line| line.code.is_none() && line.text.starts_with(label)) {
        Some(line) if line.text == expected => {}
        Some(line) => problems.push(format!("line {}: the catalogue says: {expected}", line.number)),
        None => problems.push(format!("{place} lacks: {expected}")),
    }
}

fn of_fields(lines: &[Line<'_>], problems: &mut Vec<String>) {
    let found = sections(lines, "## Fields");
    let below = found.first().map_or(&[][..], |(_, below)| *below);
    for known in field::ALL {
        verbatim(below, &format!("| `{}` |", known.name), &row(known), "## Fields", problems);
    }
    for set in Set::ALL {
        verbatim(below, &format!("- Of {}:", set.name()), &said_of_set(set), "## Fields", problems);
    }
    for line in below.iter().filter(|line| line.text.starts_with("| `")) {
        let name = line.text.split('`').nth(1).unwrap_or_default();
        if field::ALL.iter().all(|known| known.name != name) {
            problems.push(format!("line {}: `{name}` is no field of the catalogue", line.number));
        }
    }
}

fn of_the_relay(lines: &[Line<'_>], problems: &mut Vec<String>) {
    let found = sections(lines, "## The relay's own metrics");
    let below = found.first().map_or(&[][..], |(_, below)| *below);
    for metric in own_metrics() {
        let (label, row) = metric_row(metric);
        verbatim(below, &label, &row, "## The relay's own metrics", problems);
    }
}

fn own_metrics() -> impl Iterator<Item = &'static Metric> {
    metric::ALL.iter().filter(|metric| metric.source == Source::Relay)
}

/// How the row of a metric begins, and the row.
fn metric_row(metric: &Metric) -> (String, String) {
    let mut name = metric.prometheus().swap_remove(0);
    if metric.instrument == Instrument::Histogram {
        name.truncate(name.len() - "_bucket".len());
    }
    let labels: Vec<String> = metric.labels().iter().map(|label| format!("`{label}`")).collect();
    let label = format!("| `{name}` |");
    (label.clone(), format!("{label} {} | {} |", labels.join(", "), metric.meaning))
}

fn said_of_set(set: Set) -> String {
    format!("- Of {}: {}", set.name(), list(set.fields()))
}

fn row(field: &Field) -> String {
    format!("| `{}` | {} | {} |", field.name, field.kind, field.meaning)
}

fn list(fields: &[Carried]) -> String {
    let words = fields.iter().map(|Carried(name, presence)| match presence {
        Presence::Always => format!("`{name}`"),
        Presence::If(condition) => format!("`{name}` (if {condition})"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What the page has to say of an event, line by line, with the beginnings to find the lines by.
fn said_of(event: Event) -> [(&'static str, String); 3] {
    let sets = event.sets().iter().filter(|set| **set != Set::Line).map(|set| format!("of {}", set.name()));
    let own = Some(list(event.own_fields())).filter(|own| !own.is_empty());
    let levels: Vec<&str> = event.levels().into_iter().map(Level::as_str).collect();
    [
        ("- When:", format!("- When: {}", event.when())),
        ("- Level:", format!("- Level: {}", levels.join(", "))),
        ("- Fields:", format!("- Fields: {}", sets.chain(own).collect::<Vec<_>>().join(", "))),
    ]
}

fn of_events(lines: &[Line<'_>], problems: &mut Vec<String>) {
    for event in Event::ALL {
        let found = sections(lines, &heading(*event));
        let [(first, below)] = found.as_slice() else {
            problems.push(format!("{} sections, instead of one, of {}", found.len(), event.name()));
            continue;
        };
        let place = format!("line {}: `{}`", first.number, event.name());
        for (label, expected) in said_of(*event) {
            verbatim(below, label, &expected, &place, problems);
        }
        for language in LANGUAGES {
            if !below.iter().any(|line| line.code == Some(language) && !line.text.trim().is_empty()) {
                problems.push(format!("{place} has no query in {language}"));
            }
        }
        if !below.iter().any(|line| line.code.is_none() && CITATION.is_match(line.text)) {
            problems.push(format!("{place} cites no code"));
        }
    }
    for (line, _) in sections(lines, "### `workflow.") {
        if Event::ALL.iter().all(|event| line.text != heading(*event)) {
            problems.push(format!("line {}: no event of the catalogue: {}", line.number, line.text));
        }
    }
}

fn heading(event: Event) -> String {
    format!("### `{}`", event.name())
}

/// Path and symbol. (A path has an extension; `acme/widgets#42` has none.)
static CITATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"`([\w/.-]+\.[a-z]+)#([^`\s]+)`").expect("a constant"));

fn of_citations(lines: &[Line<'_>], source: &dyn Fn(&str) -> Option<String>, problems: &mut Vec<String>) {
    for line in lines.iter().filter(|line| line.code.is_none()) {
        for [path, symbol] in CITATION.captures_iter(line.text).map(|found| found.extract().1) {
            match source(path) {
                None => problems.push(format!("line {}: there is no file {path}", line.number)),
                Some(text) if !defines(&text, path, symbol) => {
                    problems.push(format!("line {}: {path} defines no `{symbol}`", line.number));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether `text` defines `symbol`: in Rust an item, or `Type::function`; in SQL what is created by that name.
fn defines(text: &str, path: &str, symbol: &str) -> bool {
    let matches = |pattern: &str, text: &str| Regex::new(pattern).expect("a name is plain").is_match(text);
    let item = |name: &str| {
        format!(
            r"(?m-u)^\s*(?:pub(?:\([a-z]+\))? )?(?:(?:const|async|unsafe) )*(?:fn|struct|enum|const|static|trait|mod|type) {name}\b"
        )
    };
    if Path::new(path).extension().is_some_and(|extension| extension == "sql") {
        let name = regex::escape(symbol);
        let created =
            r"(?m)^\s*CREATE (?:OR REPLACE |UNIQUE )?(?:FUNCTION|TRIGGER|VIEW|TABLE|INDEX|SEQUENCE)";
        return matches(&format!(r"{created} {name}(?:[^\w.]|$)"), text);
    }
    let Some((owner, function)) = symbol.split_once("::") else {
        return matches(&item(&regex::escape(symbol)), text);
    };
    // rustfmt closes a block in the column that it began in.
    let block = format!(r"(?ms)^impl\b[^\n]*\b{}\b[^\n]*\{{\n.*?^\}}", regex::escape(owner));
    let blocks = Regex::new(&block).expect("a name is plain");
    blocks.find_iter(text).any(|block| matches(&item(&regex::escape(function)), block.as_str()))
}

/// What looks like an event, a metric or a field.
static NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bworkflow[._]run[._]\w+(?:\.\w+)*|\b[a-z]+[A-Z]\w*").expect("a constant"));

/// That what looks like an event, a metric or a field is one, in prose and in queries.
fn of_names(lines: &[Line<'_>], problems: &mut Vec<String>) {
    let mut known: BTreeSet<String> = field::ALL.iter().map(|field| field.name.to_owned()).collect();
    known.extend(Event::ALL.iter().map(|event| event.name().to_owned()));
    known.extend(metric::ALL.iter().map(|metric| metric.name.to_owned()));
    known.extend(metric::ALL.iter().flat_map(metric::Metric::prometheus));
    for line in lines {
        for found in NAME.find_iter(line.text).filter(|found| !known.contains(found.as_str())) {
            problems.push(format!("line {}: not in the catalogue: {}", line.number, found.as_str()));
        }
    }
}

/// A page that is right, and no longer than it must be.
fn right() -> String {
    let rows = field::ALL.iter().map(|field| row(field) + "\n");
    let sets = Set::ALL.iter().map(|set| said_of_set(*set) + "\n");
    let events = Event::ALL.iter().map(|event| {
        let [when, level, fields] = said_of(*event).map(|(_, line)| line);
        let queries: String =
            LANGUAGES.map(|language| format!("```{language}\n{}\n```\n", event.name())).concat();
        format!("{}\n{when}\n{level}\n{fields}\n- Code: `src/a.rs#Runs::mark`\n{queries}", heading(*event))
    });
    let below = rows.chain(sets).chain(events).collect::<String>();
    let own: String = own_metrics().map(|metric| metric_row(metric).1 + "\n").collect();
    format!("# Events\n## Fields\n{below}## The relay's own metrics\n{own}")
}

fn tree(path: &str) -> Option<String> {
    let text = match path {
        "src/a.rs" => {
            "pub(super) struct Runs;\nimpl<'a> Runs<'a> {\n    pub const fn mark(self) {}\n}\nimpl Other {\n    fn end() {}\n}\n"
        }
        "src/a.sql" => {
            "CREATE OR REPLACE FUNCTION runspan.skip(code text)\nCREATE VIEW refused (\n-- TABLE gone\n"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

#[test]
fn a_right_page_has_no_problems() {
    assert_eq!(problems(&right(), &tree), Vec::<String>::new());
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let citing = |symbol: &str| format!("- Code: `{symbol}`");
    let code = citing("src/a.rs#Runs::mark");
    let query = "```promql\nworkflow.run.failed";
    let mut said = String::new();
    for (right_text, wrong_text) in [
        ("| `outcome` |", "| `result` |"),
        ("| `durationMs` | integer |", "| `durationMs` | string |"),
        ("- Of an end: `outcome`, ", "- Of an end: "),
        ("### `workflow.run.deleted`", "### `workflow.run.gone`"),
        ("- When: The run ended successfully.", "- When: The run was fine."),
        ("- Level: warn, error", "- Level: warn"),
        ("- Fields: of a dispatch, of a run\n", ""),
        ("```traceql\nworkflow.run.conflict\n```\n", ""),
        ("| `runspan_outbox_limit_bytes` | `database` |", "| `runspan_outbox_limit_bytes` | |"),
        (query, "```promql\nworkflow_run_event_total{errorType=\"\"}"),
        (query, "```promql\nworkflow_run_events_total{workflowName=\"ship\"}"),
        (&*code, "- Code: none"),
        (&*code, &*citing("src/b.rs#Runs")),
        (&*code, &*citing("src/a.rs#mark_running")),
        (&*code, &*citing("src/a.rs#Runs::end")),
        (&*code, &*citing("src/a.rs#Runs")),
        (&*code, &*citing("src/a.sql#runspan.skip")),
        (&*code, &*citing("src/a.sql#refused")),
        (&*code, &*citing("src/a.sql#gone")),
        (&*code, &*citing("src/a.sql#skip")),
    ] {
        let page = right();
        assert!(page.contains(right_text), "{right_text}");
        let problems = problems(&page.replacen(right_text, wrong_text, 1), &tree);
        let problems: String = problems.iter().map(|problem| format!("    {problem}\n")).collect();
        said += &format!("{right_text:?} → {wrong_text:?}\n{problems}");
    }
    insta::assert_snapshot!(said, @r####"
    "| `outcome` |" → "| `result` |"
        ## Fields lacks: | `outcome` | `succeeded`, `failed`, `incomplete`, `cancelled`, `deleted` | How the run ended. |
        line 21: `result` is no field of the catalogue
    "| `durationMs` | integer |" → "| `durationMs` | string |"
        line 18: the catalogue says: | `durationMs` | integer | From queued to the end, in milliseconds. |
    "- Of an end: `outcome`, " → "- Of an end: "
        line 36: the catalogue says: - Of an end: `outcome`, `durationMs`, `queueWaitMs` (if the end of its wait was journalled), `executionMs` (if its start was journalled)
    "### `workflow.run.deleted`" → "### `workflow.run.gone`"
        0 sections, instead of one, of workflow.run.deleted
        line 207: no event of the catalogue: ### `workflow.run.gone`
        line 207: not in the catalogue: workflow.run.gone
    "- When: The run ended successfully." → "- When: The run was fine."
        line 89: the catalogue says: - When: The run ended successfully.
    "- Level: warn, error" → "- Level: warn"
        line 124: the catalogue says: - Level: warn, error
    "- Fields: of a dispatch, of a run\n" → ""
        line 37: `workflow.run.queued` lacks: - Fields: of a dispatch, of a run
    "```traceql\nworkflow.run.conflict\n```\n" → ""
        line 224: `workflow.run.conflict` has no query in traceql
    "| `runspan_outbox_limit_bytes` | `database` |" → "| `runspan_outbox_limit_bytes` | |"
        line 250: the catalogue says: | `runspan_outbox_limit_bytes` | `database` | The size at which the oldest requests are dropped. |
    "```promql\nworkflow.run.failed" → "```promql\nworkflow_run_event_total{errorType=\"\"}"
        line 134: not in the catalogue: workflow_run_event_total
        line 134: not in the catalogue: errorType
    "```promql\nworkflow.run.failed" → "```promql\nworkflow_run_events_total{workflowName=\"ship\"}"
    "- Code: `src/a.rs#Runs::mark`" → "- Code: none"
        line 37: `workflow.run.queued` cites no code
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/b.rs#Runs`"
        line 41: there is no file src/b.rs
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.rs#mark_running`"
        line 41: src/a.rs defines no `mark_running`
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.rs#Runs::end`"
        line 41: src/a.rs defines no `Runs::end`
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.rs#Runs`"
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.sql#runspan.skip`"
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.sql#refused`"
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.sql#gone`"
        line 41: src/a.sql defines no `gone`
    "- Code: `src/a.rs#Runs::mark`" → "- Code: `src/a.sql#skip`"
        line 41: src/a.sql defines no `skip`
    "####);
}
