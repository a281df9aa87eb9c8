//! Renders a trace as a waterfall: one row per run and per handler span, on one time axis.

use anstyle::Style;

use super::{BAD, DIM, GOOD, WARN, millis, styled};
use crate::demo::receiver::{Kind, Span};
use runspan::run::Timestamp;
use runspan::semconv::field;

/// How wide the names are, with the tree.
const NAME: usize = 16;
/// How wide the bars are.
const BAR: usize = 58;

/// How an outcome looks: its mark and its colour.
fn look(outcome: &str) -> (char, Style) {
    match outcome {
        "succeeded" => ('✓', GOOD),
        "failed" => ('✗', BAD),
        "incomplete" => ('◐', WARN),
        _ => ('∅', WARN),
    }
}

/// The runs of one trace as a tree, each with its first wait (`░`) and what followed (`█`), and below it what its
/// handler did (`━`), on one axis of time.
pub(super) fn waterfall(spans: &[Span], trace_id: &str) -> String {
    let trace: Vec<&Span> = spans.iter().filter(|span| span.trace_id == trace_id).collect();
    let start = trace.iter().map(|span| span.start).min();
    let end = trace.iter().map(|span| span.end).max();
    let (Some(start), Some(end)) = (start, end) else { return String::new() };
    let length = millis(end.millis_since(start));
    let axis = format!("{:<NAME$}0{length:>width$}", "", width = BAR - 1);
    let mut text = format!("{}\n", styled(DIM, format_args!("{axis} {:>9} {:>9}", "waited", "took")));
    let is_root = |span: &&&Span| span.kind == Kind::Run && !trace.iter().any(|it| is_parent(it, span));
    let axis = Axis { start, micros: (end.micros() - start.micros()).max(1) };
    for root in trace.iter().filter(is_root) {
        branch(&mut text, &trace, root, "", "", axis);
    }
    text
}

fn is_parent(parent: &Span, child: &Span) -> bool {
    child.parent.as_deref() == Some(parent.id.as_str())
}

/// Where on the bar a moment is.
#[derive(Clone, Copy)]
struct Axis {
    start: Timestamp,
    micros: i64,
}

impl Axis {
    fn cell(self, at: Timestamp) -> usize {
        let cells = i64::try_from(BAR).unwrap_or_default();
        let cell = (at.micros() - self.start.micros()) * cells / self.micros;
        usize::try_from(cell).unwrap_or_default().min(BAR)
    }
}

/// A span's row, and below it those of its children.
fn branch(text: &mut String, trace: &[&Span], span: &Span, first: &str, rest: &str, axis: Axis) {
    let below = |parent: &Span, kind| -> Vec<&Span> {
        trace.iter().copied().filter(|span| span.kind == kind && is_parent(parent, span)).collect()
    };
    let name = format!("{first}{}", span.name);
    let mut children = below(span, Kind::Handler);
    if span.kind == Kind::Handler {
        text.push_str(&work(&name, span, axis));
    } else {
        text.push_str(&run(&name, span, below(span, Kind::Queue).first().copied(), axis));
        // The handler itself takes as long as the run: what it did says more.
        children = children.into_iter().flat_map(|handler| below(handler, Kind::Handler)).collect();
        children.extend(below(span, Kind::Run));
    }
    for (at, child) in children.iter().enumerate() {
        let (tee, line) = if at + 1 == children.len() { ("└ ", "  ") } else { ("├ ", "│ ") };
        branch(text, trace, child, &format!("{rest}{tee}"), &format!("{rest}{line}"), axis);
    }
}

/// A run's row.
fn run(name: &str, run: &Span, wait: Option<&Span>, axis: Axis) -> String {
    let (mark, style) = look(run.text(field::OUTCOME).unwrap_or_default());
    let (from, to) = (axis.cell(run.start), axis.cell(run.end));
    let begun = wait.map_or(from, |wait| axis.cell(wait.end));
    // Whatever happened has a cell, however short it was.
    let queued = (begun - from).max(usize::from(wait.is_some())).min(BAR - from);
    let running = to.saturating_sub(from + queued).max(usize::from(from + queued < BAR && ran(run)));
    let bar = format!(
        "{:from$}{}{}{:rest$}",
        "",
        styled(DIM, "░".repeat(queued)),
        styled(style, "█".repeat(running)),
        "",
        rest = BAR - from - queued - running,
    );
    let waited = wait.map_or_else(String::new, |wait| millis(wait.millis()));
    format!(
        "{name:<NAME$}{bar} {waited:>9} {took:>9}  {}\n",
        styled(style, format_args!("{mark} {}", run.text(field::OUTCOME).unwrap_or_default())),
        took = millis(run.millis()),
    )
}

