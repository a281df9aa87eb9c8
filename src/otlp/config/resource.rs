//! The resource: the attributes of the application, on every span, record and metric.
//!
//! It describes the application whose runs these are, not the relay, which may be another process.

use super::{ConfigError, Env, Problem, pairs};

const SERVICE_NAME: &str = "service.name";

/// The specification's name of a service without one.
pub const UNKNOWN_SERVICE: &str = "unknown_service";

/// The resource of the application, from `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    attributes: Vec<(String, String)>,
}

impl Resource {
    /// Reads both variables. `OTEL_SERVICE_NAME` overrides a `service.name` among the attributes; without either it is
    /// `unknown_service`. The last value of a repeated key counts.
    ///
    /// # Errors
    /// An invalid list entry.
    pub fn from_env(env: Env<'_>) -> Result<Self, ConfigError> {
        const LIST: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let mut resource = Self { attributes: vec![(SERVICE_NAME.to_owned(), UNKNOWN_SERVICE.to_owned())] };
        for (key, value) in attributes(&env(LIST).unwrap_or_default())
            .map_err(|problem| ConfigError { variable: LIST.to_owned(), problem })?
        {
            resource.set(key, value);
        }
        if let Some(name) = env("OTEL_SERVICE_NAME").filter(|name| !name.trim().is_empty()) {
            resource.set(SERVICE_NAME.to_owned(), name.trim().to_owned());
        }
        Ok(resource)
    }

    /// The attributes: `service.name` first, the others in the order in which they were given.
    pub fn attributes(&self) -> &[(String, String)] {
        &self.attributes
    }

    /// The name of the service.
    pub fn service_name(&self) -> &str {
        &self.attributes[0].1
    }

    fn set(&mut self, key: String, value: String) {
        match self.attributes.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, existing)) => *existing = value,
            None => self.attributes.push((key, value)),
        }
    }
}

fn attributes(list: &str) -> Result<Vec<(String, String)>, Problem> {
    pairs::parse(list)?
        .into_iter()
        .map(|pair| {
            let text = |bytes| {
                String::from_utf8(bytes).map_err(|_| Problem::EntryNotUtf8 { position: pair.position })
            };
            Ok((text(pair.key)?, text(pair.value)?))
        })
        // An empty name is useless; the default shows at least that nobody chose one.
        .filter(|pair| !matches!(pair, Ok((key, value)) if key == SERVICE_NAME && value.is_empty()))
        .collect()
}
