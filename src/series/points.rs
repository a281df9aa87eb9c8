//! Series with their points, as an export contains them.

use super::buckets::Buckets;
use super::totals::{Distribution, Key};
use crate::run::{Status, Timestamp};

/// A series and its points, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its metric and attributes.
    pub key: Key,
    /// One, or more if it needs a predecessor.
    pub points: Vec<Point>,
}

/// The same points in consecutive parts, in each of which a series has one at most. Its last point is in the last part.
pub fn one_point_each(series: Vec<Series>) -> Vec<Vec<Series>> {
    let most = series.iter().map(|series| series.points.len()).max().unwrap_or(0);
    let mut parts: Vec<Vec<Series>> = (0..most).map(|_| Vec::new()).collect();
    for Series { key, points } in series {
        let first = most - points.len();
        for (part, point) in parts[first..].iter_mut().zip(points) {
            part.push(Series { key: key.clone(), points: vec![point] });
        }
    }
    parts
}

/// A value at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// When counting started.
    pub since: Timestamp,
    /// Its time.
    pub at: Timestamp,
    /// The value.
    pub value: Value,
}

/// The value of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A histogram's values, in these buckets.
    Distribution(Buckets, Distribution),
}

/// Runs in flight of one workflow in one state, read from the table.
#[derive(Clone, Debug, PartialEq)]
pub struct InFlight {
    /// The workflow.
    pub workflow: String,
    /// Queued or running.
    pub status: Status,
    /// Their number.
    pub runs: i64,
    /// How long ago the oldest was queued, in seconds.
    pub oldest_age: f64,
}
