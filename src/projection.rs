//! Projects journal entries to spans, records and increments of the series. Pure: no clock, no I/O, and no order but the
//! journal's.
//!
//! A span needs a run's beginning and its end, which different processes write, in any number of batches. So the
//! projection carries what it knows of a run from one batch to the next, and where a batch ends changes nothing.
//!
//! Three rules are not obvious:
//!
//! - The first end stands. A later change is a `conflict`: a record and a count. A row that is in flight again after
//!   its end leaves a tombstone, so that its second end makes no second span.
//! - The journal is fail-open, so entries may be missing. Each carries its run's context, and a run whose beginning is
//!   unknown is opened by the first entry that names it.
//! - A reconciled entry states the past, and was made while others were under way. It counts only where it still
//!   adds something.

mod event;
mod attributes;
mod output;
#[cfg(test)]
mod tests;
mod tracked;
mod warning;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::attributes::{Attributes, Value, of_run as run_attributes};
pub use self::event::{Child, RecordedEvent};
pub use self::output::{Detail, End, Record, Span, SpanKind, Subject};
pub use self::tracked::{MAX_EVENTS, OpenRun, Tombstone, Tracked, Wait};
pub use self::warning::Warning;

use crate::journal::{After, Before, Change, Context, Entry};
use crate::redact;
use crate::run::{Outcome, RunId, Status, Timestamp, Transition};
use crate::semconv::{ErrorType, Event};
use crate::series::{Buckets, Key, Totals};
use crate::trace_context::SpanContext;

/// How to project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The buckets of the series' histograms.
    pub buckets: Buckets,
    /// How long before its INSERT a run may have been created. An earlier `created_at` is not believed.
    pub max_backdating: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { buckets: Buckets::default(), max_backdating: Duration::from_hours(7 * 24) }
    }
}

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Projected {
    /// Spans to send: of runs that ended, and of waits that ended.
    pub spans: Vec<Span>,
    /// Records to send, in the order of the journal.
    pub records: Vec<Record>,
    /// Tracked runs that are new or changed.
    pub opened: Vec<(RunId, Tracked)>,
    /// Runs that were tracked before the batch and are no longer.
    pub closed: Vec<RunId>,
    /// Increments of the series.
    pub totals: Totals,
    /// What somebody should know about the entries.
    pub warnings: Vec<Warning>,
}

/// Projects `entries`, in the journal's order. `tracked` are the runs that they and their parents belong to, as far as
/// earlier batches left any.
pub fn project(
    tracked: HashMap<RunId, Tracked>,
    entries: impl IntoIterator<Item = Entry>,
    settings: &Settings,
) -> Projected {
    let mut projection = Projection {
        settings,
        runs: Runs::new(tracked),
        warnings: Vec::new(),
        output: Output {
            spans: Vec::new(),
            records: Vec::new(),
            totals: Totals::new(settings.buckets.clone()),
        },
    };
    for entry in entries {
        projection.apply(entry);
    }
    let Projection { settings: _, runs, output: Output { spans, records, totals }, warnings } = projection;
    let (opened, closed) = runs.finish();
    Projected { spans, records, opened, closed, totals, warnings }
}

struct Projection<'a> {
    settings: &'a Settings,
    runs: Runs,
    output: Output,
    warnings: Vec<Warning>,
}

/// One transition of one run, with the rest of its entry.
struct Step {
    run: RunId,
    from: Before,
    /// `None`: the row is deleted.
    to: Option<Status>,
    at: Timestamp,
    created_at: Option<Timestamp>,
    link: Option<SpanContext>,
    reason: Option<String>,
    reconciled: bool,
}

