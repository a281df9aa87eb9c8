//! Entries and open runs in; spans, records and what they add to the series out. Pure: no clock, no I/O, no order but the journal's.
//!
//! The rules that are not plain at sight:
//!
//! - The first end stands. What follows it is a `conflict`: a record and a count. A row that came back to life
//!   leaves a mark among the open runs, so that its second end is no second span.
//! - The journal may have missed entries (it is fail-open). An entry carries its run's context, so a run whose
//!   beginning is unknown is opened from whichever entry tells of it first.
//! - A reconciled entry is a statement about the past, made while others may have been on their way. It counts
//!   only where it still says something new.

mod open_run;
mod output;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use self::open_run::{Child, MAX_EVENTS, OpenRun, Wait};
pub use self::output::{Attributes, Record, Span, SpanEvent, SpanKind, Value};

use crate::journal::{Before, Change, Context, Entry};
use crate::redact;
use crate::run::{Outcome, RunId, Status, Timestamp, Transition};
use crate::semconv::{ErrorType, Event, field};
use crate::series::{Buckets, Key, Totals};
use crate::trace_context::SpanContext;

/// What a batch of entries comes to.
#[derive(Debug, Default)]
pub struct Projected {
    /// Spans to send: runs that ended, waits that ended.
    pub spans: Vec<Span>,
    /// Records to send, in the order of the journal.
    pub records: Vec<Record>,
    /// Open runs that are new or changed.
    pub opened: Vec<(RunId, OpenRun)>,
    /// Runs that were open before the batch and are no longer.
    pub closed: Vec<RunId>,
    /// What the batch adds to the series.
    pub totals: Totals,
}

/// Projects `entries`, in the journal's order, over the open runs that they belong to (and their parents). The
/// series' histograms are in `buckets`.
pub fn project(
    open: HashMap<RunId, OpenRun>,
    entries: impl IntoIterator<Item = Entry>,
    buckets: Buckets,
) -> Projected {
    let mut projection = Projection {
        runs: open.into_iter().map(|(id, run)| (id, Slot { now: Some(run), ..Slot::STORED })).collect(),
        spans: Vec::new(),
        records: Vec::new(),
        totals: Totals::new(buckets),
        said_of: HashMap::new(),
    };
    for entry in entries {
        projection.apply(entry);
    }
    projection.finish()
}

/// A run during a batch.
struct Slot {
    now: Option<OpenRun>,
    stored: bool,
    changed: bool,
}

impl Slot {
    const STORED: Self = Self { now: None, stored: true, changed: false };
    const NEW: Self = Self { now: None, stored: false, changed: true };
}

struct Projection {
    runs: HashMap<RunId, Slot>,
    spans: Vec<Span>,
    records: Vec<Record>,
    totals: Totals,
    /// What is said of each run in all its spans and records.
    said_of: HashMap<RunId, Attributes>,
}

/// One transition of one run, with what the entry says around it.
struct Step {
    run: RunId,
    from: Before,
    to: Option<Status>,
    at: Timestamp,
    created_at: Timestamp,
    link: Option<SpanContext>,
    reason: Option<String>,
    reconciled: bool,
}

impl Projection {
    fn apply(&mut self, entry: Entry) {
        let Entry { at, reconciled, context, reason, change } = entry;
        match change {
            Change::Refusal { inflight } => self.refusal(at, &context, reason.as_deref(), inflight),
            Change::Transition { run, from, to, created_at, link } => {
                self.transition(Step { run, from, to, at, created_at, link, reason, reconciled }, context);
            }
        }
    }

