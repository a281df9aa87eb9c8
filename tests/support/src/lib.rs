//! What the tests and the chaos suite share. A helper with two users belongs here; one with a single user beside it.

#[macro_use]
pub mod database;
pub mod end_to_end;
pub mod hooked;
pub mod logged;
pub mod otlp;
pub mod points;
#[macro_use]
pub mod projector;
pub mod receiver;
pub mod scoped;