impl Projection<'_> {
    fn apply(&mut self, entry: Entry) {
        let Entry { at, reconciled, context, reason, change } = entry;
        match change {
            Change::Refusal { inflight } => self.output.refusal(at, context, reason.as_deref(), inflight),
            Change::Transition { run, from, to, created_at, link } => {
                let to = match to {
                    After::Known(status) => Some(status),
                    After::Deleted => None,
                    // A run that has begun stays as it was, one that has not has yet to begin.
                    After::Unknown(status) => {
                        let workflow = context.workflow_name;
                        return self.warnings.push(Warning::UnknownStatus { status, run, workflow });
                    }
                };
                self.transition(&Step { run, from, to, at, created_at, link, reason, reconciled }, context);
            }
        }
    }

    fn transition(&mut self, step: &Step, context: Context) {
        let known = self.runs.get(step.run);
        if step.reconciled && !is_news(step, known) {
            return;
        }
        let before = match (step.from, known) {
            (Before::Known(status), _) => Some(status),
            // The row of a tracked run is inserted again: its deletion was missed. Or the run was in a status of the application's own, in which it stayed what it was.
            (Before::Absent | Before::Unknown, Some(known)) => Some(known.status()),
            (Before::Absent, None) => None,
            // Not begun, unless this ends it: then the journal has missed its beginning.
            (Before::Unknown, None) => step.to.filter(|to| to.outcome().is_some()).map(|_| Status::Running),
        };
        let has_ended = matches!(known, Some(Tracked::Ended(_)));
        match Transition::between(before, step.to) {
            Transition::Nothing => {}
            Transition::AfterEnd => {
                if let Some(outcome) = before.and_then(Status::outcome)
                    && let Some(open) = self.runs.close(step.run)
                {
                    // The journal missed this run's end; the row knows how it ended, not when or why.
                    self.end(step, before, open, outcome, None, true);
                }
                self.conflict(step, before, context);
            }
            _ if has_ended => self.conflict(step, before, context),
            Transition::Queued => self.enter(step, context, Status::Queued, Event::Queued),
            Transition::Running => self.enter(step, context, Status::Running, Event::Running),
            Transition::Ended(outcome) => {
                let open = self.runs.close(step.run).unwrap_or_else(|| self.begin(step, context));
                self.end(step, before, open, outcome, step.reason.as_deref(), step.reconciled);
            }
        }
    }

    /// A run seen for the first time: queued, by its parent if it has one.
    fn begin(&mut self, step: &Step, mut context: Context) -> OpenRun {
        // The parent's root is the true one, however long the chain is and whatever became of its rows.
        if let Some(lineage) = &mut context.lineage
            && let Some(Tracked::Open(parent)) = self.runs.get(lineage.parent)
        {
            *lineage = parent.context.lineage_of_child(lineage.parent);
        }
        let wait = match step.from {
            Before::Known(Status::Queued) => Wait::Waiting,
            _ if step.begins() => Wait::Waiting,
            _ => Wait::Unknown,
        };
        let reconciled = step.reconciled || !step.begins();
        let queued_at = step.queued_at(self.settings.max_backdating).unwrap_or_else(|| {
            let (workflow, created_at) = (context.workflow_name.clone(), step.created_at);
            self.warnings.push(Warning::CreatedAt { workflow, run: step.run, created_at, at: step.at });
            step.at
        });
        let mut open = OpenRun::new(Arc::new(context), queued_at, wait, step.link);
        self.output.event(step.run, &mut open, Event::Queued, queued_at, reconciled);
        if let Some(lineage) = &open.context.lineage {
            let child = Child { run: step.run, workflow_name: open.context.workflow_name.clone() };
            // The parent handed off when it inserted the row, whenever the child says that it was created.
            let handed_off_at = if reconciled { queued_at } else { step.at };
            self.hand_off(lineage.parent, child, &open.context, handed_off_at, reconciled);
        }
        open
    }

    /// The run takes a state in which it is in flight.
    fn enter(&mut self, step: &Step, context: Context, status: Status, event: Event) {
        let is_new = self.runs.get(step.run).is_none();
        if is_new {
            let open = self.begin(step, context);
            self.runs.set(step.run, Some(Tracked::Open(open)));
        }
        let Some(open) = self.runs.open_mut(step.run) else { return };
        open.status = status;
        if is_new && step.begins() && status == Status::Queued {
            // Its beginning is recorded.
            return;
        }
        let at = open.clamp(step.at);
        self.output.event(step.run, open, event, at, step.reconciled);
        if (status, open.wait) == (Status::Running, Wait::Waiting) {
            open.wait = Wait::Ended(at);
            self.output.waited(step.run, open, at);
        }
    }

    /// The parent's `handed_off`: an event of its span if that is still open, and always a record.
    fn hand_off(
        &mut self,
        parent: RunId,
        child: Child,
        context: &Arc<Context>,
        at: Timestamp,
        reconciled: bool,
    ) {
        let event = Event::HandedOff;
        let (at, subject) = match self.runs.open_mut(parent) {
            Some(open) => {
                let at = open.clamp(at);
                open.add(RecordedEvent { event, at, child: Some(child.clone()), reconciled });
                (at, Subject::Run { run: parent, context: Arc::clone(&open.context) })
            }
            None => (at, Subject::EndedParent { run: parent, child: Arc::clone(context) }),
        };
        self.output.record(Record { event, at, subject, detail: Detail::HandedOff(child), reconciled });
    }

    fn end(
        &mut self,
        step: &Step,
        before: Option<Status>,
        mut open: OpenRun,
        outcome: Outcome,
        reason: Option<&str>,
        reconciled: bool,
    ) {
        let run = step.run;
        let at = open.clamp(step.at);
        if (open.wait, step.from) == (Wait::Waiting, Before::Known(Status::Running)) {
            // The journal missed that it began to run.
            open.wait = Wait::Unknown;
        }
        let (queue_wait_ms, execution_ms) = match open.wait {
            Wait::Waiting => {
                self.output.waited(run, &open, at);
                (Some(at.millis_since(open.queued_at)), None)
            }
            Wait::Ended(began) => {
                let key = Key::execution_duration(&open.context.workflow_name, outcome);
                self.output.observe(key, run, &open.context, began, at);
                (Some(began.millis_since(open.queued_at)), Some(at.millis_since(began)))
            }
            Wait::Unknown => (None, None),
        };
        let has_reason = matches!(outcome, Outcome::Failed | Outcome::Incomplete);
        let end = Arc::new(End {
            outcome,
            duration_ms: at.millis_since(open.queued_at),
            queue_wait_ms,
            execution_ms,
            // Classified before it is redacted and cut.
            error_type: (outcome == Outcome::Failed).then(|| ErrorType::of_failure(reason)),
            reason: reason.filter(|_| has_reason).map(redact::reason),
        });

        let never_published =
            before == Some(Status::Queued) && end.error_type == Some(ErrorType::EnqueueFailed);
        let ending = never_published.then_some(Event::EnqueueFailed).into_iter();
        let ending = ending.chain([Event::of_outcome(outcome)]);
        let subject = Subject::Run { run, context: Arc::clone(&open.context) };
        let details = ending
            .clone()
            .map(|event| (event, Detail::End(Arc::clone(&end))))
            .chain([(Event::Completed, Detail::Completed(Arc::clone(&end)))]);
        for (event, detail) in details {
            self.output.record(Record { event, at, subject: subject.clone(), detail, reconciled });
        }
        let key = Key::duration(&open.context.workflow_name, outcome, end.error_type);
        self.output.observe(key, run, &open.context, open.queued_at, at);
        let last_events = ending.map(|event| RecordedEvent { event, at, child: None, reconciled });
        self.output.spans.push(open.into_span(run, end, last_events));
    }

    /// A transition after the end: recorded, and if the row is in flight again, remembered.
    fn conflict(&mut self, step: &Step, from: Option<Status>, context: Context) {
        let &Step { run, at, to, reconciled, .. } = step;
        // The entry's own context, which may differ from the run's.
        let context = Arc::new(context);
        self.output.record(Record {
            event: Event::Conflict,
            at,
            subject: Subject::Run { run, context: Arc::clone(&context) },
            detail: Detail::Conflict { from, to },
            reconciled,
        });
        let in_flight = to.filter(|status| status.outcome().is_none());
        self.runs.set(run, in_flight.map(|status| Tracked::Ended(Tombstone { context, status, at })));
    }
}

