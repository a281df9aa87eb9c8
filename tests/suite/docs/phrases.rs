//! The field's language: nothing that a person reads contains a phrase of `tests/banned-phrases.txt`.
//!
//! Checked are the pages, the dashboards, the rules, the comments of the configuration, and in `src` the string literals and
//! the help texts. Operators search logs and pages for the usual terms, so private ones hide the answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// A phrase, and what to write instead.
struct Banned {
    phrase: Regex,
    instead: &'static str,
}

static BANNED: LazyLock<Vec<Banned>> = LazyLock::new(|| {
    let lines = include_str!("../../banned-phrases.txt").lines();
    let entries = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries.map(|line| banned(line).unwrap_or_else(|cause| panic!("{line}: {cause}"))).collect()
});

fn banned(line: &'static str) -> Result<Banned, String> {
    let (phrase, instead) = line.split_once(" => ").ok_or("no replacement")?;
    // A line break within a phrase may be followed by the marks of a comment or a continued string.
    let pattern = format!(r"\b(?:{})\b", phrase.replace(' ', r"[\s#/\\>]+"));
    let phrase =
        RegexBuilder::new(&pattern).case_insensitive(true).build().map_err(|error| error.to_string())?;
    Ok(Banned { phrase, instead })
}

/// `path:line: phrase → what to write` for each phrase in `text`.
fn problems(path: &str, text: &str) -> Vec<String> {
    let found = BANNED.iter().flat_map(|banned| {
        banned.phrase.find_iter(text).map(|found| (found.start(), found.as_str(), banned.instead))
    });
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let report = found.iter().map(|(at, phrase, instead)| {
        let phrase = phrase.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{path}:{}: \"{phrase}\": write: {instead}", line(*at))
    });
    report.collect()
}

/// `text` with only its string literals and, if `help`, its doc comments; all else is blank, so that lines keep their
/// numbers.
pub(super) fn literals(text: &str, help: bool) -> String {
    static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r##"(?s)//[^\n]*|r#".*?"#|b?"(?:\\.|[^"\\])*"|'(?:\\.[^']*|[^'\\])'"##)
            .expect("a constant")
    });
    let mut kept = String::with_capacity(text.len());
    let mut end = 0;
    let blank = |text: &str| text.chars().map(|c| if c == '\n' { c } else { ' ' }).collect::<String>();
    for token in TOKEN.find_iter(text) {
        kept += &blank(&text[end..token.start()]);
        let is_comment = token.as_str().starts_with("//");
        let is_help = help && token.as_str().starts_with("///");
        let keep = is_help || !is_comment && !token.as_str().starts_with('\'');
        kept += &if keep { token.as_str().to_owned() } else { blank(token.as_str()) };
        end = token.end();
    }
    kept
}

/// Whether a file of `src` holds only tests.
pub(super) fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// The code that is shipped: without the tests at the end of the file.
pub(super) fn shipped(code: &str) -> &str {
    code.split("#[cfg(test)]\nmod tests").next().expect("a first part")
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files in `directory` and below, or only in it.
pub(super) fn files(directory: &str, below: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory)).expect("the directory exists") {
        let path = entry.expect("an entry").path();
        let relative = path.strip_prefix(root()).expect("it is in the tree").to_owned();
        if path.is_file() {
            found.push(relative);
        } else if below {
            found.extend(files(relative.to_str().expect("a plain name"), true));
        }
    }
    found.sort();
    found
}

pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known))
}

#[test]
fn no_page_contains_a_banned_phrase() {
    // The changelog quotes former messages.
    let is_page = |path: &PathBuf| has_extension(path, &["md"]) && path != Path::new("CHANGELOG.md");
    let root_pages = files("", false).into_iter().filter(is_page);
    let below =
        ["docs", "dashboards", "collector", ".ci"].into_iter().flat_map(|directory| files(directory, true));
    let mut found = Vec::new();
    for path in root_pages.chain(below).chain(["Makefile".into()]) {
        let name = path.to_str().expect("a plain name");
        found.extend(problems(name, &fs::read_to_string(root().join(&path)).expect("text")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_message_or_help_text_contains_a_banned_phrase() {
    let mut found = Vec::new();
    for path in files("src", true).into_iter().filter(|path| has_extension(path, &["rs"])) {
        let name = path.to_str().expect("a plain name");
        if is_test(&path) {
            continue;
        }
        let text = fs::read_to_string(root().join(&path)).expect("text");
        found.extend(problems(name, &literals(shipped(&text), name.starts_with("src/cli"))));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_banned_phrase_is_found_across_line_breaks_and_comment_marks() {
    assert_eq!(
        problems("a.md", "What was skipped is\nmended."),
        ["a.md:2: \"mended\": write: fix, repair, recover"]
    );
    assert_eq!(problems("a.yaml", "# One span\n# a run.").len(), 1);
    assert_eq!(
        problems("a.md", "A comment, mendable, of an amendment, and a run later."),
        Vec::<String>::new()
    );
}

#[test]
fn only_literals_and_help_are_checked_in_code() {
    let code = "/// Mends.\nfn mend() { warn!(\"it \\\n    mends\\\" it\"); } // mends\nconst C: char = '\"'; let s = r#\"mend\"#;";
    let lines = |help| problems("a.rs", &literals(code, help));
    assert_eq!(lines(false).len(), 2, "{:?}", lines(false));
    assert_eq!(lines(true).len(), 3, "{:?}", lines(true));
}
