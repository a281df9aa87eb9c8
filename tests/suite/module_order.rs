//! The layering: each module uses only modules declared above it in `src/lib.rs`, whose order is the design's.

use std::fs;
use std::path::Path;

/// The design's order. `src/lib.rs` may lack some of these, and has no other.
const DESIGN: &str = "backoff error_chain outage run runs semconv trace_context redact database_url journal series projection store \
                      otlp relay telemetry runtime";

#[test]
fn each_module_uses_only_those_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = declared(&fs::read_to_string(src.join("lib.rs")).expect("lib.rs is text"));
    assert!(is_subsequence(&order, DESIGN), "src/lib.rs declares {order:?}, the design: {DESIGN}");

    let mut found = Vec::new();
    each_file(&src, &mut |path| {
        let file = path.strip_prefix(&src).expect("it lies there").to_str().expect("a plain name");
        let names = not_above(file, &fs::read_to_string(path).expect("text"), &order);
        found.extend(names.iter().map(|name| format!("src/{file} uses {name}")));
    });
    assert!(found.is_empty(), "a module uses one that is not above it:\n{}", found.join("\n"));
}

#[test]
fn the_checker_finds_what_is_planted() {
    let lib = "//! Docs.\n#[cfg(test)]\nmod testing;\npub mod run;\nmod redact;\npub mod store; // comment\n";
    let order = declared(lib);
    assert_eq!(order, ["run", "redact", "store"]);
    assert!(is_subsequence(&order, DESIGN));
    assert!(!is_subsequence(&order, "run store redact"));
    assert!(!is_subsequence(&order, "run store"));

    for (file, text, expected) in [
        ("run.rs", "use crate::store::Store;", "store"),
        ("redact.rs", "fn f() { crate::store::open(crate::run::id()) }", "store"),
        ("redact/jwt.rs", "use crate::{run::RunId, store::{Store, Lease}};", "store"),
        ("run.rs", "use crate::{\n    redact,\n    store,\n};", "redact store"),
        ("redact.rs", "use super::store;", "store"),
        ("redact/jwt.rs", "use super::super::store::Store;", "store"),
        ("redact.rs", "use crate::testing::clock;", "testing"),
        ("redact.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}\nuse crate::store;", "store"),
        ("redact.rs", "use crate::{run::{self, store}, redact::Rule};", ""),
        ("store/postgres.rs", "use crate::{redact, run};\nuse super::Store;\nuse my_crate::relay;", ""),
        ("redact.rs", "/// See [`crate::store`].\n//! And crate::store.", ""),
        ("redact.rs", "#[cfg(test)]\n#[a]\nmod tests {\n    use crate::store;\n    fn f() {}\n}\n", ""),
        ("redact.rs", "#[cfg(test)]\nuse crate::{\n    store,\n};\n", ""),
        ("redact/tests.rs", "use crate::store;", ""),
        ("main.rs", "use crate::commands;", ""),
    ] {
        assert_eq!(not_above(file, text, &order).join(" "), expected, "{file}: {text}");
    }
}

/// The modules that `lib.rs` declares, in its order.
fn declared(lib: &str) -> Vec<String> {
    let lib = code(lib);
    let modules = lib.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.split_once(';').map(|(name, _)| name.to_owned())
    });
    modules.collect()
}

fn is_subsequence(part: &[String], whole: &str) -> bool {
    let mut rest = whole.split_whitespace();
    part.iter().all(|name| rest.any(|other| other == name))
}

/// What the file uses and may not. Files of modules that `lib.rs` does not declare, `main.rs` above all, are on top.
fn not_above(file: &str, text: &str, order: &[String]) -> Vec<String> {
    let module = file.split('/').next().expect("a path has a part").trim_end_matches(".rs");
    let Some(own) = order.iter().position(|name| name == module) else { return Vec::new() };
    if file.ends_with("/tests.rs") {
        return Vec::new();
    }
    let text = code(text);
    let mut names = used(&text, "crate::");
    let to_the_top = "super::".repeat(file.split('/').count());
    names.extend(used(&text, &to_the_top).into_iter().filter(|name| order.contains(name)));
    names.retain(|name| !order[..=own].contains(name));
    names
}

/// The first name of each path that begins with `root`, of each branch where braces follow.
fn used(text: &str, root: &str) -> Vec<String> {
    let is_whole = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
    let roots = text.match_indices(root).filter(|(at, _)| is_whole(&text[..*at]));
    roots.flat_map(|(at, _)| first_names(&text[at + root.len()..])).collect()
}

fn first_names(path: &str) -> Vec<String> {
    let is_part = |c: &char| c.is_alphanumeric() || *c == '_';
    let name = |path: &str| path.trim_start().chars().take_while(is_part).collect();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut names) = (1, vec![name(group)]);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name: &String| !name.is_empty()); // after a last comma
    names
}

/// The text without comment lines and without items under `#[cfg(test)]`, as rustfmt lays them out: such an item ends
/// with the first line that is indented no deeper than the attribute and closes it.
fn code(text: &str) -> String {
    let mut test_item = None;
    let mut kept = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let indent = line.len() - line.trim_start().len();
        match test_item {
            Some(depth) if indent <= depth && line.ends_with(['}', ';']) => test_item = None,
            Some(_) => {}
            None if line.trim() == "#[cfg(test)]" => test_item = Some(indent),
            None => kept.extend([line, "\n"]),
        }
    }
    kept
}

fn each_file(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            each_file(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path);
        }
    }
}
