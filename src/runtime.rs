//! A small runtime for durable workflow runs: the system whose lifecycle runspan observes.

pub mod queue;
