//! Each block of a query language holds one query, to be pasted as it is.

use std::fs;

use super::phrases::{files, has_extension, root};

const LANGUAGES: [&str; 4] = ["logql", "promql", "traceql", "datadog"];

/// Lines that continue the query before them, and whose next line does.
const OPERATORS: [&str; 8] = ["/", "*", "+", "-", "and", "or", "unless", "|"];

/// Language and text of each block of `page`.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("\n```") {
        let Some((text, after)) = block.split_once("\n```") else { break };
        let (info, text) = text.split_once('\n').unwrap_or((text, ""));
        blocks.push((info.split(' ').next().unwrap_or_default(), text));
        rest = after;
    }
    blocks.retain(|(language, _)| LANGUAGES.contains(language));
    blocks
}

fn is_one_query(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    lines.windows(2).all(|pair| {
        pair[1].starts_with(' ') || OPERATORS.contains(&pair[0].trim()) && !pair[1].trim().is_empty()
    })
}

/// A ratio whose denominator may be zero is NaN, unless such a denominator is left out.
fn may_be_nan(language: &str, text: &str) -> bool {
    let divisor = text.split_once("\n  /\n").map(|(_, divisor)| divisor);
    language == "promql" && divisor.is_some_and(|divisor| !divisor.ends_with(" > 0)"))
}

#[test]
fn every_block_is_one_query_and_no_ratio_is_nan() {
    let mut problems = Vec::new();
    let mut found = 0;
    for path in files("docs", true).into_iter().filter(|path| has_extension(path, &["md"])) {
        let page = fs::read_to_string(root().join(&path)).expect("text");
        for (language, text) in blocks(&page) {
            found += 1;
            if !is_one_query(text) {
                problems.push(format!("{}: not one query of {language}: {text}", path.display()));
            }
            if may_be_nan(language, text) {
                problems.push(format!("{}: NaN where nothing has ended: {text}", path.display()));
            }
        }
    }
    assert!(found > 50, "{found}");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn two_queries_and_a_ratio_without_a_guard_are_found() {
    assert!(is_one_query("a\n  /\nb"));
    assert!(is_one_query("a\n  | b"));
    assert!(!is_one_query("a\n\nb"));
    assert!(!is_one_query("a\nb"));
    assert!(may_be_nan("promql", "a\n  /\nb"));
    assert!(!may_be_nan("promql", "a\n  /\n(b > 0)"));
    assert_eq!(blocks("x\n```promql\na\n\nb\n```\n```sh\nc\n```\n"), [("promql", "a\n\nb")]);
}