/// How long before its first entry a run may have been created whose INSERT the journal missed. Many clocks and languages
/// have a zero that is decades ago: it must not count as a duration.
const MAX_AGE: Duration = Duration::from_hours(365 * 24);

/// How far ahead of the database's clock the application's may be without a warning.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

impl Step {
    /// Whether the run begins with this step: its row is inserted, or leaves a status of the application's own for the first
    /// that runspan knows.
    fn begins(&self) -> bool {
        let is_in_flight = self.to.is_some_and(|to| to.outcome().is_none());
        self.from == Before::Absent || (self.from == Before::Unknown && is_in_flight)
    }

    /// When a run was queued that this step shows for the first time. The entry's own time is the database's;
    /// `created_at` is written by the application, and may only move the beginning back. `None`: it is absent, or cannot be
    /// when the run was created.
    fn queued_at(&self, max_backdating: Duration) -> Option<Timestamp> {
        let earliest = match self.from {
            Before::Unknown if self.begins() => return Some(self.at),
            Before::Absent if !self.reconciled => self.at.minus(max_backdating),
            _ => self.at.minus(MAX_AGE),
        };
        match self.created_at {
            Some(created_at) if (earliest..=self.at).contains(&created_at) => Some(created_at),
            Some(created_at) if created_at > self.at && created_at.minus(CLOCK_SKEW) <= self.at => {
                Some(self.at)
            }
            _ => None,
        }
    }
}