    fn transition(&mut self, step: Step, context: Context) {
        let known = self.take(step.run);
        if step.reconciled && !says_something_new(&step, known.as_ref()) {
            self.keep(step.run, known, false);
            return;
        }
        let before = match (step.from, &known) {
            (Before::Known(status), _) => Some(status),
            // The row of a run that is open is inserted again: its deletion was missed.
            (Before::Absent, Some(open)) => Some(open.status),
            (Before::Absent, None) => None,
            // In flight in a state of the application's own: whatever it becomes is a change.
            (Before::Unknown, _) if step.to == Some(Status::Running) => Some(Status::Queued),
            (Before::Unknown, _) => Some(Status::Running),
        };
        let over = known.as_ref().is_some_and(|open| open.over);
        match Transition::between(before, step.to) {
            Transition::Nothing => self.keep(step.run, known, false),
            Transition::AfterEnd => {
                let ended = before.and_then(Status::outcome);
                if let (Some(open), Some(outcome), false) = (known, ended, over) {
                    // The journal missed this run's end; the row remembers how it ended, not when or why.
                    let missed = Step { reason: None, reconciled: true, link: None, ..step };
                    self.end(&missed, open, outcome);
                }
                self.conflict(&step, before, context);
            }
            _ if over => self.conflict(&step, before, context),
            Transition::Queued => {
                let open = self.opened(&step, known, context);
                self.enter(&step, open, Status::Queued, Event::Queued);
            }
            Transition::Running => {
                let open = self.opened(&step, known, context);
                self.enter(&step, open, Status::Running, Event::Running);
            }
            Transition::Ended(outcome) => {
                let open = self.opened(&step, known, context);
                self.end(&step, open, outcome);
            }
        }
    }

    /// The open run, or a new one with its `queued` event, told to its parent.
    fn opened(&mut self, step: &Step, known: Option<OpenRun>, context: Context) -> OpenRun {
        if let Some(open) = known {
            return open;
        }
        let inserted = step.from == Before::Absent;
        let wait = match step.from {
            Before::Absent | Before::Known(Status::Queued) => Wait::Waiting,
            Before::Known(_) | Before::Unknown => Wait::Unknown,
        };
        let reconciled = step.reconciled || !inserted;
        self.said_of.remove(&step.run);
        let mut open = OpenRun::new(context, step.created_at, wait, step.link);
        let queued_at = open.queued_at;
        self.happened(step.run, &mut open, Event::Queued, queued_at, reconciled);
        if let Some(lineage) = open.context.lineage.clone() {
            let child = Child { run: step.run, workflow_name: open.context.workflow_name.clone() };
            self.handed_off(lineage.parent, child, &open.context, queued_at, reconciled);
        }
        open
    }

    /// The run takes a state in which it is still in flight.
    fn enter(&mut self, step: &Step, mut open: OpenRun, status: Status, event: Event) {
        let first = step.from == Before::Absent && status == Status::Queued && open.status == Status::Queued;
        open.status = status;
        // `opened` has told of the queued state that a run begins with.
        if !first {
            let at = open.clamp(step.at);
            self.happened(step.run, &mut open, event, at, step.reconciled);
            if (status, open.wait) == (Status::Running, Wait::Waiting) {
                open.wait = Wait::Ended(at);
                self.waited(step.run, &open, at);
            }
        }
        self.keep(step.run, Some(open), true);
    }

    /// The first wait ended.
    fn waited(&mut self, run: RunId, open: &OpenRun, at: Timestamp) {
        let attributes = self.said_of(run, &open.context);
        self.spans.push(open.queue_span(run, attributes, at));
        let key = Key::queue_duration(&open.context.workflow_name);
        self.observe(key, run, &open.context, open.queued_at, at);
    }

    /// Measures from `from` to `to`.
    fn observe(&mut self, key: Key, run: RunId, context: &Context, from: Timestamp, to: Timestamp) {
        let micros = to.micros().saturating_sub(from.micros());
        self.totals.observe(key, micros, to, SpanContext::of_run(run, context.root_of(run)));
    }

    /// Notes an event of a run in flight, and records it.
    fn happened(&mut self, run: RunId, open: &mut OpenRun, event: Event, at: Timestamp, reconciled: bool) {
        open.note(event, at, None, reconciled);
        self.record(event, at, run, &open.context, Attributes::default(), None, reconciled);
    }

