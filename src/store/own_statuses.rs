//! The statuses of the application's own that a table allows: what `attach` warns of.
//!
//! Which statuses a CHECK constraint allows is read from its text, not evaluated: it may call functions of the table's owner.
//! A constraint that also excludes (`<>`, `NOT IN`), or compares other columns, says nothing certain and is ignored.

use crate::run::Status;

/// The warning about statuses that are not known, if there are any.
pub(super) fn warning<'a>(statuses: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let own: Vec<&str> = statuses.into_iter().filter(|status| status.parse::<Status>().is_err()).collect();
    (!own.is_empty()).then(|| {
        format!(
            "status may be {}, which runspan does not know: a run begins with its first known status, and the \
             span of a run that ends in one of these stays open, see docs/table.md",
            own.join(", ")
        )
    })
}

/// The statuses that the CHECK constraints in `sql` list, in the order of the text. `sql` is a constraint's definition or a
/// whole `CREATE TABLE`; `column` holds the status (`VALUE` in a domain), `columns` are all of the table.
pub(super) fn in_checks(sql: &str, column: &str, columns: &[String]) -> Vec<String> {
    let tokens = tokens(sql);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !token.is_word("check") {
            continue;
        }
        let condition = parenthesized(&tokens[at + 1..]);
        let is_of = |column: &str| condition.iter().any(|token| token.is_word(column));
        let is_of_another = columns.iter().any(|other| !other.eq_ignore_ascii_case(column) && is_of(other));
        let excludes = condition.iter().any(|token| token.is_word("not") || matches!(token, Token::NotEqual));
        if !is_of(column) || is_of_another || excludes {
            continue;
        }
        for token in condition {
            if let Token::Text(text) = token
                && !found.contains(text)
            {
                found.push(text.clone());
            }
        }
    }
    found
}

/// What a condition consists of, as far as it matters here.
#[derive(Debug, PartialEq)]
enum Token {
    /// A keyword or a name, without its quotes.
    Word(String),
    /// A string literal, without its quotes.
    Text(String),
    NotEqual,
    Open,
    Close,
}

impl Token {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found.eq_ignore_ascii_case(word))
    }
}

/// What is between the parenthesis that `tokens` begin with and its partner; nothing if they begin otherwise.
fn parenthesized(tokens: &[Token]) -> &[Token] {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return tokens.get(1..at).unwrap_or_default();
        }
    }
    &[]
}

fn tokens(sql: &str) -> Vec<Token> {
    let mut rest = sql;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\'' => quoted(rest, '\'', &mut tokens, Token::Text),
            '"' | '`' => quoted(rest, first, &mut tokens, Token::Word),
            '[' if rest[1..].starts_with(is_of_word) => quoted(rest, ']', &mut tokens, Token::Word),
            '(' | ')' => {
                tokens.push(if first == '(' { Token::Open } else { Token::Close });
                1
            }
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '<' | '!' if rest.starts_with("<>") || rest.starts_with("!=") => {
                tokens.push(Token::NotEqual);
                2
            }
            _ if is_of_word(first) => {
                let length = rest.find(|next| !is_of_word(next)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..length].to_owned()));
                length
            }
            _ => first.len_utf8(),
        };
        rest = &rest[length..];
    }
    tokens
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Pushes the token of which the quote is doubled inside and `end` at its end; its length.
fn quoted(rest: &str, end: char, tokens: &mut Vec<Token>, token: fn(String) -> Token) -> usize {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == end && characters.next_if(|(_, next)| *next == end).is_none() {
            tokens.push(token(text));
            return at + end.len_utf8();
        }
        text.push(character);
    }
    // Not closed: the database would not have taken it.
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn allows(sql: &str, expected: &[&str]) {
        let columns = ["id", "status", "state", "reason"].map(str::to_owned);
        assert_eq!(in_checks(sql, "status", &columns), expected, "{sql}");
    }

    #[test]
    fn lists_are_read_as_both_databases_show_them() {
        allows("CHECK ((status = ANY (ARRAY['queued'::text, 'paused'::text])))", &["queued", "paused"]);
        allows(
            "CHECK (((status)::text = ANY ((ARRAY['queued'::character varying, 'it''s'::character varying])::text[])))",
            &["queued", "it's"],
        );
        assert_eq!(in_checks("CHECK ((VALUE = ANY (ARRAY['paused'::text])))", "value", &[]), ["paused"]);
        allows(
            "CREATE TABLE t (status TEXT NOT NULL CHECK (status IN ('queued', 'paused')), id)",
            &["queued", "paused"],
        );
        allows(
            "CREATE TABLE t (\"status\" TEXT, CONSTRAINT c Check(lower([status]) = 'a' OR `status` = 'b'))",
            &["a", "b"],
        );
    }

    #[test]
    fn what_says_nothing_certain_is_ignored() {
        allows("CHECK (status <> 'gone')", &[]);
        allows("CHECK (status != 'gone')", &[]);
        allows("CHECK (status NOT IN ('gone'))", &[]);
        allows("CHECK (status = 'failed' OR reason = 'none')", &[]);
        allows("CHECK (json_valid(state) OR state = 'status')", &[]);
        allows(
            "CREATE TABLE t (status TEXT DEFAULT 'new', id /* CHECK (status = 'a') */, -- CHECK (status = 'b')\n state)",
            &[],
        );
        allows("CHECK (status = 'never closed", &[]);
        allows("CHECK", &[]);
    }

    #[test]
    fn known_statuses_need_no_warning() {
        assert_eq!(warning(["queued", "canceled"]), None);
        let warning = warning(["queued", "paused", "gone"]).expect("two are not known");
        assert!(warning.starts_with("status may be paused, gone, which"), "{warning}");
    }
}
