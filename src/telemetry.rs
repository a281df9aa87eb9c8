//! What this process tells of itself: JSON lines, and spans that nest under the runs it works on.
use crate::run::RunId;
use crate::trace_context::SpanContext;
/// tmp
pub fn run_span(run: RunId, _root: RunId) -> tracing::Span {
    tracing::info_span!("workflow.run.handler", runId = %run, workflowName = tracing::field::Empty, target = tracing::field::Empty, deliveryId = tracing::field::Empty)
}
/// tmp
pub fn outgoing(run: RunId, root: RunId) -> String {
    SpanContext::of_run(run, root).to_string()
}
