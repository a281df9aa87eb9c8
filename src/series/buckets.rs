//! The upper bounds of a histogram's buckets.
//!
//! In microseconds, exactly: counts in different buckets cannot be added, so two relays must agree on each bound.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// 100 ms to 7 days.
const DEFAULT: [i64; 20] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    7_200_000_000,
    14_400_000_000,
    28_800_000_000,
    86_400_000_000,
    172_800_000_000,
    604_800_000_000,
];

/// The most buckets: each costs every series of every workflow.
const MOST: usize = 100;

/// Ten years: a longer bound is a wrong unit.
const LONGEST: i64 = 315_360_000_000_000;

/// Upper bounds, in microseconds, rising. A value that equals a bound is below it (OTLP's `explicit_bounds`, and
/// Prometheus' `le`). Beyond the last there is one more bucket.
///
/// ```
/// use runspan::series::Buckets;
///
/// let buckets: Buckets = "0.5, 1, 60".parse()?;
/// assert_eq!(buckets.to_string(), "0.5,1,60");
/// assert!("1,0.5".parse::<Buckets>().is_err());
/// # Ok::<(), runspan::series::InvalidBuckets>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<i64>", into = "Vec<i64>")]
pub struct Buckets(Arc<[i64]>);

/// Why a list of bounds is invalid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidBuckets {
    /// There is no bound.
    #[error("the list of buckets is empty: write seconds, rising, as in 0.5,1,5,60")]
    Empty,
    /// There are too many.
    #[error("the list has {0} buckets: write at most {MOST}")]
    TooMany(usize),
    /// A bound is not a number of seconds.
    #[error("bucket {position} is \"{text}\", not a number of seconds above 0: write e.g. 0.5,1,5,60")]
    NotSeconds {
        /// Counted from 1.
        position: usize,
        /// The bound.
        text: String,
    },
    /// The bounds do not rise.
    #[error("bucket {position} ({text}) is not above the one before it: write them rising, each once")]
    NotRising {
        /// Counted from 1.
        position: usize,
        /// The bound.
        text: String,
    },
}

impl Buckets {
    /// Their number, with the one beyond the last bound.
    pub fn len(&self) -> usize {
        self.0.len() + 1
    }

    /// Never: there is one beyond the last bound.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The index of a value's bucket.
    pub fn index(&self, micros: i64) -> usize {
        self.0.partition_point(|bound| *bound < micros)
    }

    /// The bounds, in microseconds.
    pub fn micros(&self) -> &[i64] {
        &self.0
    }

    /// The bounds, in seconds.
    pub fn seconds(&self) -> Vec<f64> {
        self.0.iter().copied().map(seconds).collect()
    }
}

/// Microseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
pub(crate) fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

impl Default for Buckets {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

/// Microseconds.
impl TryFrom<Vec<i64>> for Buckets {
    type Error = InvalidBuckets;

    fn try_from(micros: Vec<i64>) -> Result<Self, InvalidBuckets> {
        if micros.is_empty() {
            return Err(InvalidBuckets::Empty);
        }
        let mut last = 0;
        for (bound, position) in micros.iter().copied().zip(1..) {
            let text = || seconds(bound).to_string();
            if !(1..=LONGEST).contains(&bound) {
                return Err(InvalidBuckets::NotSeconds { position, text: text() });
            }
            if bound <= last {
                return Err(InvalidBuckets::NotRising { position, text: text() });
            }
            last = bound;
        }
        if micros.len() > MOST { Err(InvalidBuckets::TooMany(micros.len())) } else { Ok(Self(micros.into())) }
    }
}

impl From<Buckets> for Vec<i64> {
    fn from(buckets: Buckets) -> Self {
        buckets.0.to_vec()
    }
}

impl FromStr for Buckets {
    type Err = InvalidBuckets;

    fn from_str(text: &str) -> Result<Self, InvalidBuckets> {
        if text.trim().is_empty() {
            return Err(InvalidBuckets::Empty);
        }
        let mut bounds = Vec::new();
        for (text, position) in text.split(',').map(str::trim).zip(1..) {
            let value = text.parse::<f64>().ok().filter(|value| (1e-6..=seconds(LONGEST)).contains(value));
            let Some(value) = value else {
                let text = text.chars().take(20).filter(|c| !c.is_control()).collect();
                return Err(InvalidBuckets::NotSeconds { position, text });
            };
            #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
            bounds.push((value * 1e6).round() as i64);
        }
        bounds.try_into()
    }
}

impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<String> = self.seconds().iter().map(f64::to_string).collect();
        f.write_str(&bounds.join(","))
    }
}
