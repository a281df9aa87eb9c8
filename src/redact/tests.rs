//! A corpus of credentials, what must survive, and what holds for any text.

use std::collections::BTreeSet;

use super::*;

/// So many letters and digits that look random and differ from those of any other `salt`. Made here, so that
/// no scanner takes this file for a leak.
fn random(length: usize, salt: usize) -> String {
    const ALPHABET: &[u8] = b"q7Zk2XwB9vLr4TnJ8sGd3HfP6mCy5RtE1aNu";
    (0..length).map(|i| char::from(ALPHABET[(i * (salt * 2 + 5) + salt * 11) % ALPHABET.len()])).collect()
}

fn upper(length: usize) -> String {
    random(length, 1).to_uppercase()
}

fn hex(length: usize) -> String {
    random(length, 2).bytes().map(|byte| char::from(b"0123456789abcdef"[usize::from(byte % 16)])).collect()
}

fn jwt() -> String {
    format!("{}J{}.{}J{}.{}", "ey", random(33, 3), "ey", random(60, 4), random(43, 5))
}

fn pem(kind: &str, newline: &str) -> String {
    let dashes = "-".repeat(5);
    let line = random(64, 6);
    format!("{dashes}BEGIN {kind}{dashes}{newline}{line}{newline}{line}{newline}{dashes}END {kind}{dashes}")
}

