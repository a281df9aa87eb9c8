//! Series as large as they can be.

use std::ops::Range;
use std::time::Duration;

use runspan::run::{Outcome, RunId, Timestamp};
use runspan::semconv::{ErrorType, Event};
use runspan::series::{Buckets, Key, Totals};
use runspan::trace_context::SpanContext;
use uuid::{NoContext, Uuid};

pub(crate) fn workflow(number: usize) -> String {
    format!("workflow-{number:04}")
}

/// A run that ended in a certain bucket, in the minute before `now`.
pub(crate) fn observe(totals: &mut Totals, key: Key, bucket: usize, now: i64) {
    let layout = Buckets::default();
    let bounds = layout.micros();
    let lower = bucket.checked_sub(1).map_or(0, |below| bounds[below]);
    let upper = bounds.get(bucket).copied().unwrap_or(2 * lower);
    let micros = rand::random_range(lower + 1..=upper);
    let at = now - rand::random_range(0..60_000_000);
    let created = Duration::from_micros((at - micros).unsigned_abs());
    let id = uuid::Timestamp::from_unix(NoContext, created.as_secs(), created.subsec_nanos());
    let run = RunId::from(Uuid::new_v7(id));
    totals.observe(key, micros, Timestamp::from_micros(at), SpanContext::of_run(run, run));
}

/// Every series that a workflow can have, with a run in each of `buckets`.
pub(crate) fn all_of(totals: &mut Totals, number: usize, buckets: Range<usize>, now: i64) {
    let name = workflow(number);
    let failures: Vec<ErrorType> = ErrorType::ALL[..5].iter().copied().chain([ErrorType::Other]).collect();
    let mut histograms = vec![Key::queue_duration(&name)];
    for outcome in Outcome::ALL {
        histograms.push(Key::execution_duration(&name, outcome));
        match outcome {
            Outcome::Failed => histograms
                .extend(failures.iter().map(|error_type| Key::duration(&name, outcome, Some(*error_type)))),
            _ => histograms.push(Key::duration(&name, outcome, None)),
        }
    }
    for key in histograms {
        for bucket in buckets.clone() {
            observe(totals, key.clone(), bucket, now);
        }
    }
    for event in Event::ALL {
        let error_types: Vec<Option<ErrorType>> = match event {
            Event::Failed => failures.iter().copied().map(Some).collect(),
            Event::EnqueueFailed => vec![Some(ErrorType::EnqueueFailed)],
            Event::DispatchRefused => ErrorType::ALL[5..].iter().copied().map(Some).collect(),
            _ => vec![None],
        };
        for error_type in error_types {
            totals.count(Key::events(Some(&name), *event, error_type));
        }
    }
}
