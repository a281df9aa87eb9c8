//! The sampler of live spans, from `OTEL_TRACES_SAMPLER`.
//!
//! Trace ids of runs are UUIDs, so a sampler that reads bits which are constant in UUIDs is rejected.

use opentelemetry_sdk::trace::Sampler;

use crate::otlp::config::Env;

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// A sampler that cannot be used. Its text is one line: the variable, the problem, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// It decides by bits that are nearly constant in the ids of runs.
    #[error(
        "{SAMPLER} is traceidratio, which decides by bits that hold the variant of a run's UUID, so that a ratio up \
         to 0.5 samples no run and one from 0.75 every run: set it to parentbased_always_on, or to \
         parentbased_traceidratio, which applies to traces without a run"
    )]
    TraceIdRatio,
    /// Not a sampler of the specification that the SDK supports.
    #[error(
        "{SAMPLER} is {0:?}: set it to always_on, always_off, parentbased_always_on, parentbased_always_off or \
         parentbased_traceidratio"
    )]
    Unknown(String),
    /// Not a ratio.
    #[error("{ARGUMENT} is {0:?}, not a number from 0 to 1: set it to e.g. 0.1")]
    Argument(String),
}

/// Reads both variables; the default is the specification's, `parentbased_always_on`.
pub(super) fn from_env(env: Env<'_>) -> Result<Sampler, SamplerError> {
    let name = variable(env, SAMPLER);
    let root = match name.as_deref() {
        Some("always_on") => return Ok(Sampler::AlwaysOn),
        Some("always_off") => return Ok(Sampler::AlwaysOff),
        Some("traceidratio") => return Err(SamplerError::TraceIdRatio),
        None | Some("parentbased_always_on") => Sampler::AlwaysOn,
        Some("parentbased_always_off") => Sampler::AlwaysOff,
        Some("parentbased_traceidratio") => Sampler::TraceIdRatioBased(ratio(env)?),
        Some(other) => return Err(SamplerError::Unknown(other.to_owned())),
    };
    Ok(Sampler::ParentBased(Box::new(root)))
}

fn ratio(env: Env<'_>) -> Result<f64, SamplerError> {
    let Some(text) = variable(env, ARGUMENT) else { return Ok(1.0) };
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(SamplerError::Argument(text)),
    }
}

/// A variable's value, unless it is empty.
pub(super) fn variable(env: Env<'_>, variable: &str) -> Option<String> {
    env(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(name: &str, argument: &str) -> String {
        let env =
            |variable: &str| Some(if variable == SAMPLER { name.to_owned() } else { argument.to_owned() });
        from_env(&env).map_or_else(|error| error.to_string(), |sampler| format!("{sampler:?}"))
    }

    #[test]
    fn accepts_the_specifications_samplers_except_traceidratio() {
        assert_eq!(sampler("", ""), "ParentBased(AlwaysOn)");
        assert_eq!(sampler("always_on", ""), "AlwaysOn");
        assert_eq!(sampler("always_off", ""), "AlwaysOff");
        assert_eq!(sampler("parentbased_always_on", ""), "ParentBased(AlwaysOn)");
        assert_eq!(sampler("parentbased_always_off", ""), "ParentBased(AlwaysOff)");
        assert_eq!(sampler("parentbased_traceidratio", "0.25"), "ParentBased(TraceIdRatioBased(0.25))");
        assert_eq!(sampler("parentbased_traceidratio", ""), "ParentBased(TraceIdRatioBased(1.0))");
        assert!(sampler("traceidratio", "0.25").starts_with(
            "OTEL_TRACES_SAMPLER is traceidratio, which decides by bits that hold the variant of a run's UUID"
        ));
    }

    #[test]
    fn rejects_unknown_samplers_and_ratios() {
        assert!(sampler("xray", "").starts_with("OTEL_TRACES_SAMPLER is \"xray\": set it to"));
        for wrong in ["2", "-0.1", "NaN", "half"] {
            let line = sampler("parentbased_traceidratio", wrong);
            assert!(
                line.starts_with(&format!("OTEL_TRACES_SAMPLER_ARG is {wrong:?}, not a number")),
                "{line}"
            );
        }
    }
}
