//! Log lines: one JSON object per event, in the field order of the relay's event lines.
//!
//! `timestamp` and `level`; the fields of the enclosing spans, outermost first, and of the event, where the innermost of
//! one name wins; `trace_id` and `span_id`; `message`. So a line leads to its run and to its span in a trace.

use std::error::Error;
use std::fmt::Debug;
use std::io::Write as _;

use chrono::{SecondsFormat, Utc};
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use serde::Serializer as _;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::semconv::field;

/// A layer that writes the lines.
pub(super) struct JsonLog<W>(W);

impl<W> JsonLog<W> {
    pub(super) fn to(writer: W) -> Self {
        Self(writer)
    }
}

impl<S, W> Layer<S> for JsonLog<W>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = context.span(id).expect("the registry has every span that it reports");
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let span = context.span(id).expect("the registry has every span that it reports");
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                of_span.0.iter().for_each(|(key, value)| fields.set(key, value.clone()));
            }
        }
        event.record(&mut fields);
        // The OpenTelemetry layer keeps the context of the entered span as the current one.
        Context::map_current(|current| {
            let span = current.span();
            let context = span.span_context();
            if context.is_valid() {
                fields.set(field::TRACE_ID, context.trace_id().to_string().into());
                fields.set(field::SPAN_ID, context.span_id().to_string().into());
            }
        });
        let mut line = fields.line(event);
        line.push(b'\n');
        // There is nowhere to report that standard output fails.
        let _ = self.0.make_writer_for(event.metadata()).write_all(&line);
    }
}

/// Fields in insertion order. They are few: a linear search is cheaper than a map.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn set(&mut self, key: &'static str, value: Value) {
        // `otel.name` and similar fields are instructions for the OpenTelemetry layer.
        if key.starts_with("otel.") {
            return;
        }
        match self.0.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, existing)) => *existing = value,
            None => self.0.push((key, value)),
        }
    }

    fn line(mut self, event: &Event<'_>) -> Vec<u8> {
        let mut take = |key| {
            let at = self.0.iter().position(|(existing, _)| *existing == key)?;
            Some((key, self.0.remove(at).1))
        };
        // These three are reserved: a field of the same name does not override them.
        let (_, _, message) = (take(field::TIMESTAMP), take(field::LEVEL), take(field::MESSAGE));
        let ids = [take(field::TRACE_ID), take(field::SPAN_ID)];
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let entries = [(field::TIMESTAMP, now.into()), (field::LEVEL, level.into())]
            .into_iter()
            .chain(self.0)
            .chain(ids.into_iter().flatten())
            .chain(message);
        let mut line = Vec::new();
        serde_json::Serializer::new(&mut line)
            .collect_map(entries)
            .expect("text keys and JSON values, written to memory");
        line
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field.name(), value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of some work, without their beginning, the timestamp.
    fn lines(work: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLog::to(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let without_time = |line: &str| {
            let (time, rest) = line.split_once(',').unwrap();
            assert!(time.starts_with("{\"timestamp\":\"20") && time.ends_with("Z\""), "{line}");
            serde_json::from_str::<Value>(line).unwrap();
            rest.to_owned()
        };
        text.lines().map(without_time).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_line_names_its_run_and_span() {
        let run = "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d".parse().unwrap();
        let lines = lines(|| {
            let span = super::super::run_span(run, run);
            span.record("otel.name", "triage");
            span.record("workflowName", "triage");
            span.in_scope(|| {
                tracing::info_span!("fetch", attempt = 2)
                    .in_scope(|| tracing::warn!(ms = 1.5, ok = true, "slow"));
            });
            tracing::debug!("idle\nand \"quoted\"");
        });
        insta::assert_snapshot!(lines, @r#"
        "level":"warn","runId":"0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d","workflowName":"triage","attempt":2,"ms":1.5,"ok":true,"trace_id":"0190a5d47d3c7cc18b6a0d2f3a4b5c6d","message":"slow"}
        "level":"debug","message":"idle\nand \"quoted\""}
        "#);
    }

    #[test]
    fn keys_are_unique() {
        let lines = lines(|| {
            tracing::info_span!("outer", runId = "outer", level = "high", n = 1).in_scope(|| {
                let failed = io::Error::other("disk full");
                tracing::error!(runId = "inner", timestamp = 0, error = &failed as &(dyn Error + 'static));
            });
        });
        insta::assert_snapshot!(lines, @r#""level":"error","runId":"inner","n":1,"error":"disk full"}"#);
    }
}
