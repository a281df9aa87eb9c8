//! `RUST_LOG`, checked: a misspelt level is a valid target, which nothing logs to, and would silence everything.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// What a level may be.
const LEVELS: &str = "the levels are error, warn, info, debug, trace and off, alone or for a target, as in \
                      warn,runspan=debug";

/// The filter of a `RUST_LOG`, or of `default` where it is unset or empty.
///
/// `is_target` knows the targets that exist.
///
/// # Errors
/// One line that names the directive that is wrong, and the valid levels.
pub fn log_filter(
    value: Option<&str>,
    default: &str,
    is_target: impl Fn(&str) -> bool,
) -> Result<EnvFilter, String> {
    let value = value.map(str::trim).filter(|value| !value.is_empty()).unwrap_or(default);
    // Spans and their fields have commas of their own, and a grammar that the parser below knows.
    if value.contains(['[', '{']) {
        return EnvFilter::try_new(value).map_err(|error| format!("RUST_LOG is invalid ({error}): {LEVELS}"));
    }
    let directives: Vec<&str> =
        value.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    for directive in &directives {
        check(directive, &is_target)?;
    }
    EnvFilter::try_new(directives.join(","))
        .map_err(|error| format!("RUST_LOG is invalid ({error}): {LEVELS}"))
}

fn check(directive: &str, is_target: impl Fn(&str) -> bool) -> Result<(), String> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let Some((target, level)) = directive.split_once('=') else {
        // A target alone would mean all of its levels. Nobody needs that form, and a misspelt level has it.
        return if is_level(directive) {
            Ok(())
        } else {
            Err(format!("RUST_LOG is invalid: {directive:?} is not a level: {LEVELS}"))
        };
    };
    if !is_level(level) {
        return Err(format!("RUST_LOG is invalid: {level:?} in {directive:?} is not a level: {LEVELS}"));
    }
    let root = target.split("::").next().unwrap_or_default();
    if root.is_empty() || !is_target(root) {
        return Err(format!(
            "RUST_LOG is invalid: nothing logs to the target {target:?} in {directive:?}: {LEVELS}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<String, String> {
        let is_target = |target: &str| matches!(target, "runspan" | "hyper");
        log_filter(Some(value), "runspan=info", is_target).map(|filter| filter.to_string())
    }

    #[test]
    fn levels_alone_and_for_targets_are_filters() {
        for value in [
            "debug",
            "WARN",
            "off",
            "warn,runspan=debug",
            "info, hyper::client=trace",
            "runspan[run]=debug",
            "3",
        ] {
            parse(value).unwrap();
        }
        assert_eq!(parse(" ").unwrap(), "runspan=info");
    }

    #[test]
    fn what_would_silence_everything_is_an_error_that_names_the_levels() {
        for value in [
            "debgu",
            "verbose",
            "runspan=inof",
            "runspan=",
            "=info",
            "info,debgu",
            "runspam=debug",
            "runspan",
            "info runspan",
            "runspan:debug",
            "warn,runspan=loud",
            "runspan[run=debug",
            "none",
            "7",
        ] {
            let line = parse(value).unwrap_err();
            assert!(line.starts_with("RUST_LOG is invalid"), "{line}");
            assert!(line.contains("error, warn, info, debug, trace and off"), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
