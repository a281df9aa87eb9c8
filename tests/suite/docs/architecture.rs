//! ARCHITECTURE.md and the other pages describe the tree as it is: paths, modules, drivers, links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

use super::phrases::{files, has_extension, is_test, root};

fn page() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page exists")
}

/// The text below `heading`, up to the next one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let below = page.split_once(&format!("\n## {heading}\n")).expect("the section exists").1;
    below.split_once("\n## ").map_or(below, |(section, _)| section)
}

/// The root pages and docs/.
fn pages() -> impl Iterator<Item = PathBuf> {
    let found = files("", false).into_iter().chain(files("docs", true));
    found.filter(|path| has_extension(path, &["md"]))
}

/// A path of the tree in backticks, without the symbol that it may cite.
static PATH: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"`((?:src|tests|docs|dashboards|collector|benches|examples)/[\w./-]*)(?:#[^`]*)?`")
        .expect("a constant")
});

#[test]
fn every_path_in_the_pages_exists() {
    let mut missing = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).expect("text");
        for path in PATH.captures_iter(&text).map(|found| found.extract::<1>().1[0]) {
            // A recipe's placeholders are upper case.
            if !path.contains("NAME") && !root().join(path).exists() {
                missing.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_symbol_in_the_pages_exists() {
    let mut problems = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).expect("text");
        let mut found = Vec::new();
        super::of_citations(
            &super::lines(&text),
            &|path| fs::read_to_string(root().join(path)).ok(),
            &mut found,
        );
        problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", page.display())));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A link of rustdoc, whose text is what remains of it.
static RUSTDOC_LINK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\[([^\]]+)\](?:\([^)]*\))?").expect("a constant"));

/// The section on modules, as the first sentences of the modules' documentation make it.
fn modules() -> String {
    let mut modules = files("src", true);
    modules.retain(|path| has_extension(path, &["rs"]) && !is_test(path));
    // A module before those within it.
    modules.sort_by_key(|path| path.with_extension(""));
    let rows = modules.into_iter().filter_map(|path| {
        let text = fs::read_to_string(root().join(&path)).expect("text");
        let lines = text.lines().map_while(|line| line.strip_prefix("//! "));
        let paragraph = lines.collect::<Vec<_>>().join(" ");
        let end = paragraph.find(". ").map_or(paragraph.len(), |end| end + 1);
        let purpose = RUSTDOC_LINK.replace_all(&paragraph[..end], "$1");
        (!purpose.is_empty()).then(|| format!("| `{}` | {purpose} |\n", path.display()))
    });
    format!("\n| module | purpose |\n|---|---|\n{}", rows.collect::<String>())
}

/// `RUNSPAN_UPDATE_PAGES=1` writes the section anew.
#[test]
fn modules_are_listed_with_the_purpose_that_they_document() {
    let (page, modules) = (page(), modules());
    let listed = section(&page, "Modules");
    if listed != modules && std::env::var_os("RUNSPAN_UPDATE_PAGES").is_some() {
        let page = page.replace(&format!("\n## Modules\n{listed}"), &format!("\n## Modules\n{modules}"));
        fs::write(root().join("ARCHITECTURE.md"), page).expect("the page can be written");
        return;
    }
    let outdated: Vec<&str> = modules.lines().filter(|row| !listed.contains(row)).collect();
    assert!(
        listed == modules,
        "ARCHITECTURE.md, Modules: run this test with RUNSPAN_UPDATE_PAGES=1; different: {outdated:#?}"
    );
}

#[test]
fn drivers_are_used_only_where_the_page_allows() {
    static CODE: LazyLock<Regex> = LazyLock::new(|| Regex::new("`([^`]+)`").expect("a constant"));
    let page = page();
    let names = |cell: &str| -> Vec<String> {
        CODE.captures_iter(cell).map(|found| found.extract::<1>().1[0].to_owned()).collect()
    };
    let rows: Vec<_> = section(&page, "Dependencies between modules")
        .lines()
        .filter_map(|line| line.strip_prefix("| `").map(|_| line))
        .filter_map(|line| line.trim_matches(['|', ' ']).split_once(" | "))
        .map(|(crates, places)| (names(crates), names(places)))
        .collect();
    assert!(rows.len() >= 4, "{rows:?}");
    let mut found = Vec::new();
    for path in files("src", true).into_iter().filter(|path| has_extension(path, &["rs"])) {
        let name = path.to_str().expect("a plain name");
        let text = fs::read_to_string(root().join(&path)).expect("text");
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for (crates, places) in &rows {
            let allowed = places.iter().any(|place| name.starts_with(place.as_str()));
            for used in crates.iter().filter(|used| code.contains(&format!("{used}::")) && !allowed) {
                found.push(format!("{name} uses {used}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    static LINK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\]\(([^)\s]+)\)").expect("a constant"));
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).expect("text");
        for link in LINK.captures_iter(&text).map(|found| found.extract::<1>().1[0]) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                normal(&page.parent().expect("a page is in a directory").join(path))
            };
            let is_there = match fs::read_to_string(root().join(&target)) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => anchor.is_empty() && root().join(&target).is_dir(),
            };
            if !is_there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// `path` without `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
        normal
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings =
        page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| -> String {
        let lower = heading.to_lowercase();
        let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}
