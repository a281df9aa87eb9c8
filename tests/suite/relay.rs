//! The relay, in this process, with a receiver that answers as it is told.

mod delivery;
mod self_metrics;