/// Whether a reconciled entry adds something to what the journal has recorded meanwhile.
fn is_news(step: &Step, known: Option<&Tracked>) -> bool {
    match (step.from, known) {
        (Before::Absent, known) => known.is_none(),
        (Before::Known(from), Some(known)) => known.status() == from,
        _ => false,
    }
}

struct Output {
    spans: Vec<Span>,
    records: Vec<Record>,
    totals: Totals,
}

impl Output {
    /// Records and counts an event.
    fn record(&mut self, record: Record) {
        self.totals.count(Key::events(record.workflow_name(), record.event, record.error_type()));
        self.records.push(record);
    }

    /// An event of a run in flight: on its span and as a record.
    fn event(&mut self, run: RunId, open: &mut OpenRun, event: Event, at: Timestamp, reconciled: bool) {
        open.add(RecordedEvent { event, at, child: None, reconciled });
        let subject = Subject::Run { run, context: Arc::clone(&open.context) };
        self.record(Record { event, at, subject, detail: Detail::None, reconciled });
    }

    /// The first wait ended.
    fn waited(&mut self, run: RunId, open: &OpenRun, at: Timestamp) {
        self.spans.push(open.queue_span(run, at));
        let key = Key::queue_duration(&open.context.workflow_name);
        self.observe(key, run, &open.context, open.queued_at, at);
    }

    /// Measures from `from` to `to`.
    fn observe(&mut self, key: Key, run: RunId, context: &Context, from: Timestamp, to: Timestamp) {
        let micros = to.micros().saturating_sub(from.micros());
        self.totals.observe(key, micros, to, SpanContext::of_run(run, context.root_of(run)));
    }

    fn refusal(
        &mut self,
        at: Timestamp,
        context: Context,
        reason: Option<&str>,
        inflight: Option<(RunId, RunId)>,
    ) {
        let detail = Detail::Refusal {
            error_type: ErrorType::of_refusal(reason),
            reason: reason.map(redact::reason),
            inflight,
        };
        let subject = Subject::Dispatch(Arc::new(context));
        self.record(Record { event: Event::DispatchRefused, at, subject, detail, reconciled: false });
    }
}

/// The runs of a batch.
struct Runs(HashMap<RunId, Slot>);

/// A run during a batch.
struct Slot {
    now: Option<Tracked>,
    is_stored: bool,
    is_changed: bool,
}

impl Runs {
    fn new(stored: HashMap<RunId, Tracked>) -> Self {
        let slot = |run| Slot { now: Some(run), is_stored: true, is_changed: false };
        Self(stored.into_iter().map(|(id, run)| (id, slot(run))).collect())
    }

    fn get(&self, run: RunId) -> Option<&Tracked> {
        self.0.get(&run)?.now.as_ref()
    }

    /// A run in flight, to be changed.
    fn open_mut(&mut self, run: RunId) -> Option<&mut OpenRun> {
        let slot = self.0.get_mut(&run)?;
        match &mut slot.now {
            Some(Tracked::Open(open)) => {
                slot.is_changed = true;
                Some(open)
            }
            Some(Tracked::Ended(_)) | None => None,
        }
    }

    /// Ends a run in flight.
    fn close(&mut self, run: RunId) -> Option<OpenRun> {
        match self.0.get_mut(&run)?.now.take_if(|tracked| matches!(tracked, Tracked::Open(_))) {
            Some(Tracked::Open(open)) => Some(open),
            Some(Tracked::Ended(_)) | None => None,
        }
    }

    fn set(&mut self, run: RunId, now: Option<Tracked>) {
        let slot = self.0.entry(run).or_insert(Slot { now: None, is_stored: false, is_changed: true });
        slot.now = now;
        slot.is_changed = true;
    }

    /// What to store and what to remove, in an order that is no map's.
    fn finish(self) -> (Vec<(RunId, Tracked)>, Vec<RunId>) {
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for (run, slot) in self.0 {
            match slot.now {
                Some(tracked) if slot.is_changed => opened.push((run, tracked)),
                None if slot.is_stored => closed.push(run),
                _ => {}
            }
        }
        opened.sort_unstable_by_key(|(run, _)| *run);
        closed.sort_unstable();
        (opened, closed)
    }
}
