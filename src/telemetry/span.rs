//! The run span as the remote parent of handler spans, in this process and in those that it calls.
//!
//! The ids follow from the run's id, so a handler can be a child of a span that the relay emits only when the run ends.

use opentelemetry::Context;
use opentelemetry::trace::{self, TraceContextExt as _, TraceFlags, TraceState};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::run::RunId;
use crate::semconv::field;
use crate::trace_context::SpanContext;

/// A span for the handler of `run`, whose root is `root` (the run itself if it has no parent): a child of the run span.
/// Without an OpenTelemetry layer it is an ordinary `tracing` span.
///
/// `workflowName`, `target`, `deliveryId` and `otel.name`, the displayed name, are empty until recorded:
///
/// ```
/// # let run: runspan::run::RunId = "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d".parse()?;
/// let span = runspan::run_span(run, run);
/// span.record("workflowName", "triage");
/// span.in_scope(|| tracing::info!("at work")); // or, for a future, tracing::Instrument
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run_span(run: RunId, root: RunId) -> Span {
    let context = SpanContext::of_run(run, root);
    let span = tracing::info_span!(
        parent: None,
        "workflow.run.handler",
        otel.name = Empty,
        { field::RUN_ID } = %run,
        { field::WORKFLOW_NAME } = Empty,
        { field::TARGET } = Empty,
        { field::DELIVERY_ID } = Empty,
        { field::TRACE_ID } = %context.trace_id,
    );
    // It fails if the subscriber does not record the span, which then needs no parent.
    let _ = span.set_parent(remote(context));
    span
}

/// The W3C `traceparent` header of the run span of `run`, for processes that create child spans of it.
///
/// ```
/// let run = "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d".parse()?;
/// assert_eq!(runspan::traceparent(run, run), "00-0190a5d47d3c7cc18b6a0d2f3a4b5c6d-8b6a0d2f3a4b5c6d-03");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn traceparent(run: RunId, root: RunId) -> String {
    SpanContext::of_run(run, root).to_string()
}

/// The `traceparent` for a call by the handler of `run`: that of the current span, so that the callee's spans are its
/// children, or that of the run span if there is no OpenTelemetry layer.
pub fn outgoing_traceparent(run: RunId, root: RunId) -> String {
    let context = Span::current().context();
    let span = context.span();
    let current = span.span_context();
    if current.is_valid() {
        format!("00-{}-{}-{:02x}", current.trace_id(), current.span_id(), current.trace_flags())
    } else {
        traceparent(run, root)
    }
}

fn remote(context: SpanContext) -> Context {
    Context::new().with_remote_span_context(trace::SpanContext::new(
        trace::TraceId::from_bytes(context.trace_id.bytes()),
        trace::SpanId::from_bytes(context.span_id.bytes()),
        TraceFlags::new(context.flags),
        true,
        TraceState::NONE,
    ))
}

/// Compiles and runs the examples of this page.
#[cfg(doctest)]
#[doc = include_str!("../../docs/traceparent.md")]
struct DocsOfTraceparent;