/// The rule that must fire, the text before the secret, the secret, the text after it.
#[expect(clippy::too_many_lines, reason = "a table")]
fn corpus() -> Vec<(&'static str, &'static str, String, &'static str)> {
    let s = random;
    let odd = |password: &str| format!("app:{password}{}", s(6, 7));
    vec![
        ("URL", "fatal: https://", format!("x-access-token:{}", s(20, 0)), "@github.com/a/b.git: 403"),
        ("URL", "clone https://", s(20, 0), "@github.com/acme/widgets"),
        ("URL", "postgres://", odd("p@ss/w0rd"), "@db:5432/runs"),
        ("URL", "postgres://", odd("p#a?b:c"), "@db:5432/runs?sslmode=require"),
        ("URL", "postgres://", odd("/\"'<&"), "@db/runs"),
        ("URL", "postgres://", odd("naïve—€"), "@db/runs"),
        ("URL", "amqp://", "guest:0123456789".to_owned(), "@mq:5672/%2f"),
        ("URL", "redis://", format!(":{}", s(12, 1)), "@cache:6379/0"),
        ("URL", r#"{"url":"https:\/\/"#, odd(""), r#"@host\/path"}"#),
        ("URL", "(mongodb+srv://", odd(""), "@c0.example.net/?w=majority)"),
        ("URL cut off", "dial postgres://", format!("app:{}", s(9, 3)), ""),
        ("URL cut off", "dial postgres://", "app:0123456".to_owned(), ""),
        ("URL cut off", "dial https://", format!("x-access-token:ghs_{}", s(12, 3)), ""),
        ("URL parameter", "GET /cb?a=1&access_token=", s(30, 1), "&state=7"),
        ("URL parameter", "GET https://b.s3.example/k?X-Amz-Date=2&X-Amz-Signature=", hex(64), " 403"),
        ("URL parameter", "https://a.blob.example/c?sv=2024&sig=", format!("{}%3D", s(43, 2)), "&se=2030"),
        ("URL parameter", r"{url: https://h/p?a=b\u0026sig=", s(30, 1), r"\u0026c=d}"),
        ("URL parameter", "https://h/#id_token=", s(30, 1), ""),
        ("URL parameter", "error for url (https://h/p?private_token=", s(20, 1), "): timed out"),
        ("webhook", "POST https://hooks.slack.com/services/", format!("T0/B0/{}", s(24, 1)), ": 404"),
        ("webhook", "url=https://hooks.slack.com/workflows/", format!("T0/A0/1/{}", s(24, 1)), "\", retry"),
        ("webhook", "https://discord.com/api/webhooks/", format!("123/{}", s(24, 1)), " gone"),
        ("assignment", "password=", s(12, 1), " rejected"),
        ("assignment", "PGPASSWORD=", "a,b;c&d)e".repeat(2), " psql"),
        ("assignment", "env: DB_PASS=", s(12, 1), "\nHOME=/root"),
        ("assignment", "aws_secret_access_key = ", format!("/{}+{}/", s(20, 1), s(17, 2)), "\n"),
        ("assignment", "AWS_SECRET_ACCESS_KEY=", format!("{}/{}", s(20, 1), s(19, 2)), " aws s3 ls"),
        ("assignment", "export AWS_SESSION_TOKEN=\"", format!("{}==", s(80, 1)), "\""),
        ("assignment", "//registry.npmjs.org/:_authToken=", s(36, 1), "\n"),
        ("assignment", "login(secret='", format!("{} {}", s(8, 1), s(8, 2)), "')"),
        ("assignment", "password=\"", format!("{}\\\"{} ", s(9, 1), s(9, 2)), "\" host=db"),
        ("assignment", "password=\"", format!("{} {}", s(9, 1), s(9, 2)), ""),
        ("assignment", "password=\"\"", s(12, 1), " refused"),
        ("assignment", "password=f''", s(12, 1), " refused"),
        ("assignment", "AccountName=x;AccountKey=", format!("{}==", s(86, 1)), " refused"),
        ("assignment", "GITHUB_TOKEN=", s(20, 1), ", CI=true"),
        ("field", "passwd: ", s(12, 1), " (rejected)"),
        ("field", "api-key: ", s(12, 1), ""),
        ("field", "x-api-key: ", s(32, 1), "\r\nhost: x"),
        ("field", r#"{"user":"a","password":""#, format!("{} {}", s(9, 1), s(9, 2)), r#"","port":1}"#),
        ("field", r#"{"password" : "#, "1234567890123".to_owned(), r#","port":1}"#),
        ("field", r#""{\"clientSecret\":\""#, s(24, 1), r#"\",\"id\":1}""#),
        ("field", r#"Config { password: Some(""#, s(12, 1), r#""), host: "db" }"#),
        ("field", r#"Config { token: Some(""#, s(12, 1), r#""), host: "db" }"#),
        ("field", r#"{"auths":{"ghcr.io":{"auth":""#, s(24, 1), r#""}}}"#),
        ("field", r#""SecretAccessKey": ""#, format!("{}/{}", s(20, 1), s(19, 2)), r#"","#),
        ("field", r#""SessionToken": ""#, format!("{}==", s(80, 1)), r#"","#),
        ("field", "ANTHROPIC_API_KEY: ", s(30, 1), " is not valid"),
        ("field", "{'api_key': '", s(12, 1), "'}"),
        ("field", "Private-Token: ", s(20, 1), ""),
        ("command line", "exit 1: login --password ", s(12, 1), " db"),
        ("command line", "curl -u ", format!("app:{}", s(12, 1)), " https://h"),
        ("command line", "exit 1: curl -s --user '", format!("app:{}", s(12, 1)), "' https://h"),
        ("Authorization", "Authorization: Bearer ", s(24, 1), " was refused"),
        ("Authorization", "Authorization: Bearer ", "abcdefghijklmno".to_owned(), ""),
        ("Authorization", r#"{"authorization": "Basic "#, s(12, 1), r#""}"#),
        ("Authorization", "> proxy-authorization: Basic ", format!("{}=", s(11, 1)), "\r\n> Host: x"),
        ("Authorization", "authorization: ApiKey ", s(24, 1), ", retrying"),
        ("Authorization", "authorization: ", s(24, 1), ", retrying"),
        ("Authorization", "Authorization: token ", s(40, 1), ""),
        (
            "Authorization",
            "Authorization: Digest ",
            format!("a=\"b\", response=\"{}\"", hex(32)),
            "\nHost: x",
        ),
        ("Cookie", "Set-Cookie: ", format!("session={}; HttpOnly", s(24, 1)), "\r\nDate: now"),
        ("Bearer", "curl -H 'X: bearer ", s(20, 1), "' failed"),
        ("Bearer", "(Bearer ", "opaque-value.of-some-length".to_owned(), ")"),
        ("Basic", "header 'basic ", format!("{}=", s(19, 1)), "' refused"),
        ("Basic", "sent Basic ", format!("{}==", s(10, 1)), " and got 401"),
        ("Basic", "sent basic ", s(28, 1), " and got 401"),
        ("GitHub", "remote: ", format!("ghp_{}", s(36, 1)), " is invalid"),
        ("GitHub", "gho: ", format!("gho_{}", s(36, 1)), "."),
        ("GitHub", r"log\n", format!("ghu_{}", s(36, 1)), r"\n"),
        ("GitHub", "\x1b[31m", format!("ghr_{}", s(76, 1)), "\x1b[0m"),
        ("GitHub", "x_", format!("ghs_{}", s(36, 1)), " "),
        ("GitHub", "app: ", format!("ghs_1234567_{}", jwt()), ", done"),
        ("GitHub", "app: ", format!("ghs_{}", jwt()), ", done"),
        ("GitHub", "pat=", format!("github_pat_{}_{}", s(22, 1), s(59, 2)), ""),
        ("GitHub", "cut ", format!("ghp_{}", s(10, 1)), ""),
        ("GitHub", "cut ", format!("github_pat_{}", s(5, 1)), ""),
        ("GitHub", "token ", hex(40), " is revoked"),
        ("GitHub", "cut: token ", hex(12), ""),
        ("GitHub", "x-access-token ", format!("v1.{}", hex(40)), ""),
        ("AWS", "InvalidClientTokenId: ", format!("AKIA{}", upper(16)), " (403)"),
        ("AWS", "id=", format!("ASIA{}", upper(16)), ""),
        ("AWS", r#""AccessKeyId":""#, format!("ASIA{}", upper(16)), r#"","Expiration":"2026-11-22""#),
        ("AWS", "cut ", format!("AKIA{}", upper(8)), ""),
        ("Slack", "invalid_auth ", format!("xoxb-123456789012-{}", s(24, 1)), ""),
        ("Slack", "token_revoked: ", format!("xoxp-1234567890-1234567890-{}-{}", s(12, 1), hex(32)), "."),
        ("Slack", "invalid_auth ", format!("xoxe.xoxp-1-{}", s(40, 1)), ","),
        ("Slack", "invalid_auth ", format!("xapp-1-A012-123-{}", hex(64)), ","),
        ("Slack", "cut ", "xoxp-12".to_owned(), ""),
        ("JWT", "claims of ", jwt(), " expired"),
        ("JWT", "cut ", jwt()[..50].to_owned(), ""),
        ("JWT", "cut ", jwt()[..20].to_owned(), ""),
        ("private key", "bad key: ", pem("RSA PRIVATE KEY", "\n"), "\nat line 3"),
        ("private key", "bad key: ", pem("PRIVATE KEY", "\\n"), "\" in env"),
        ("private key", "bad key: ", pem("EC PRIVATE KEY", "\\\\n"), "\" in env"),
        ("private key", "bad key: ", pem("OPENSSH PRIVATE KEY", "\r\n    "), ""),
        ("private key", "bad key: ", pem("PGP PRIVATE KEY BLOCK", "\n"), "."),
        ("private key", "bad key: ", pem("ENCRYPTED PRIVATE KEY", "\n> "), " "),
        ("private key", "cut ", pem("DSA PRIVATE KEY", "\n")[..60].to_owned(), ""),
        (
            "private key",
            "cut ",
            {
                let key = pem("PRIVATE KEY", "\n");
                key[..key.len() - 9].to_owned()
            },
            "",
        ),
        ("private key", "tls.key: ", format!("LS0tLS1CRUdJTi{}==", s(90, 1)), "\n"),
        ("sk-", "Incorrect key: ", format!("sk-ant-api03-{}-{}AA", s(40, 1), s(50, 2)), "."),
        ("sk-", "Incorrect key: ", format!("sk-proj-{}_{}", s(40, 1), s(50, 2)), "."),
        ("sk-", "Incorrect key: ", format!("sk-{}", s(48, 1)), "."),
        ("sk-", "{\"error\":\"invalid x-api-key ", format!("sk-ant-oat01-{}-{}", s(40, 1), s(30, 2)), "\"}"),
        ("sk-", "Incorrect key: ", format!("sk-svcacct-{}_{}", s(40, 1), s(50, 2)), "."),
        ("sk-", "Incorrect key: ", format!("sk-proj-{}T3BlbkFJ{}", s(20, 1), s(20, 2)), ", retrying"),
        ("sk-", r"a\n", format!("sk-{}", s(48, 1)), r"\n"),
        ("sk-", "cut ", format!("sk-ant-{}", s(4, 1)), ""),
        ("sk-", "cut ", format!("sk-{}", s(9, 1)), ""),
        ("prefix", "stripe: ", format!("sk_live_{}", s(24, 1)), ""),
        ("prefix", "stripe: ", format!("whsec_{}", s(32, 1)), ""),
        ("prefix", "gitlab: ", format!("glpat-{}", s(20, 1)), ""),
        ("prefix", "npm ERR! ", format!("npm_{}", s(36, 1)), " expired"),
        ("prefix", "maps: ", format!("AIza{}", s(35, 1)), ", over quota"),
        ("prefix", "hub: ", format!("hf_{}", s(34, 1)), ", over quota"),
        ("prefix", "cut ", format!("rk_test_{}", s(3, 1)), ""),
        ("prefix", "cut ", format!("glpat-{}", s(3, 1)), ""),
        ("prefix", "cut ", format!("npm_{}", s(13, 1)), ""),
    ]
}

fn marker(secret: &str) -> &'static str {
    if secret.len() < MARKER.len() { SHORT_MARKER } else { MARKER }
}

fn fires(rule: &str, text: &str) -> bool {
    let index = RULES.iter().position(|known| known.name == rule).expect("the corpus names a rule");
    COMPILED.each[index].is_match(text)
}

#[test]
fn credentials_are_redacted_and_context_is_kept() {
    for (rule, before, secret, after) in corpus() {
        let text = format!("{before}{secret}{after}");
        assert!(fires(rule, &text), "{rule}: {text}");
        // More may go than the secret (a scheme, a neighbour), but only what the next test spells out.
        assert_eq!(redact(&text), format!("{before}{}{after}", marker(&secret)), "{rule}: {text}");
    }
}

#[test]
fn every_rule_has_an_example() {
    let rules: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
    let shapes: BTreeSet<_> = corpus().into_iter().map(|(rule, ..)| rule).collect();
    assert_eq!(rules.len(), RULES.len(), "two rules of the same name");
    assert_eq!(rules, shapes);
}

#[test]
fn ordinary_text_is_unchanged() {
    let long_hex = hex(64);
    for text in [
        "",
        "handler returned 3 of 5 steps",
        &format!("checkout of {} failed", hex(40)),
        &format!("{}..{}", hex(40), hex(7)),
        &format!("sha256:{long_hex} does not match"),
        &format!("{long_hex}  widgets.tar.gz, commit {}, HEAD is at {}", hex(40), hex(7)),
        &format!("pull ghcr.io/acme/widgets@sha256:{long_hex}: manifest unknown"),
        &format!("GET https://ghcr.io/v2/acme/widgets/manifests/sha256:{long_hex}: 404"),
        &format!("docker://ghcr.io/acme/widgets:1.2@sha256:{long_hex}"),
        &format!("etag \"{}\", key sha512-{}", hex(32), hex(64)),
        &format!("https://github.com/acme/widgets/commit/{}?diff=split", hex(40)),
        "urn:uuid:0190d2c4-7b1e-7c3a-9f00-5a1b2c3d4e5f, id=0190D2C4-7B1E-7C3A-9F00-5A1B2C3D4E5F",
        "runId=0190d2c4-7b1e-7c3a-9f00-5a1b2c3d4e5f deliveryId=72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "./target/debug/deps/libsecrets-4f3a9c2b1d.rlib, ~/.ssh/id_ed25519.pub, /srv/tokens/gh.txt:3",
        "run 0190d2c4-7b1e-7c3a-9f00-5a1b2c3d4e5f, trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "/home/app/.config/widgets/config.toml:12:5: expected `=`",
        r"C:\Users\app\secret.txt is missing",
        "/etc/passwd: No such file or directory",
        "/run/secrets/password: permission denied",
        "src/secret.rs:42:9, src/token.rs",
        "acme/widgets#42, acme/widgets@v1.2.3, @octokit/webhooks",
        "GET https://api.github.com:443/repos/acme/widgets/issues/42?per_page=100&page=2 502",
        "connection refused: http://localhost:4317.",
        "http://[::1]:4318/v1/traces, http://collector:4318, https://example.com",
        r#"["http://a:4317","http://b:4318"] for ops@example.com"#,
        r#"{"url":"http://a:4317","mail":"ops@example.com","site":"https://example.com"}"#,
        "https://registry.npmjs.org/@octokit/webhooks and https://medium.com/@someone",
        "http://host:8080/@scope/pkg?mail=a@example.com",
        "git@github.com:acme/widgets.git, mail to ops@example.com",
        "task-force, risk-averse, sk-SK, sk-learn, desk-bound-and-determined-people",
        "the bearer of bad news; missing bearer token",
        "Bearer authentication is required",
        "basic authentication, basic understanding of internationalization",
        "unexpected token: } at line 3; invalid token: expired",
        "unexpected token e in JSON",
        "token deadbeef is unknown",
        "foo::bar, crate::secret::Vault, password::hash(x), auth::token::Kind",
        "password authentication failed for user \"app\"",
        "the password is wrong; secrets are missing; no api key",
        "password_file=/run/x secret_name=db max_tokens=4096 passwords: 3",
        "if password == expected",
        "expected token: \"identifier\"",
        "--password is required, --token <TOKEN> too; docker run -u 1000:1000; curl -u",
        "npm_config_registry npm_lifecycle_event=test npm_package_name",
        "ghs_per_second, highs_per_workflow_name_total is up; weighs_a_ton, too",
        "VGhpcyBpcyBub3QgYSBzZWNyZXQ is prose in base64, SGVsbG8gd29ybGQ= too",
        "eyJ is how JSON begins in base64, eyJhbGciOi... is a header",
        "ASIA-PACIFIC, AKIA, xoxo-hugs and xoxo",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "authorization failed: no such role; cookie: missing",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03",
        "https://[redacted]@github.com password=[redacted] secret: *** Bearer [redacted]",
        "naïve café — 你好 🦀",
    ] {
        assert!(
            matches!(redact(text), Cow::Borrowed(same) if same == text),
            "{text} became {}",
            redact(text)
        );
    }
}

/// Where more goes than the secret, and where less is recognised than one might hope: known, and so it stays
/// until someone changes it on purpose.
#[test]
fn length_limits() {
    for (text, clean) in [
        // An `@` later in the same word may belong to the password.
        ("https://u:secret@host/x/@scope/pkg", "https://[redacted]@scope/pkg"),
        // A password may contain commas and semicolons, so an unquoted one ends at a blank.
        ("Password=hunter2;Database=runs", "Password=[redacted]"),
        ("password=correct horse battery", "password=*** horse battery"),
        ("login --password hunter", "login --password hunter"),
        ("<password>hunter2</password>", "<password>hunter2</password>"),
        // Prose that looks like a field.
        ("password: must not be empty", "password: *** not be empty"),
        // What follows an unterminated private key may still be the key.
        (concat!("-----BEGIN PRIV", "ATE KEY-----\nMIIB\n, said the parser"), "[redacted]"),
        // Up to five digits are a port, not the beginning of a password.
        ("postgres://app:12345", "postgres://app:12345"),
        // Nor does a password that was cut off behind an `@` differ from a host.
        ("postgres://app:p@ss", "postgres://***@ss"),
        // A user name alone may be a token.
        ("ssh://git@github.com/acme/widgets", "ssh://***@github.com/acme/widgets"),
        // So may an image's, written as a URL without a registry.
        ("docker://alpine@sha256:c0ffee", "docker://***@sha256:c0ffee"),
        ("secret=a", "secret=*"),
    ] {
        assert_eq!(redact(text), clean);
    }
}

#[test]
fn adjacent_credentials_share_one_marker() {
    let (pat, id) = (format!("ghp_{}", random(36, 1)), format!("AKIA{}", upper(16)));
    assert_eq!(redact(&format!("{pat}{id} {id},{pat}")), "[redacted] [redacted],[redacted]");
    assert_eq!(
        redact(&format!("https://u:{pat}@host/?token={id}&a=b password={pat}")),
        "https://[redacted]@host/?token=[redacted]&a=b password=[redacted]"
    );
}

#[test]
fn credentials_exposed_by_a_marker_are_redacted() {
    let text = "authorization: password=>.";
    let once = pass(text).expect("a hit");
    assert!(pass(&once).is_some(), "{once}: another text is needed here");
    assert!(pass(&redact(text)).is_none());
}

#[test]
fn a_reason_is_one_line() {
    assert_eq!(reason(" a\r\n\tb\u{2028}c\u{85}d \u{1}  e\x07\u{7f} "), "a b c d e");
    assert_eq!(reason("\x1b[2mpassword\x1b[0m\x1b[2m=\x1b[0mhunter2 \x1b[31mbad\x1b[0m"), "password=*** bad");
    assert_eq!(reason(&format!("key {} bad", pem("PRIVATE KEY", "\n"))), "key [redacted] bad");
}

#[test]
fn a_reason_is_redacted_before_it_is_cut() {
    let pat = format!("ghp_{}", random(36, 1));
    // Across the cut at 1 KiB: half a token there would not have been the end of the text that was read.
    let across = reason(&format!("{} {pat} {}", "a".repeat(KEPT - 20), "b".repeat(100)));
    assert_eq!(across, format!("{} [redacted] bbbbb…", "a".repeat(KEPT - 20)));
    // Across the cap at 8 KiB, and then moved to the front, for what stands before it is one long secret.
    let shrunk = reason(&format!("password={} {pat}", "c".repeat(READ - 30)));
    assert_eq!(shrunk, "password=[redacted] [redacted]…");
}

#[test]
fn a_short_reason_is_not_cut() {
    assert_eq!(reason(&"a".repeat(KEPT)), "a".repeat(KEPT));
    assert_eq!(reason(&"a".repeat(KEPT + 1)), format!("{}…", "a".repeat(KEPT - 3)));
    // Cut only by the cap, and then short: it still lost its end.
    assert_eq!(reason(&format!("a{}b", " ".repeat(READ))), "a…");
}

/// SECURITY.md says so: whatever follows these words may be an ordinary word.
#[test]
fn prose_about_a_secret_is_no_secret() {
    for prose in
        ["password is hunter2", "the token is invalid", "wrong password for user app", "api key not found"]
    {
        assert_eq!(redact(prose), prose);
    }
    assert_eq!(redact("password=hunter2"), "password=***");
}
