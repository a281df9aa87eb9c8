//! Removes credentials from free text before it leaves the database in a span or a log record.
//!
//! Whatever fails writes the reason: a clone URL with its token, a dump of headers, a child process's stderr. [`redact`]
//! replaces the credentials in such a text and leaves the rest readable; [`reason`] makes the short line that telemetry
//! carries.
//!
//! Each entry of `RULES` matches one form of credential. All rules read the same text, their matches are merged, and each
//! merged range becomes one marker; this repeats until nothing changes. So
//!
//! - a text is never longer than before: a marker is at most as long as what it replaces;
//! - redacting twice is the same as redacting once: by definition another pass does not change the result;
//! - it terminates: a pass either shortens the text, or replaces ten bytes by a marker (existing markers are never
//!   split), or at most three bytes by asterisks, and no pass reverts that at the same length;
//! - no input makes it hang or panic: the `regex` crate does not backtrack, and the bounds of a range are those of
//!   matches, so they are character boundaries.
//!
//! A rule rather removes too much: a word of a reason is worth less than a password. But rules that match ordinary text
//! would make reasons useless, so each requires a form that prose, paths, hashes and Rust code do not have. A text may
//! be cut anywhere, so a credential that the end of the text cuts off is recognized too.

pub(crate) mod url;

use std::{borrow::Cow, ops::Range, sync::LazyLock};

use regex::{Regex, RegexSet};

/// Replaces a credential.
const MARKER: &str = "[redacted]";

/// Replaces a credential shorter than [`MARKER`], cut to its length.
const SHORT_MARKER: &str = "***";

/// The most bytes of a reason that are read.
const READ: usize = 8 * 1024;

/// The most bytes of a reason that are kept.
const KEPT: usize = 1024;

/// Replaces credentials by `[redacted]` (by `***` if they are shorter than that).
///
/// The context stays: the host of a URL, the name of a header or variable. Nothing else changes, including control
/// characters. A text without credentials is returned borrowed, after a single scan.
///
/// ```
/// use runspan::redact::redact;
///
/// let url = "https://x-access-token:c0ffee@github.com/acme/widgets.git";
/// assert_eq!(redact(url), "https://[redacted]@github.com/acme/widgets.git");
/// assert_eq!(redact("password=hunter2 rejected"), "password=*** rejected");
/// assert_eq!(redact("acme/widgets#42 at :8080"), "acme/widgets#42 at :8080");
/// ```
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut clean = Cow::Borrowed(text);
    while let Some(cleaner) = pass(&clean) {
        clean = Cow::Owned(cleaner);
    }
    clean
}

/// A reason as telemetry carries it: redacted, on one line, at most 1024 bytes.
///
/// At most 8 KiB are read. They are redacted before they are cut: a token across the cut would leave its first half.
/// Terminal escapes and other control characters are removed before that, as `password=…` is a credential in any colour.
/// Afterwards all white space, including line breaks, becomes single spaces: the body of a log record is one line. A
/// reason that was cut ends with `…`, within the 1024 bytes.
///
/// ```
/// use runspan::redact::reason;
///
/// assert_eq!(reason("clone failed:\n\tfatal: \x1b[31mgone\x1b[0m\n"), "clone failed: fatal: gone");
/// assert_eq!(reason(&"é".repeat(600)), format!("{}…", "é".repeat(510)));
/// ```
pub fn reason(text: &str) -> String {
    const ELLIPSIS: char = '…';

    let read = &text[..text.floor_char_boundary(READ)];
    let printable = anstream::adapter::strip_str(read).to_string();
    let clean = redact(&printable);
    let words = clean.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if line.len() > KEPT || read.len() < text.len() {
        line.truncate(line.floor_char_boundary(KEPT - ELLIPSIS.len_utf8()));
        line.push(ELLIPSIS);
    }
    line
}

