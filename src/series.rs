//! The durable metrics: what is counted, how it adds up, and what of it a receiver has yet to hear. Pure.
//!
//! Series are cumulative and live in the database. The projector appends what a batch adds ([`Totals`]) in the
//! transaction that consumes it; the exporter adds it up and tells of it ([`Ledger`]). So a crash, a resend or a
//! change of relay neither loses an increment nor doubles one.

mod buckets;
mod ledger;
mod totals;

pub(crate) use self::buckets::seconds;
pub use self::buckets::{Buckets, InvalidBuckets};
pub use self::ledger::{Attempt, Change, Head, InFlight, Ledger, Notice, Point, Recorded, Series, Value};
pub use self::totals::{Distribution, Exemplar, Key, MetricKind, Totals};

/// The most workflow names that have series of their own.
pub const MAX_WORKFLOWS: usize = 200;

/// Under this name all other workflows are counted.
pub const OTHER: &str = "#other#";

/// The longest workflow name that a series carries, in characters.
const MAX_NAME: usize = 128;

/// A workflow's name as series carry it: on one line, and not too long.
fn label(name: &str) -> String {
    let mut shown = name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut label: String = shown.by_ref().take(MAX_NAME).collect();
    if shown.next().is_some() {
        label.push('…');
    }
    label
}

/// Whether [`label`] had to change this name.
fn is_changed(label: &str) -> bool {
    label.contains(char::REPLACEMENT_CHARACTER) || label.chars().count() > MAX_NAME
}

#[cfg(test)]
mod tests;
