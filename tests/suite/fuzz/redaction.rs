//! Reasons, as whatever failed writes them, with credentials in them.

use std::borrow::Cow;

use proptest::prelude::*;
use runspan::redact::{reason, redact};

use super::fuzz;

/// The most bytes of a reason that are read, and that are kept.
const READ: usize = 8 * 1024;
const KEPT: usize = 1024;

#[test]
fn a_planted_secret_never_survives() {
    let inputs = ("\\PC{0,40}", planted(), "([ \"\n,;][^A-Za-z0-9@]{0,40})?");
    fuzz("a planted secret", &inputs, |(before, (secret, public), after)| {
        prop_assume!(!leaks(&secret, public, &format!("{before}{after}")));
        let text = format!("{before} {secret}{after}");
        let clean = redact(&text);
        prop_assert!(!leaks(&secret, public, &clean), "{text}\n{clean}");
        Ok(())
    });
}

#[test]
fn nor_does_its_beginning_at_the_end() {
    let inputs = ("\\PC{0,40}", planted(), any::<prop::sample::Index>());
    fuzz("the beginning of a secret", &inputs, |(before, (secret, public), cut)| {
        let cut = cut.index(secret.len()) + 1;
        let text = format!("{before} {}", &secret[..cut]);
        prop_assume!(!leaks(&secret, public, &before));
        let clean = redact(&text);
        prop_assert!(!leaks(&secret[..cut], public, &clean), "{text}\n{clean}");
        Ok(())
    });
}

#[test]
fn nor_any_of_many() {
    let between = prop_oneof![
        prop::sample::select(vec![
            " ",
            "\n",
            "\r\n",
            "\t",
            ", ",
            "; ",
            "\n\n  ",
            " | ",
            " => ",
            "\u{1b}[0m ",
            "\u{a0}\n"
        ])
        .prop_map(str::to_owned),
        "\n[a-z ]{0,30}\n",
    ];
    let part = (between, planted(), any::<bool>());
    let inputs = (prop::collection::vec(part, 1..8), tangled());
    fuzz("many secrets", &inputs, |(parts, after)| {
        let mut text = String::new();
        for (between, (secret, _), coloured) in &parts {
            // A quotation mark that nobody closes would be closed by the next one's.
            let end = if secret.contains('"') { "\"" } else { "" };
            let secret = if *coloured { format!("\u{1b}[31m{secret}\u{1b}[0m") } else { secret.clone() };
            text += &format!("{between}{secret}{end}");
        }
        text += &format!("\n{after}");
        let innocent: String =
            parts.iter().map(|(between, ..)| between.as_str()).chain([after.as_str()]).collect();
        let line = reason(&text);
        for (_, (secret, public), _) in &parts {
            prop_assume!(!leaks(secret, *public, &innocent));
            prop_assert!(!leaks(secret, *public, &line), "{secret:?} in {text:?}\n{line}");
        }
        Ok(())
    });
}

#[test]
fn a_password_in_a_url_may_be_odd() {
    fuzz("an odd password", &"[!-~&&[^0-9@\"<>]][!-~&&[^\"<>]]{7,30}[a-z]", |password| {
        let clean = redact(&format!("postgres://app:{password}@db:5432/runs")).into_owned();
        prop_assert_eq!(clean, "postgres://[redacted]@db:5432/runs");
        Ok(())
    });
}

#[test]
fn nor_at_either_cut_of_a_reason() {
    let inputs = (0..60_usize, planted(), any::<bool>());
    fuzz("a secret at a cut", &inputs, |(room, (secret, public), at_the_cap)| {
        let filler = if at_the_cap {
            // A secret of its own, that shrinks to a few bytes.
            format!("password={}", "x".repeat(READ - 9 - room))
        } else {
            "x".repeat(KEPT - room)
        };
        let line = reason(&format!("{filler} {secret} tail"));
        prop_assert!(!leaks(&secret, public, &line), "{secret}\n{}", &line[line.len().saturating_sub(80)..]);
        Ok(())
    });
}

#[test]
fn twice_is_once_and_never_longer() {
    fuzz("any text", &prop_oneof![any::<String>(), tangled(), super::text()], |text| {
        let clean = redact(&text).into_owned();
        prop_assert!(clean.len() <= text.len(), "{text}\n{clean}");
        prop_assert!(matches!(redact(&clean), Cow::Borrowed(_)), "{text}\n{clean}");
        Ok(())
    });
}

