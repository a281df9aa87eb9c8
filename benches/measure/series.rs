//! What the durable series cost: the drain, an export of them, and the database that holds them.
//!
//! Each round takes every variant in turn; what counts are the ratios of one run.

mod drain;
mod export;
mod made;
mod record;

use std::sync::Arc;
use std::time::Duration;

use runspan::DatabaseUrl;
use runspan::otlp::config::Resource;
use runspan::otlp::encode::Encoder;
use runspan::runs;
use runspan::runtime::Database;
use runspan::store::{self, Lease, Plan, Store};

use super::Failure;

const ROUNDS: usize = 21;
const INTERVAL: Duration = Duration::from_mins(1);
/// 2027, in microseconds.
const START: i64 = 1_800_000_000_000_000;

pub(crate) use self::export::peak;

pub(crate) async fn run() -> Result<(), Failure> {
    export::exports()?;
    export::peaks()?;
    let directory = tempfile::tempdir()?;
    measure("SQLite", &format!("sqlite:{}", directory.path().join("bench.db").display()).parse()?).await?;
    match std::env::var("RUNSPAN_TEST_POSTGRES_URL") {
        Ok(url) => measure("PostgreSQL", &url.parse()?).await?,
        Err(_) => eprintln!("PostgreSQL is not measured: run make bench ARGS=series"),
    }
    Ok(())
}

async fn measure(name: &'static str, url: &DatabaseUrl) -> Result<(), Failure> {
    let database = Database::connect(url, 4).await?;
    runs::migrate(database.acquire().await?.runs()).await?;
    let store = store::open(url)?;
    store.attach(&Plan::of("workflow_runs")).await?;
    let lease = store.take_lease(&store.lease().await?, "bench", Duration::from_hours(1)).await?;
    let lease = lease.ok_or("another relay has the lease")?;
    let instance = store.instance().await?;
    let bench = Bench { name, database, store, lease, encoder: encoder(&instance)?, instance };
    bench.fill().await?;
    bench.drains().await?;
    bench.records().await?;
    bench.clear().await?;
    bench.execute("DROP TABLE bench_journal", "DROP TABLE bench_journal").await?;
    bench.store.detach(true).await?;
    bench.database.close().await;
    Ok(())
}

fn encoder(instance: &str) -> Result<Encoder, Failure> {
    Ok(Encoder::new(&Resource::from_env(&|_| None)?, instance))
}

struct Bench {
    name: &'static str,
    database: Database,
    store: Arc<dyn Store>,
    lease: Lease,
    instance: String,
    encoder: Encoder,
}

impl Bench {
    async fn execute(&self, postgres: &'static str, sqlite: &'static str) -> Result<(), Failure> {
        match &self.database {
            Database::Postgres(pool) => sqlx::raw_sql(postgres).execute(pool).await.map(drop)?,
            Database::Sqlite(pool) => sqlx::raw_sql(sqlite).execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    async fn clear(&self) -> Result<(), Failure> {
        self.execute(
            "TRUNCATE workflow_runs, runspan.journal, runspan.open_runs, runspan.outbox, runspan.commits,
                 runspan.deltas, runspan.series",
            "DELETE FROM workflow_runs; DELETE FROM runspan_journal; DELETE FROM runspan_open_runs;
             DELETE FROM runspan_outbox; DELETE FROM runspan_deltas; DELETE FROM runspan_series",
        )
        .await
    }

    /// How many KiB of write-ahead log there ever were; SQLite does not say.
    async fn logged(&self) -> Result<f64, Failure> {
        let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8 / 1024";
        Ok(match &self.database {
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await?,
            Database::Sqlite(_) => 0.0,
        })
    }
}
