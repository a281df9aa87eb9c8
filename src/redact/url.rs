//! Detects URLs whose user or password is not percent-encoded, before any part of them is shown or resolved.
//!
//! In `postgres://owner:S3@cr/et@db.example/app` the authority ends at the first slash, so `cr` is the host: half of
//! the password goes to the DNS and into messages. Such a URL parses without an error, hence this check before the
//! parser. It relies on one fact: a password is followed by an `@`. Where a password holds a raw `/`, `?` or `#`,
//! this `@` is outside the authority; where it holds a raw `@`, the authority has two.

/// How to encode reserved characters, for messages.
pub(crate) const ENCODE: &str = "@ as %40, / as %2F, ? as %3F, # as %23, % as %25";

/// What URLs of one kind may contain besides user, password, host, port and path.
pub(crate) struct Form {
    /// Whether the value of this parameter may hold a raw `@`, as in `?user=me@server`. Given its name and value.
    pub(crate) parameter: fn(&str, &str) -> bool,
    /// The fragments with a meaning.
    pub(crate) fragments: &'static [&'static str],
    /// Whether a URL without a host names a socket by its path, which may hold a raw `@`.
    pub(crate) sockets: bool,
}

/// Whether a URL holds a reserved character where only its percent-encoded form is clear.
///
/// Such a URL may mean another user, password and host than a parser finds in it: the caller must neither connect nor show
/// any part of it. A `:` in a password is clear, and so are characters at which parsers do not split (`[`, `]`, a
/// space).
pub(crate) fn is_unclear(url: &str, form: &Form) -> bool {
    // What parsers skip at the ends of a URL. Inside one they skip tabs and line breaks too, which changes it.
    let url = url.trim_matches(|c| c <= ' ');
    if url.contains(char::is_control) || has_broken_escape(url) {
        return true;
    }
    let Some((scheme, rest)) = url.split_once(':') else { return false };
    // Parsers of the web's schemes accept a backslash as a slash, and any number of slashes before the host.
    let is_web = ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web));
    let rest = if is_web {
        rest.trim_start_matches(['/', '\\'])
    } else if let Some(rest) = rest.strip_prefix("//") {
        rest
    } else {
        return rest.contains('@') && !(form.sockets && rest.starts_with('/'));
    };

    let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, after)| (rest, Some(after)));
    if fragment.is_some_and(|fragment| !form.fragments.contains(&fragment)) {
        return true;
    }
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let end = before_query.find(|c| c == '/' || is_web && c == '\\').unwrap_or(before_query.len());
    let (authority, path) = before_query.split_at(end);
    if authority.matches('@').count() > 1 {
        return true;
    }
    let is_socket = form.sockets && authority.is_empty() && !is_web;
    if path.contains('@') && !is_socket {
        return true;
    }
    // `u:1?user=x@h/d` is a host and its port, or else a user and the beginning of a password.
    let has_colon = rest.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'));
    let has_plain_path = !path.trim_start_matches('/').is_empty() && !path.contains(':');
    query.split('&').any(|parameter| {
        let Some((_, after)) = parameter.split_once('@') else { return false };
        let is_known = parameter.split_once('=').is_some_and(|(name, value)| (form.parameter)(name, value));
        !is_known || has_colon && (!has_plain_path || after.contains('/'))
    })
}

/// Whether a `%` does not begin an escape. Parsers keep or reject it.
fn has_broken_escape(url: &str) -> bool {
    let begins_escape = |after: &str| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    !url.split('%').skip(1).all(begins_escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Form = Form { parameter: |_, _| false, fragments: &[], sockets: false };
    const FULL: Form = Form { parameter: |name, _| name == "user", fragments: &["insecure"], sockets: true };

    #[test]
    fn raw_reserved_characters_are_detected() {
        for url in [
            "x://u:S3@cr/et@h/d",
            "x://u:p@ss@h/d",
            "x://u@corp:pass@h/d",
            "x://u:12/x@h/d",
            "x://u:12?x@h/d",
            "x://u:12?user=x@h/d",
            "x://u:12?user=x@h",
            "x://u:12/?user=x@h",
            "x://u:12/d?user=x@h/d",
            "x://u/x:12?user=x@h",
            "x://u?user=:x@h",
            "x://u:a@b/c?d@h/d",
            "x://u:12#x@h/d",
            "x://u:12#insecure@h/d",
            "x://u:100%@h/d",
            "x://u:1%2@h/d",
            "x://u:1%é0@h/d",
            "x://u:a\tb@h/d",
            "x://u:a\nb@h/d",
            "x://u:a\0b@h/d",
            "x://:/@h/d",
            "x://u/S3@h/d",
            "x:u:S3@h/d",
            "http://u:12\\x@h/d",
            "HTTP:u:12/x@h/d",
            "http:///u:12/x@h/d",
            "http:\\\\u:12/x@h/d",
        ] {
            assert!(is_unclear(url, &PLAIN), "{url:?}");
            assert!(is_unclear(url, &FULL), "{url:?}");
        }
    }

    #[test]
    fn unambiguous_urls_are_accepted() {
        for url in [
            "",
            "x",
            "x://",
            "x:///d",
            "x://h",
            "x://h:1/d?a=b&c=d/e:f?g",
            "x://u@h",
            "x://u:p:q:r@h:1/d",
            "x://u:S3%40cr%2Fet%23%3f%25@h/d",
            "x://u:[a]\\ {b}^|`é\"<>'()*+,;=!$&~@[::1]:1/d",
            "x://%2Frun%2Fdb/d",
            " x://u:p@h/d\n",
            "http://u:p@h:1\\d",
        ] {
            assert!(!is_unclear(url, &PLAIN), "{url:?}");
            assert!(!is_unclear(url, &FULL), "{url:?}");
        }
        for url in [
            "x://h/d?user=me@server",
            "x://h?user=me@server/x",
            "x://h:1/d?a=b&user=me@server&c=d",
            "x://u:p@h/d?user=me@server",
            "x://h#insecure",
            "x:///run/db@1.sock",
            "x:/run/db@1.sock",
        ] {
            assert!(is_unclear(url, &PLAIN), "{url:?}");
            assert!(!is_unclear(url, &FULL), "{url:?}");
        }
    }
}
