//! The store, on both databases; what is particular to one of them lies below its name.

mod attach;
mod bound;
mod capture;
mod identity;
mod journal;
mod lease;
mod lineage;
mod newer;
mod outbox;
#[cfg(feature = "services")]
mod postgres;
mod reconcile;
mod set_aside;
mod set_back;
mod sqlite;
mod stuck;
mod times;
