//! The catalogue of events and fields.

mod contract;