/// The row of a span of a handler.
fn work(name: &str, span: &Span, axis: Axis) -> String {
    let from = axis.cell(span.start).min(BAR - 1);
    let bar = "━".repeat(axis.cell(span.end).saturating_sub(from).max(1));
    let row =
        format!("{name:<NAME$}{:from$}{bar:<rest$} {:>19}", "", millis(span.millis()), rest = BAR - from);
    styled(DIM, row) + "\n"
}

fn ran(run: &Span) -> bool {
    run.attributes.contains_key(field::EXECUTION_MS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A run from `start` for `took` milliseconds, and its wait; spans arrive in any order.
    fn run(name: &str, parent: Option<&str>, start: i64, waited: i64, took: i64, outcome: &str) -> [Span; 2] {
        let at = |millis: i64| Timestamp::from_micros(1_800_000_000_000_000 + millis * 1_000);
        let mut attributes =
            crate::demo::receiver::Attributes::from([(field::OUTCOME.to_owned(), json!(outcome))]);
        if waited < took {
            attributes.insert(field::EXECUTION_MS.to_owned(), json!(took - waited));
        }
        let run = Span {
            trace_id: "7".to_owned(),
            id: name.to_owned(),
            parent: parent.map(ToOwned::to_owned),
            name: name.to_owned(),
            kind: Kind::Run,
            start: at(start),
            end: at(start + took),
            events: Vec::new(),
            links: Vec::new(),
            attributes,
        };
        let wait = Span {
            id: format!("{name} queued"),
            parent: Some(name.to_owned()),
            name: format!("{name} queued"),
            kind: Kind::Queue,
            end: at(start + waited),
            ..run.clone()
        };
        [wait, run]
    }

    #[test]
    fn a_trace_is_a_tree_on_one_axis() {
        let handled = |name: &str, parent: &str, start, took| {
            let [_, run] = run(name, Some(parent), start, 0, took, "");
            Span { kind: Kind::Handler, ..run }
        };
        let mut spans = [
            run("ship", None, 0, 100, 2_000, "failed"),
            run("plan", Some("ship"), 100, 400, 900, "succeeded"),
            run("estimate", Some("plan"), 600, 5, 250, "incomplete"),
            run("sketch", Some("plan"), 850, 1, 2, "deleted"),
            run("implement", Some("ship"), 1_000, 990, 990, "failed"),
            run("other", None, 0, 0, 90_000, "succeeded"),
        ]
        .concat();
        spans[10].trace_id = "8".to_owned();
        spans[11].trace_id = "8".to_owned();
        // The first is the handler itself.
        spans.extend([
            handled("estimate handler", "estimate", 605, 240),
            handled("ask", "estimate handler", 610, 120),
            handled("fetch", "ask", 620, 0),
            handled("write", "estimate handler", 735, 110),
        ]);
        let picture = anstream::adapter::strip_str(&waterfall(&spans, "7")).to_string();
        assert!(picture.lines().all(|line| line.chars().count() <= 110), "{picture}");
        insta::assert_snapshot!(picture, @r"
                        0                                                   2.00 s    waited      took
        ship            ░░████████████████████████████████████████████████████████    100 ms    2.00 s  ✗ failed
        ├ plan            ░░░░░░░░░░░░███████████████                                 400 ms    900 ms  ✓ succeeded
        │ ├ estimate                     ░██████                                        5 ms    250 ms  ◐ incomplete
        │ │ ├ ask                        ━━━━                                                   120 ms
        │ │ │ └ fetch                    ━                                                        0 ms
        │ │ └ write                          ━━━                                                110 ms
        │ └ sketch                              ░█                                      1 ms      2 ms  ∅ deleted
        └ implement                                  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░     990 ms    990 ms  ✗ failed
        ");
    }

    #[test]
    fn a_trace_of_which_nothing_came_is_no_picture() {
        assert_eq!(waterfall(&[], "7"), "");
    }
}
