//! The durable metrics: what is counted, how it adds up, and what a receiver has not acknowledged yet. Pure.
//!
//! Series are cumulative and stored in the database. The projector appends a batch's increments ([`Totals`]) in the
//! transaction that consumes it; the exporter adds them up and exports them ([`Ledger`]). So a crash, a resend or a
//! change of relay neither loses nor doubles an increment.

mod buckets;
mod ledger;
mod points;
mod totals;

pub(crate) use self::buckets::seconds;
pub use self::buckets::{Buckets, InvalidBuckets};
pub use self::ledger::{Attempt, Change, Head, Ledger, Notice, Recorded};
pub use self::points::{InFlight, Point, Series, Value, one_point_each};
pub use self::totals::{Distribution, Exemplar, Key, MetricKind, Totals};

/// The most workflow names that have series of their own.
pub const MAX_WORKFLOWS: usize = 200;

/// The name under which all other workflows are counted.
pub const OTHER: &str = "#other#";

/// The longest workflow name that a series carries, in characters.
const MAX_NAME: usize = 128;

/// A workflow's name as an attribute of series: on one line, and cut.
fn label(name: &str) -> String {
    let mut shown = name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut label: String = shown.by_ref().take(MAX_NAME).collect();
    if shown.next().is_some() {
        label.push('…');
    }
    label
}

/// Whether [`label`] changed this name.
fn is_changed(label: &str) -> bool {
    label.contains(char::REPLACEMENT_CHARACTER) || label.chars().count() > MAX_NAME
}

#[cfg(test)]
mod tests;
