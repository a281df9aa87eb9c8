//! Converts fields to attributes: the one place that defines their keys and order.
//!
//! OTLP and the JSON line differ in form only. What every span and record of a run carries comes first and separately
//! ([`of_run`]), so that an encoder writes it once per run.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::event::{Child, RecordedEvent};
use super::output::{Detail, End, Record, Span, SpanKind, Subject};
use crate::journal::Context;
use crate::run::{RunId, Status};
use crate::semconv::{ErrorType, field};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<RunId> for Value<'_> {
    fn from(id: RunId) -> Self {
        Self::from(id.to_string())
    }
}

/// Attributes in a fixed order. An absent value is an absent key.
pub type Attributes<'a> = Vec<(&'static str, Value<'a>)>;

/// Adds to attributes.
trait Set<'a> {
    fn set(&mut self, key: &'static str, value: impl Into<Value<'a>>) -> &mut Self;
    fn set_if(&mut self, key: &'static str, value: Option<impl Into<Value<'a>>>) -> &mut Self;
}

impl<'a> Set<'a> for Attributes<'a> {
    fn set(&mut self, key: &'static str, value: impl Into<Value<'a>>) -> &mut Self {
        self.push((key, value.into()));
        self
    }

    fn set_if(&mut self, key: &'static str, value: Option<impl Into<Value<'a>>>) -> &mut Self {
        self.extend(value.map(|value| (key, value.into())));
        self
    }
}

/// What every span and record of `run` carries.
pub fn of_run(run: RunId, context: &Context) -> Attributes<'_> {
    let mut attributes = Attributes::with_capacity(12);
    attributes.set(field::RUN_ID, run);
    of_dispatch(&mut attributes, context);
    let parent = context.lineage.as_ref().map(|lineage| lineage.parent);
    attributes
        .set_if(field::PARENT_RUN_ID, parent)
        .set(field::ROOT_RUN_ID, context.root_of(run))
        .set_if(field::ROOT_WORKFLOW_NAME, context.root_workflow_name())
        .set_if(field::ROOT_DELIVERY_ID, context.root_delivery_id());
    attributes
}

/// What is known before a row exists.
fn of_dispatch<'a>(attributes: &mut Attributes<'a>, context: &'a Context) {
    attributes
        .set(field::WORKFLOW_NAME, context.workflow_name.as_str())
        .set_if(field::TARGET, context.target())
        .set_if(field::TARGET_TYPE, context.target_type.as_deref())
        .set_if(field::TARGET_OWNER, context.target_owner.as_deref())
        .set_if(field::TARGET_REPO, context.target_repo.as_deref())
        .set_if(field::TARGET_NUMBER, context.target_number)
        .set_if(field::DELIVERY_ID, context.delivery_id.as_deref());
}

fn of_child<'a>(attributes: &mut Attributes<'a>, child: &'a Child) {
    attributes
        .set(field::CHILD_RUN_ID, child.run)
        .set(field::CHILD_WORKFLOW_NAME, child.workflow_name.as_str());
}

fn how_it_ended(attributes: &mut Attributes<'_>, end: &End) {
    attributes
        .set(field::DURATION_MS, end.duration_ms)
        .set_if(field::QUEUE_WAIT_MS, end.queue_wait_ms)
        .set_if(field::EXECUTION_MS, end.execution_ms)
        .set(field::OUTCOME, end.outcome.as_str());
}

fn why_it_ended<'a>(attributes: &mut Attributes<'a>, end: &'a End) {
    attributes
        .set_if(field::ERROR_TYPE, end.error_type.map(ErrorType::as_str))
        .set_if(field::REASON, end.reason.as_deref());
}

fn reconciled(attributes: &mut Attributes<'_>, reconciled: bool) {
    attributes.extend(reconciled.then_some((field::RECONCILED, Value::Bool(true))));
}

impl Span {
    /// All of its attributes.
    pub fn attributes(&self) -> Attributes<'_> {
        let mut attributes = of_run(self.run, &self.context);
        attributes.extend(self.own_attributes());
        attributes
    }

    /// Its attributes except those [`of_run`].
    pub fn own_attributes(&self) -> Attributes<'_> {
        let mut attributes = Attributes::new();
        match &self.kind {
            SpanKind::Run(end) => {
                how_it_ended(&mut attributes, end);
                why_it_ended(&mut attributes, end);
            }
            SpanKind::Queue => {
                attributes.set(field::QUEUE_WAIT_MS, self.end.millis_since(self.start));
            }
        }
        attributes
    }

    /// The attributes of one of its events.
    pub fn event_attributes<'a>(&'a self, event: &'a RecordedEvent) -> Attributes<'a> {
        let mut attributes = Attributes::new();
        if let Some(child) = &event.child {
            of_child(&mut attributes, child);
        }
        if let SpanKind::Run(end) = &self.kind
            && event.event.is_end()
        {
            why_it_ended(&mut attributes, end);
        }
        reconciled(&mut attributes, event.reconciled);
        attributes
    }
}