#[test]
fn a_reason_is_short_and_on_one_line() {
    let inputs = (prop_oneof![any::<String>(), tangled(), super::text()], 1..400_usize);
    fuzz("any reason", &inputs, |(text, times)| {
        let line = reason(&text.repeat(times));
        prop_assert!(line.len() <= KEPT);
        prop_assert!(!line.contains(|c: char| c.is_control() || (c.is_whitespace() && c != ' ')));
        Ok(())
    });
}

/// Texts made of what the rules look for, so that they meet in every order.
fn tangle() -> impl Strategy<Value = String> {
    let pieces = [
        "password",
        "secret",
        "token",
        "=",
        ": ",
        ":",
        "\"",
        "\\\"",
        "'",
        "://",
        "@",
        "/",
        "?",
        "&",
        " ",
        "\n",
        "\\n",
        "Bearer ",
        "authorization: ",
        "basic ",
        "cookie: a=",
        "ghp_",
        "AKIA",
        "eyJ",
        ".",
        "-----",
        "BEGIN RSA PRIVATE KEY",
        "END RSA PRIVATE KEY",
        "sk-",
        "sk-ant-",
        "xoxb-",
        "[redacted]",
        "***",
        "[",
        "]",
        "redacted",
        "a",
        "7",
        "abcdefgh",
        "0123456789",
        "é",
        "(",
        ")",
        ",",
        "Some(",
        "{",
        "}",
        "=>",
        "\u{85}",
    ];
    prop::collection::vec(
        prop_oneof![3 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned), 1 => ".{0,4}"],
        0..40,
    )
    .prop_map(|pieces| pieces.concat())
}

fn tangled() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), tangle()]
}

/// A secret that is recognised wherever it stands, and how much of its beginning gives nothing away.
fn planted() -> impl Strategy<Value = (String, usize)> {
    prop_oneof![
        "gh[pousr]_[A-Za-z0-9]{36,76}".prop_map(|secret| (secret, 4)),
        "ghs_[0-9]{6}_eyJ[A-Za-z0-9_-]{20}\\.[A-Za-z0-9_-]{40}\\.[A-Za-z0-9_-]{43}"
            .prop_map(|secret| (secret, 4)),
        "github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}".prop_map(|secret| (secret, 11)),
        "A[KS]IA[A-Z2-7]{16}".prop_map(|secret| (secret, 9)),
        "xox[bp]-[0-9]{12}-[A-Za-z0-9]{24}".prop_map(|secret| (secret, 5)),
        "xapp-1-[A-Z0-9]{10}-[0-9]{12}-[0-9a-f]{64}".prop_map(|secret| (secret, 5)),
        "eyJ[A-Za-z0-9_-]{20}\\.eyJ[A-Za-z0-9_-]{40}\\.[A-Za-z0-9_-]{43}".prop_map(|secret| (secret, 9)),
        "sk-(ant|proj)-[A-Za-z0-9_-]{40,90}".prop_map(|secret| (secret, 8)),
        "sk-[A-Za-z0-9]{48}".prop_map(|secret| (secret, 9)),
        "sk_live_[A-Za-z0-9]{24}".prop_map(|secret| (secret, 8)),
        "glpat-[A-Za-z0-9_-]{20}".prop_map(|secret| (secret, 6)),
        "npm_[A-Za-z0-9]{36}".prop_map(|secret| (secret, 16)),
        "AIza[A-Za-z0-9_-]{35}".prop_map(|secret| (secret, 4)),
        "-----BEGIN (RSA |EC |)PRIV[A]TE KEY-----(\n|\\\\n)([A-Za-z0-9+/]{64}(\n|\\\\n)){1,3}"
            .prop_map(|secret| (secret, 40)),
        "password=[!-~&&[^\"'=\\[{(\\\\]][!-~&&[^\"]]{8,30}[a-z]".prop_map(|secret| (secret, 9)),
        "api_key: \"[ -~&&[^\"\\\\]]{9,30}".prop_map(|secret| (secret, 10)),
        "Authorization: (Bearer|Basic) [A-Za-z0-9+/]{20,40}".prop_map(|secret| (secret, 22)),
        "https://[a-z]{1,9}:[a-z][!-~&&[^\"<>@]]{9,30}@".prop_map(|secret| (secret, 20)),
    ]
}

/// Whether five bytes of `secret` in a row, beyond its first `public` ones, stand in `clean`.
fn leaks(secret: &str, public: usize, clean: &str) -> bool {
    let body = &secret.as_bytes()[public.min(secret.len())..];
    body.windows(5).any(|window| clean.as_bytes().windows(5).any(|stretch| stretch == window))
}