    /// The parent's `handed_off`: on its span if that is still open, as a record in any case.
    fn handed_off(&mut self, parent: RunId, child: Child, from: &Context, at: Timestamp, reconciled: bool) {
        let attributes = child.attributes();
        match self.take(parent) {
            Some(mut open) if !open.over => {
                let at = open.clamp(at);
                open.note(Event::HandedOff, at, Some(child), reconciled);
                self.record(Event::HandedOff, at, parent, &open.context, attributes, None, reconciled);
                self.keep(parent, Some(open), true);
            }
            ended => {
                self.keep(parent, ended, false);
                let record = handed_off_after_end(parent, &attributes, from, at, reconciled);
                let workflow = match record.attributes.get(field::WORKFLOW_NAME) {
                    Some(Value::Text(name)) => Some(name.as_str()),
                    _ => None,
                };
                self.totals.count(Key::events(workflow, record.event, None));
                self.records.push(record);
            }
        }
    }

    fn end(&mut self, step: &Step, mut open: OpenRun, outcome: Outcome) {
        let run = step.run;
        let at = open.clamp(step.at);
        let ran_unseen = open.wait == Wait::Waiting && step.from == Before::Known(Status::Running);
        if ran_unseen {
            open.wait = Wait::Unknown;
        }
        let mut own = Attributes::default();
        own.set(field::DURATION_MS, at.millis_since(open.queued_at));
        match open.wait {
            Wait::Waiting => {
                own.set(field::QUEUE_WAIT_MS, at.millis_since(open.queued_at));
                self.waited(run, &open, at);
            }
            Wait::Ended(began) => {
                own.set(field::QUEUE_WAIT_MS, began.millis_since(open.queued_at))
                    .set(field::EXECUTION_MS, at.millis_since(began));
                let key = Key::execution_duration(&open.context.workflow_name, outcome);
                self.observe(key, run, &open.context, began, at);
            }
            Wait::Unknown => {}
        }
        own.set(field::OUTCOME, outcome.as_str());
        let mut why = Attributes::default();
        let reason = match outcome {
            Outcome::Failed | Outcome::Incomplete => step.reason.as_deref().map(redact::reason),
            Outcome::Succeeded | Outcome::Deleted => None,
        };
        // Classified before it is redacted and cut.
        let error_type = (outcome == Outcome::Failed).then(|| ErrorType::of_failure(step.reason.as_deref()));
        why.set_if(field::ERROR_TYPE, error_type.map(ErrorType::as_str))
            .set_if(field::REASON, reason.clone());

        let was_queued = step.from == Before::Known(Status::Queued)
            || (step.from == Before::Absent && open.status == Status::Queued);
        let never_published = was_queued && error_type == Some(ErrorType::EnqueueFailed);
        let mut last_events = Vec::new();
        let mut all = own.clone();
        all.extend(why.clone());
        for event in
            never_published.then_some(Event::EnqueueFailed).into_iter().chain([Event::of_outcome(outcome)])
        {
            let mut attributes = why.clone();
            attributes.set_if(field::RECONCILED, step.reconciled.then_some(true));
            last_events.push(SpanEvent { event, at, attributes });
            self.record(event, at, run, &open.context, all.clone(), error_type, step.reconciled);
        }
        self.record(Event::Completed, at, run, &open.context, own, None, step.reconciled);
        if let Some(rollup) = self.records.last_mut() {
            rollup.level = Event::of_outcome(outcome).level(error_type);
        }
        let key = Key::duration(&open.context.workflow_name, outcome, error_type);
        self.observe(key, run, &open.context, open.queued_at, at);
        let error = (outcome == Outcome::Failed).then(|| reason.unwrap_or_default());
        let attributes = self.said_of(run, &open.context);
        self.spans.push(open.span(run, attributes, all, last_events, error));
        self.keep(run, None, true);
    }

    /// A transition after the end: recorded, and if the row is in flight again, remembered.
    fn conflict(&mut self, step: &Step, before: Option<Status>, context: Context) {
        let mut attributes = Attributes::default();
        attributes
            .set_if(field::FROM_STATUS, before.map(Status::as_str))
            .set_if(field::TO_STATUS, step.to.map(Status::as_str));
        // The entry's own context, which may be another than the run's.
        self.said_of.remove(&step.run);
        self.record(Event::Conflict, step.at, step.run, &context, attributes, None, step.reconciled);
        let alive = step.to.filter(|status| status.outcome().is_none());
        let remains = alive.map(|status| OpenRun::remains(context, status, step.at));
        self.keep(step.run, remains, true);
    }

