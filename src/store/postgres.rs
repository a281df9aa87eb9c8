//! PostgreSQL 14 or newer: many writers, standby relays, no extension.

pub(super) mod as_owner;
mod attach;
mod capture;
mod functions;
mod grants;
mod identity;
mod inspect;
mod journal;
mod lease;
mod outbox;
mod pool;
mod purge;
mod reconcile;
mod relay_rights;
mod rows;
mod series;
mod set_aside;
mod status;
mod stuck;

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use self::pool::Pool;

/// A PostgreSQL database.
#[derive(Clone)]
pub(super) struct PgStore {
    pool: Pool,
}

impl PgStore {
    pub(super) fn new(options: PgConnectOptions, connect_timeout: Option<Duration>) -> Self {
        Self { pool: Pool::new(options, connect_timeout) }
    }
}