impl Record {
    /// All of its attributes but the event's name.
    pub fn attributes(&self) -> Attributes<'_> {
        let mut attributes = match &self.subject {
            Subject::Run { run, context } => of_run(*run, context),
            Subject::EndedParent { .. } | Subject::Dispatch(_) => Attributes::new(),
        };
        attributes.extend(self.own_attributes());
        attributes
    }

    /// The same, where it has them without those [`of_run`].
    pub fn own_attributes(&self) -> Attributes<'_> {
        let mut attributes = Attributes::new();
        match &self.subject {
            Subject::Run { .. } => {}
            Subject::EndedParent { run, child } => {
                attributes
                    .set(field::RUN_ID, *run)
                    .set_if(field::WORKFLOW_NAME, self.workflow_name())
                    .set(field::ROOT_RUN_ID, child.root_of(*run))
                    .set_if(field::ROOT_WORKFLOW_NAME, child.root_workflow_name())
                    .set_if(
                        field::ROOT_DELIVERY_ID,
                        child.root_delivery_id().filter(|_| child.root_of(*run) != *run),
                    );
            }
            Subject::Dispatch(context) => of_dispatch(&mut attributes, context),
        }
        match &self.detail {
            Detail::None => {}
            Detail::HandedOff(child) => of_child(&mut attributes, child),
            Detail::End(end) => {
                how_it_ended(&mut attributes, end);
                why_it_ended(&mut attributes, end);
            }
            Detail::Completed(end) => how_it_ended(&mut attributes, end),
            Detail::Conflict { from, to } => {
                attributes
                    .set_if(field::FROM_STATUS, from.map(Status::as_str))
                    .set_if(field::TO_STATUS, to.map(Status::as_str));
            }
            Detail::Refusal { error_type, reason, inflight } => {
                attributes
                    .set(field::ERROR_TYPE, error_type.as_str())
                    .set_if(field::REASON, reason.as_deref())
                    .set_if(field::INFLIGHT_RUN_ID, inflight.map(|(run, _)| run));
            }
        }
        reconciled(&mut attributes, self.reconciled);
        attributes
    }

    /// One readable line that contains event and run (Loki deduplicates on time and line).
    pub fn body(&self) -> String {
        let mut body = self.event.name().to_owned();
        if let Some(workflow) = self.workflow_name() {
            push(&mut body, " ", workflow);
        }
        if let Subject::Run { context, .. } | Subject::Dispatch(context) = &self.subject
            && let Some(target) = context.target()
        {
            push(&mut body, " ", &target);
        }
        let (mut child, mut inflight, mut end, mut reason) = (None, None, None, None);
        match &self.detail {
            Detail::None | Detail::Conflict { .. } => {}
            Detail::HandedOff(handed_off) => child = Some(handed_off.run),
            Detail::End(how) => (end, reason) = (Some(how), how.reason.as_deref()),
            Detail::Completed(how) => end = Some(how),
            Detail::Refusal { reason: why, inflight: other, .. } => {
                (inflight, reason) = (other.map(|(run, _)| run), why.as_deref());
            }
        }
        // Writing to a String cannot fail.
        for (key, id) in [("runId", self.run()), ("inflightRunId", inflight), ("childRunId", child)] {
            let _ = id.map_or(Ok(()), |id| write!(body, " {key}={id}"));
        }
        if let Some(End { outcome, duration_ms, .. }) = end.map(AsRef::as_ref) {
            let _ = write!(body, " outcome={outcome} durationMs={duration_ms}");
        }
        if let Some(reason) = reason {
            push(&mut body, ": ", reason);
        }
        body
    }
}

/// Appends `text` on the same line.
fn push(line: &mut String, prefix: &str, text: &str) {
    line.push_str(prefix);
    line.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
}

impl Serialize for Record {
    /// A JSON line: `timestamp`, `level`, `event`, the fields, `trace_id`, `span_id`, `message`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry(field::TIMESTAMP, &self.at.to_string())?;
        line.serialize_entry(field::LEVEL, self.level().as_str())?;
        line.serialize_entry(field::EVENT, self.event.name())?;
        for (key, value) in self.attributes() {
            line.serialize_entry(key, &value)?;
        }
        if let Some(context) = self.span_context() {
            line.serialize_entry(field::TRACE_ID, &context.trace_id)?;
            line.serialize_entry(field::SPAN_ID, &context.span_id)?;
        }
        line.serialize_entry(field::MESSAGE, &self.body())?;
        line.end()
    }
}
