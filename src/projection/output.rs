//! What the projection puts out: spans and records as plain data. `otlp::encode` only translates them.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::journal::Context;
use crate::run::{RunId, Timestamp};
use crate::semconv::{Event, Level, field};
use crate::trace_context::{SpanContext, SpanId};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

impl From<RunId> for Value {
    fn from(id: RunId) -> Self {
        Self::Text(id.to_string())
    }
}

/// Attributes in a fixed order. An absent value is an absent key.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// What every span and record of a run carries: they share it, as it is most of what they say.
    shared: Option<Arc<[(&'static str, Value)]>>,
    own: Vec<(&'static str, Value)>,
}

impl Attributes {
    /// Adds one.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) -> &mut Self {
        self.own.push((key, value.into()));
        self
    }

    /// Adds one that may be absent.
    pub fn set_if(&mut self, key: &'static str, value: Option<impl Into<Value>>) -> &mut Self {
        if let Some(value) = value {
            self.set(key, value);
        }
        self
    }

    /// What every span and record of a run carries. To be cloned for each.
    pub fn of_run(run: RunId, context: &Context) -> Self {
        let mut attributes = Self::default();
        attributes.set(field::RUN_ID, run).of_context(context);
        let lineage = context.lineage.as_ref();
        attributes
            .set_if(field::PARENT_RUN_ID, lineage.map(|lineage| lineage.parent))
            .set(field::ROOT_RUN_ID, context.root_of(run))
            .set_if(field::ROOT_WORKFLOW_NAME, context.root_workflow_name());
        Self { shared: Some(attributes.own.into()), own: Vec::new() }
    }

    /// What is known of a run before it has a row.
    pub fn of_context(&mut self, context: &Context) -> &mut Self {
        self.set(field::WORKFLOW_NAME, context.workflow_name.as_str())
            .set_if(field::TARGET, context.target())
            .set_if(field::TARGET_TYPE, context.target_type.as_deref())
            .set_if(field::TARGET_OWNER, context.target_owner.as_deref())
            .set_if(field::TARGET_REPO, context.target_repo.as_deref())
            .set_if(field::TARGET_NUMBER, context.target_number)
            .set_if(field::DELIVERY_ID, context.delivery_id.as_deref())
    }

    /// All, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.shared().iter().chain(&self.own).map(|(key, value)| (*key, value))
    }

    /// What is shared with others of the run, first in the order.
    pub(crate) fn shared(&self) -> &[(&'static str, Value)] {
        self.shared.as_deref().unwrap_or_default()
    }

    /// The rest.
    pub(crate) fn own(&self) -> &[(&'static str, Value)] {
        &self.own
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find_map(|(known, value)| (known == key).then_some(value))
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Self) -> &mut Self {
        self.own.extend_from_slice(other.shared());
        self.own.extend(other.own);
        self
    }
}

impl PartialEq for Attributes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Attributes {}

/// What a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A run: SERVER (CI/CD semantic conventions for a pipeline run).
    Run,
    /// Its first wait: INTERNAL.
    Queue,
}

/// A finished span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its ids and flags.
    pub context: SpanContext,
    /// The span it is a child of, in the same trace.
    pub parent: Option<SpanId>,
    /// The run that it tells of.
    pub run: RunId,
    /// Its name.
    pub name: String,
    /// A run or a wait.
    pub kind: SpanKind,
    /// When it began.
    pub start: Timestamp,
    /// When it ended; never before it began.
    pub end: Timestamp,
    /// Its attributes.
    pub attributes: Attributes,
    /// Its events, oldest first.
    pub events: Vec<SpanEvent>,
    /// How many more events there were.
    pub dropped_events: u32,
    /// The span that caused the run.
    pub link: Option<SpanContext>,
    /// Set on a failed run: its reason, where there is one.
    pub error: Option<String>,
}

/// An event on a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanEvent {
    /// Which.
    pub event: Event,
    /// When.
    pub at: Timestamp,
    /// What is particular to it; the run's own attributes are the span's.
    pub attributes: Attributes,
}

/// A log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which event it tells of.
    pub event: Event,
    /// When that happened.
    pub at: Timestamp,
    /// How grave it is.
    pub level: Level,
    /// The run's span; absent on a refusal without a run in flight.
    pub context: Option<SpanContext>,
    /// The fields of the event.
    pub attributes: Attributes,
}

impl Record {
    /// One readable line that holds event and run (Loki deduplicates on time and line).
    pub fn body(&self) -> String {
        let text = |key| match self.attributes.get(key) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let mut body = self.event.name().to_owned();
        let mut say = |prefix: &str, text: Option<&str>| {
            if let Some(text) = text {
                body.push_str(prefix);
                body.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
            }
        };
        say(" ", text(field::WORKFLOW_NAME));
        say(" ", text(field::TARGET));
        say(" runId=", text(field::RUN_ID));
        say(" inflightRunId=", text(field::INFLIGHT_RUN_ID));
        say(" childRunId=", text(field::CHILD_RUN_ID));
        say(" outcome=", text(field::OUTCOME));
        if let Some(Value::Int(millis)) = self.attributes.get(field::DURATION_MS) {
            // Writing to a String cannot fail.
            let _ = write!(body, " durationMs={millis}");
        }
        if let Some(Value::Text(reason)) = self.attributes.get(field::REASON) {
            body.push_str(": ");
            body.extend(reason.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
        body
    }
}

impl Serialize for Record {
    /// A JSON line: `timestamp`, `level`, `event`, the fields, `trace_id`, `span_id`, `message`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry(field::TIMESTAMP, &self.at.to_string())?;
        line.serialize_entry(field::LEVEL, self.level.as_str())?;
        line.serialize_entry(field::EVENT, self.event.name())?;
        for (key, value) in self.attributes.iter() {
            line.serialize_entry(key, value)?;
        }
        if let Some(context) = &self.context {
            line.serialize_entry(field::TRACE_ID, &context.trace_id)?;
            line.serialize_entry(field::SPAN_ID, &context.span_id)?;
        }
        line.serialize_entry(field::MESSAGE, &self.body())?;
        line.end()
    }
}