    fn refusal(
        &mut self,
        at: Timestamp,
        context: &Context,
        reason: Option<&str>,
        inflight: Option<(RunId, RunId)>,
    ) {
        let error_type = ErrorType::of_refusal(reason);
        self.totals.count(Key::events(
            Some(&context.workflow_name),
            Event::DispatchRefused,
            Some(error_type),
        ));
        let mut attributes = Attributes::default();
        attributes
            .of_context(context)
            .set(field::ERROR_TYPE, error_type.as_str())
            .set_if(field::REASON, reason.map(redact::reason))
            .set_if(field::INFLIGHT_RUN_ID, inflight.map(|(run, _)| run));
        self.records.push(Record {
            event: Event::DispatchRefused,
            at,
            level: Event::DispatchRefused.level(None),
            context: inflight.map(|(run, root)| SpanContext::of_run(run, root)),
            attributes,
        });
    }

    #[expect(clippy::too_many_arguments, reason = "one place where every record of a run is made")]
    fn record(
        &mut self,
        event: Event,
        at: Timestamp,
        run: RunId,
        context: &Context,
        own: Attributes,
        error_type: Option<ErrorType>,
        reconciled: bool,
    ) {
        self.totals.count(Key::events(Some(&context.workflow_name), event, error_type));
        let mut attributes = self.said_of(run, context);
        attributes.extend(own).set_if(field::RECONCILED, reconciled.then_some(true));
        self.records.push(Record {
            event,
            at,
            level: event.level(error_type),
            context: Some(SpanContext::of_run(run, context.root_of(run))),
            attributes,
        });
    }

    /// Made once a run and batch: it is most of what spans and records say.
    fn said_of(&mut self, run: RunId, context: &Context) -> Attributes {
        self.said_of.entry(run).or_insert_with(|| Attributes::of_run(run, context)).clone()
    }

    fn take(&mut self, run: RunId) -> Option<OpenRun> {
        self.runs.get_mut(&run).and_then(|slot| slot.now.take())
    }

    fn keep(&mut self, run: RunId, now: Option<OpenRun>, changed: bool) {
        if now.is_none() && !changed {
            return;
        }
        let slot = self.runs.entry(run).or_insert(Slot::NEW);
        slot.now = now;
        slot.changed |= changed;
    }

    fn finish(self) -> Projected {
        let mut projected = Projected {
            spans: self.spans,
            records: self.records,
            opened: Vec::new(),
            closed: Vec::new(),
            totals: self.totals,
        };
        for (id, slot) in self.runs {
            match slot.now {
                Some(open) if slot.changed => projected.opened.push((id, open)),
                None if slot.stored => projected.closed.push(id),
                _ => {}
            }
        }
        // A map's order is chance; what is written is not.
        projected.opened.sort_unstable_by_key(|(id, _)| *id);
        projected.closed.sort_unstable();
        projected
    }
}

/// Whether a reconciled entry still says something that the journal has not said meanwhile.
fn says_something_new(step: &Step, known: Option<&OpenRun>) -> bool {
    match (step.from, known) {
        (Before::Absent, known) => known.is_none(),
        (Before::Known(from), Some(open)) => open.status == from,
        _ => false,
    }
}

/// What a child's entry tells of a parent that ended before it: its workflow only if that parent is the root.
fn handed_off_after_end(
    parent: RunId,
    of_child: &Attributes,
    child: &Context,
    at: Timestamp,
    reconciled: bool,
) -> Record {
    let root = child.root_of(parent);
    let root_workflow_name = child.root_workflow_name();
    let mut attributes = Attributes::default();
    attributes
        .set(field::RUN_ID, parent)
        .set_if(field::WORKFLOW_NAME, root_workflow_name.filter(|_| root == parent))
        .set(field::ROOT_RUN_ID, root)
        .set_if(field::ROOT_WORKFLOW_NAME, root_workflow_name)
        .extend(of_child.clone())
        .set_if(field::RECONCILED, reconciled.then_some(true));
    Record {
        event: Event::HandedOff,
        at,
        level: Event::HandedOff.level(None),
        context: Some(SpanContext::of_run(parent, root)),
        attributes,
    }
}