/// `text` with all matches of the rules replaced, or `None` if that changes nothing.
fn pass(text: &str) -> Option<String> {
    let hits = COMPILED.set.matches(text);
    if !hits.matched_any() {
        return None;
    }
    // Existing markers count as matches: a match that overlaps one would split it.
    let mut secrets: Vec<Range<usize>> =
        text.match_indices(MARKER).map(|(start, marker)| start..start + marker.len()).collect();
    for rule in &hits {
        for found in COMPILED.each[rule].captures_iter(text) {
            secrets.extend(found.iter().skip(1).flatten().map(|group| group.range()));
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_unstable_by_key(|secret| secret.start);
    secrets.dedup_by(|next, last| {
        let touching = next.start <= last.end;
        if touching {
            last.end = last.end.max(next.end);
        }
        touching
    });

    let mut clean = String::with_capacity(text.len());
    let mut copied = 0;
    for Range { start, end } in secrets {
        clean.push_str(&text[copied..start]);
        clean.push_str(if end - start < MARKER.len() {
            &SHORT_MARKER[..SHORT_MARKER.len().min(end - start)]
        } else {
            MARKER
        });
        copied = end;
    }
    clean.push_str(&text[copied..]);
    (clean != text).then_some(clean)
}

/// [`RULES`], compiled: as a set to see which match, and one by one.
struct Compiled {
    set: RegexSet,
    each: Vec<Regex>,
}

static COMPILED: LazyLock<Compiled> = LazyLock::new(|| Compiled {
    set: RegexSet::new(RULES.iter().map(|rule| rule.pattern))
        .expect("the rules are constants, and the tests compile them"),
    each: RULES
        .iter()
        .map(|Rule { name, pattern }| {
            Regex::new(pattern).unwrap_or_else(|error| unreachable!("the rule {name} is a constant: {error}"))
        })
        .collect(),
});

/// One form of credential.
struct Rule {
    /// Its name in tests and in the message of an invalid pattern.
    name: &'static str,
    /// Matches it. Each group of a match is a credential and is replaced completely.
    pattern: &'static str,
}

// Parts that several rules share, as macros, because `concat!` accepts only literals.

/// The start of a word, also after a line break that JSON escapes (`…\nsk-…`), where `\b` does not match.
macro_rules! start {
    () => {
        r"(?:(?-u:\b)|\\[nrt])"
    };
}

/// An optional quotation mark, optionally escaped.
macro_rules! quote {
    () => {
        r#"\\*["']?"#
    };
}

/// A word without the quotation marks and punctuation that follow it in prose.
macro_rules! word {
    () => {
        r#"[^\s"']*[^\s"',;:.)\]}>]"#
    };
}

/// The end of a name whose value is a credential, with any beginning (`DB_PASSWORD`, `clientSecret`).
/// Not `secret_name` or `password_file`: those do not hold one.
macro_rules! key {
    () => {
        r"(?:
            passw(?:or)?d | pass[-_]?phrase |
            secret (?:[-_]?(?:access[-_]?)?key (?:[-_]?base)?)? |
            (?:api|access|account|private|signing|encryption|master)[-_]?key |
            (?:[-_]|access|api|auth|bearer|bot|id|refresh|security|session)token |
            (?-i:_PASS) | [-_]auth
        )"
    };
}

/// The value after such a name and its separator: quoted (the closing mark may be missing), quoted within something
/// quoted, or up to the next space. `$not` is what an unquoted one cannot begin with: a second `:` makes it a Rust
/// path, a second `=` a comparison.
macro_rules! value {
    ($not:literal) => {
        concat!(
            r#"(?:
                (?:[a-z_:]+\(|[bruf])* (?:                     # Some("…"), b"…"
                    (?: " ((?:[^"\\]|\\(?s:.))*) "? | ' ((?:[^'\\]|\\(?s:.))*) '? )
                    ([^\s"',;:.)\]}>\\] [^\s"]*)? |             # "…"… in a shell
                    \\+"((?:[^"\\]|\\+[^"\\])*)
                ) |
                (
                    (?:[^\s"'{\[(\\"#,
            $not,
            r#"] | [{\[(\\][^\s"'])
                    (?:[^\s"]*[^\s"',;.)\]}>])?
                )
            )"#
        )
    };
}

/// Every form of credential that [`redact`] knows. Their order does not matter.
const RULES: &[Rule] = &[
    // `scheme://user:password@host` and `scheme://token@host`. The first `@` ends a password without blanks, whatever
    // else is in it; if more `@` follow in the same word, it may have been part of the password, and the last one
    // ends it. A number and then a slash is a port, and what has a slash before its first `@` and no colon is a path.
    Rule {
        name: "URL",
        pattern: r#"(?xi) :(?:\\?/){2} (?:
            (
                [^\s/?\#:@\["'<>]* :
                (?: [0-9]* | (?: [0-9]+[^\s/?\#@0-9"'<>,;.)\]}] | [^\s@0-9] ) \S*? )
                (?: @[^\s"<>]* )?
            )@ |
            ([^\s/?\#:@\["'<>]+)@
        )"#,
    },
    // The same without its end: what follows the last colon cannot be a port.
    Rule {
        name: "URL cut off",
        pattern: r#"(?x) :(?:\\?/){2}
            ( [^\s/?\#:@\["'<>]* : (?: [0-9]{0,5}[A-Za-z_] | [0-9]{6} | [~!$%^&*+=(-] ) [^\s"<>@]* ) \z"#,
    },
    // Query parameters; there a value ends at the next one. `\u0026` is how Go and others escape `&` in JSON.
    Rule {
        name: "URL parameter",
        pattern: concat!(
            r"(?xi) (?: [?&;\#] | \\u0026 | %26 ) [a-z0-9_.-]* (?:",
            key!(),
            r#"| token | sig | signature | jwt ) (?: = | %3D )
                ([^\s"'<>&\#\\]*[^\s"'<>&\#\\,;:.)\]}])"#
        ),
    },
    // Webhook addresses: anyone who knows the path may post.
    Rule {
        name: "webhook",
        pattern: r#"(?xi)
            (?: hooks\.slack\.com/(?:services|triggers|workflows) | discord(?:app)?\.com/api/webhooks )
            / ([^\s"'<>]*[a-z0-9])"#,
    },
    // `password=…` in its many spellings. Not behind `?` or `&`: that is the rule above.
    Rule {
        name: "assignment",
        pattern: concat!(
            r"(?xi) (?: ^ | [^a-z0-9_?&.-] ) [a-z0-9_.-]* (?:",
            key!(),
            "| token | bearer | signature )",
            quote!(),
            "[[:blank:]]* =>? [[:blank:]]*",
            value!("=")
        ),
    },
    // `api-key: …` and `"password":"…"`. Behind a slash it is a path (`/etc/passwd: …`); a bare `token:` is how
    // parsers complain, so one side of the colon must be quoted, and the value have a digit.
    Rule {
        name: "field",
        pattern: concat!(
            "(?xi) (?: (?: ^ | [^a-z0-9_/.-] ) [a-z0-9_.-]*",
            key!(),
            quote!(),
            r#"| ["'](?:token|auth|pwd)\\*["'] ) [[:blank:]]* : [[:blank:]]*"#,
            value!(":"),
            r#"| token: [[:blank:]]* (?:[a-z_:]+\()* " ([^"\\]*[0-9][^"\\]*)"#
        ),
    },
    // Commands that failed, with their arguments. A digit distinguishes `--token a1b2` from "--token is missing".
    Rule {
        name: "command line",
        pattern: concat!(
            r"(?xi) --[a-z-]* (?:",
            key!(),
            "| token ) [[:blank:]]+",
            quote!(),
            r#"( [^\s"'<]*[0-9] (?:"#,
            word!(),
            r#")? ) | curl (?: [[:blank:]] [^\r\n]*? )? [[:blank:]] (?: -u | --user ) [[:blank:]]*"#,
            quote!(),
            r#"( [^\s"':]+ : "#,
            word!(),
            ")"
        ),
    },
    // The header by its name. The scheme stays, if there is one: a known word, or any word before something that is not
    // a word. Digest and the like have parameters to the end of the line.
    Rule {
        name: "Authorization",
        pattern: concat!(
            r"(?xi) authorization",
            quote!(),
            "[[:blank:]]* [:=] [[:blank:]]*",
            quote!(),
            r"(?:
                (?:digest|aws4-hmac-sha256|oauth|hawk|signature) [[:blank:]]+ ([^\r\n]+) |
                (?:bearer|basic|token|negotiate|apikey|bot) [[:blank:]]+ (",
            word!(),
            r#") |
                [a-z][a-z-]* [[:blank:]]+ ([^\s"']*[0-9*\[]"#,
            word!(),
            ") | (",
            word!(),
            ") )"
        ),
    },
    // Cookies, to the end of the line; without a `name=` it is prose.
    Rule {
        name: "Cookie",
        pattern: concat!(
            "(?xi) cookie",
            quote!(),
            "[[:blank:]]* : [[:blank:]]*",
            quote!(),
            r#"( [^\s=;"']+ = [^\r\n"']* )"#
        ),
    },
    // The scheme without its header. What follows must not be a word: "bearer of bad news", "basic usage".
    Rule {
        name: "Bearer",
        pattern: r"(?xi-u) bearer (?:[[:blank:]]+|%20|\+)
            ( [a-z0-9._~+/=-]*[0-9][a-z0-9._~+/=-]* | [a-z._~+/=-]{24,} )",
    },
    Rule {
        name: "Basic",
        pattern: r"(?xi-u) basic [[:blank:]]+
            ( [a-z0-9+/_-]{8,}={1,2} | [a-z0-9+/_-]{24,} | [a-z0-9+/_-]{4,}[0-9][a-z0-9+/_-]{4,} )",
    },
    // Classic ones, the stateless installation tokens (`ghs_<app>_<JWT>`) and fine-grained ones; and those without
    // a prefix, which the word or version before them distinguishes from commit hashes.
    Rule {
        name: "GitHub",
        pattern: concat!(
            r"(?x-u) (
                gh[pousr]_ (?: [A-Za-z0-9]{16} | [0-9]+_eyJ ) (?: [\w.-]*[\w-] )? |",
            start!(),
            r"gh[pousr]_[\w.-]*\z |
                github_pat_ (?: [A-Za-z0-9]{16}\w* | \w*\z ) |
                v1\.[0-9a-f]{40}
            ) | (?i:token) [\x20\t:='\x22]+ ( [0-9a-f]{40,} | [0-9a-f]{10,}\z )"
        ),
    },
    // Key ids, permanent and temporary. Secret keys have no form of their own: "assignment" and "field" match their
    // names.
    Rule { name: "AWS", pattern: r"(?x-u) ( A[KS]IA (?: [A-Z0-9]{16} | [A-Z0-9]{6,}\z ) )" },
    Rule {
        name: "Slack",
        pattern: r"(?x-u) (
            xox[abeoprs] (?:\.xox[a-z])? - (?: [A-Za-z0-9-]{10,} | [A-Za-z0-9-]*\z ) |
            xapp- (?: [0-9][A-Za-z0-9-]{10,} | [A-Za-z0-9-]*\z )
        )",
    },
    // `{"` in base64url, and then a dot (or nothing more): the header of a JWT.
    Rule { name: "JWT", pattern: r"(?x-u) ( eyJ[\w-]{6,} (?: \.[\w.-]*[\w-] | \.?\z ) )" },
    // From the first line to the last, or to the end of the text: what a key may contain depends on how often it was
    // quoted and escaped. Also what `-----BEGIN ` is in base64, as in a Kubernetes secret.
    Rule {
        name: "private key",
        pattern: r"(?xs) (
            -{4,5}\x20?BEGIN [A-Z0-9\x20+%]* PRIVATE [\x20+%0-9]+ KEY
            .*? (?: -{4,5}\x20?END[^-\r\n]{0,60}-{4,5} | \z )
        ) | ( LS0tLS1CRUdJTi[A-Za-z0-9+/=]* )",
    },
    // Anthropic, OpenAI and similar. Locales (`sk-SK`) and words (`sk-learn`) are shorter.
    Rule {
        name: "sk-",
        pattern: concat!(
            "(?x-u)",
            start!(),
            r"( sk-(?:
                (?:ant|proj|svcacct|admin|or)- (?: [\w-]{8,} | [\w-]*\z ) |
                [A-Za-z0-9]{20}[\w-]* | [A-Za-z0-9]{6,}\z
            ) )"
        ),
    },
    // Others with an unambiguous prefix: Stripe, GitLab, npm, Google, Hugging Face, Docker, PyPI.
    Rule {
        name: "prefix",
        pattern: r"(?x-u) (
            (?: [rs]k_(?:live|test)_ | whsec_ | npm_ | hf_ | dckr_pat_ ) [A-Za-z0-9]{16}[\w-]* |
            (?: gl(?:pat|ptt|dt|rt|cbt)- | AIza | ya29\. | GOCSPX- | pypi-AgE ) [\w-]{20} (?: [\w.-]*[\w-] )? |
            (?: [rs]k_(?:live|test)_ | whsec_ | glpat- | AIza | GOCSPX- | pypi-AgE ) [\w-]*\z |
            npm_[A-Za-z0-9]{12,}\z
        )",
    },
];

#[cfg(test)]
mod tests;
