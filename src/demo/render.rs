//! Renders the report as text: at most 110 columns, styled; the caller removes styles where they are not wanted.

mod waterfall;

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::receiver::Record;
use super::report::{Report, Workflow};
use super::{Progress, Sent};
use runspan::otlp::Signal;
use runspan::semconv::{Event, field};

/// The longest line, in columns.
const WIDTH: usize = 110;

const PLAIN: Style = Style::new();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const WARN: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const ACCENT: Style = AnsiColor::Cyan.on_default();

/// A text in a style.
fn styled(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

pub(super) fn progress(progress: &Progress, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match progress {
        Progress::Begun { payloads, database, receiver } => {
            let heading = styled(BOLD, "runspan demo");
            write!(
                f,
                "{heading}  {payloads} GitHub payloads → runs in {database} → triggers → journal → relay → \
                 OTLP on {receiver}"
            )
        }
        Progress::Underway { spans, records } => {
            write!(f, "{}", styled(DIM, format!("  … {spans} spans and {records} records so far")))
        }
    }
}

impl Report {
    /// The report for people, styled for a terminal of 110 columns.
    pub(crate) fn to_text(&self) -> String {
        report(self)
    }
}

fn report(report: &Report) -> String {
    let mut text = String::new();
    if let Some(ship) = &report.ship {
        text += &section(
            "One composite run, from the received spans",
            "░ queued  █ running  ━ inside its handler",
        );
        text += &waterfall::waterfall(&report.spans, &ship.trace_id);
    }
    text += &excerpt(&report.records);
    text += &section("Per workflow", "from spans and records");
    text += &workflows(&report.workflows);
    text + &footer(report)
}

fn section(title: &str, aside: impl fmt::Display) -> String {
    format!("\n{}  {}\n", styled(BOLD, title), styled(DIM, aside))
}

/// A readable duration.
fn millis(millis: i64) -> String {
    if millis < 1_000 {
        format!("{millis} ms")
    } else {
        format!("{}.{:02} s", millis / 1_000, millis % 1_000 / 10)
    }
}

/// One record of each event, and of each kind of failure and refusal, in the order of their time.
fn excerpt(records: &[Record]) -> String {
    let mut chosen: Vec<&Record> = Vec::new();
    for record in records {
        // The rollup repeats the end.
        let kind = |record: &Record| {
            let rollup = record.event() == Event::Completed.name();
            let why = record.text(field::ERROR_TYPE).filter(|_| !rollup).map(ToOwned::to_owned);
            (record.event().to_owned(), why)
        };
        if !chosen.iter().any(|known| kind(known) == kind(record)) {
            chosen.push(record);
        }
    }
    chosen.sort_by_key(|record| record.at);
    let aside = format!("one of each kind, {} of {} records", chosen.len(), records.len());
    let title = section("Events workflow.run.*", aside);
    chosen.into_iter().fold(title, |text, record| text + &line(record) + "\n")
}

fn line(record: &Record) -> String {
    let text = |key| record.text(key).unwrap_or_default();
    let style = match record.level {
        "error" => BAD,
        "warn" => WARN,
        _ => PLAIN,
    };
    let event = record.event().trim_start_matches("workflow.run.");
    let at = record.at.to_string();
    // The day is today.
    let time = at.get(11..23).unwrap_or(&at);
    let target = match record.text(field::TARGET) {
        Some(target) => target.to_owned(),
        None => format!("{}/{}", text(field::TARGET_OWNER), text(field::TARGET_REPO)),
    };
    let start = format!(
        "{} {} {} {:<9} {} ",
        styled(DIM, time),
        styled(style, format_args!("{:<5}", record.level)),
        styled(style.bold(), format_args!("{event:<16}")),
        text(field::WORKFLOW_NAME),
        styled(DIM, format_args!("{target:<24}")),
    );
    let taken = anstream::adapter::strip_str(&start).to_string().chars().count();
    match why(record) {
        why if why.is_empty() => start.trim_end().to_owned(),
        why => start + &shortened(&why, WIDTH - taken),
    }
}

/// What is particular to an event.
fn why(record: &Record) -> String {
    let text = |key| record.text(key);
    if let Some(reason) = text(field::REASON) {
        return reason.to_owned();
    }
    if let Some(child) = text(field::CHILD_WORKFLOW_NAME) {
        return format!("to {child}");
    }
    if let (Some(from), to) = (text(field::FROM_STATUS), text(field::TO_STATUS)) {
        return format!("{from} → {}, first end kept", to.unwrap_or("deleted"));
    }
    match (
        text(field::OUTCOME),
        record.attributes.get(field::DURATION_MS).and_then(serde_json::Value::as_i64),
    ) {
        // Most events have their outcome's name.
        (Some(outcome), Some(took)) if record.event().ends_with(outcome) => format!("after {}", millis(took)),
        (Some(outcome), Some(took)) => format!("{outcome} after {}", millis(took)),
        _ => String::new(),
    }
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A row each, and a headline above.
fn workflows(workflows: &[Workflow]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "workflow",
        "runs",
        "succeeded",
        "failed",
        "incomplete",
        "deleted",
        "refused",
        "success",
        "p50",
        "p95",
        "wait p95",
    ]);
    let count = |count: usize| if count == 0 { "·".to_owned() } else { count.to_string() };
    let time = |time: Option<i64>| time.map_or_else(|| "·".to_owned(), millis);
    for workflow in workflows {
        // Of the runs that were not deleted, as in the dashboards. Rounded down: 100 % means that all of them succeeded.
        let rate = (workflow.succeeded * 100).checked_div(workflow.runs - workflow.deleted);
        table.add_row([
            workflow.name.clone(),
            count(workflow.runs),
            count(workflow.succeeded),
            count(workflow.failed),
            count(workflow.incomplete),
            count(workflow.deleted),
            count(workflow.refused),
            rate.map_or_else(|| "·".to_owned(), |rate| format!("{rate} %")),
            time(workflow.p50_ms),
            time(workflow.p95_ms),
            time(workflow.wait_p95_ms),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        if column.index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let rows = table.lines().enumerate().map(|(nth, row)| {
        let row = row.trim_end().to_owned();
        if nth == 0 { styled(DIM, row) } else { row }
    });
    rows.fold(String::new(), |text, row| text + &row + "\n")
}

/// Whether the counts agree, how to find the composite run elsewhere, and what to do next.
fn footer(report: &Report) -> String {
    let counts = &report.counts;
    let (mark, style, sign) = if counts.agree() { ('✓', GOOD, '=') } else { ('✗', BAD, '≠') };
    let deleted = if counts.deleted > 0 { format!(" (+ {} deleted)", counts.deleted) } else { String::new() };
    let mut text = format!(
        "\n{} {} runs in SQL{deleted} {sign} {} run spans received {sign} {} in the duration histogram\n",
        styled(style.bold(), mark),
        counts.rows,
        counts.run_spans,
        counts.measured_runs,
    );
    let rest = format!(
        "  with {} queue spans, {} handler spans and {} records, from {} deliveries ({} refused), in {}",
        counts.queue_spans,
        counts.handler_spans,
        counts.records,
        counts.deliveries,
        counts.refused,
        millis(report.took_ms)
    );
    let _ = writeln!(text, "{}", styled(DIM, rest));
    let mut add = |what: &str, value: &str, aside: &str| {
        let aside = if aside.is_empty() { String::new() } else { styled(DIM, format_args!("  {aside}")) };
        let _ =
            writeln!(text, "  {}{}{aside}", styled(DIM, format_args!("{what:<12} ")), styled(ACCENT, value));
    };
    if let Some(ship) = &report.ship {
        add("trace", &ship.trace_id, "the run's id without dashes");
        add("traceparent", &ship.traceparent, "derived from the run's id");
        if let Some(link) = &ship.link {
            add("linked to", link, "the span of the webhook delivery");
        }
    }
    for sent in report.forwarded.iter().flat_map(|forwarded| &forwarded.0) {
        add("forwarded", &sent.endpoint, &accepted(sent));
    }
    if let Some(database) = &report.kept_in {
        add("kept in", database, "remove it: runspan detach --purge --yes --database-url URL");
    }
    text += &section("Next", "on your own table workflow_runs");
    for command in NEXT {
        let _ = writeln!(text, "  {command}");
    }
    text
}

/// How many items a receiver accepted, and its truncated error; the demo's last line has all of it.
fn accepted(sent: &Sent) -> String {
    let what = match sent.signal {
        Signal::Traces => "spans",
        Signal::Logs => "records",
        Signal::Metrics => "points",
    };
    let Some(problem) = &sent.problem else { return format!("{} {what} accepted", sent.items) };
    // The error starts with signal and endpoint, which the line has already.
    let whose = format!("{} to {}", sent.signal, sent.endpoint);
    let said = problem.strip_prefix(&whose).and_then(|rest| rest.split_once(": ")).map(|(_, said)| said);
    let start = format!("{} of {} {what} accepted: ", sent.items, sent.of);
    let taken = "  forwarded    ".len() + sent.endpoint.chars().count() + 2 + start.chars().count();
    start + &shortened(said.unwrap_or(problem), WIDTH.saturating_sub(taken).max(20))
}

/// How to use runspan on an application's own table.
const NEXT: [&str; 3] = [
    "export DATABASE_URL=postgres://USER:PASSWORD@HOST/DATABASE    # or sqlite:PATH",
    "runspan attach",
    "OTEL_SERVICE_NAME=APP OTEL_EXPORTER_OTLP_ENDPOINT=http://COLLECTOR:4318 runspan relay",
];
