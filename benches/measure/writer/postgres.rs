//! PostgreSQL, as production has it: `fsync` and `full_page_writes` on.

use std::sync::Arc;
use std::time::Instant;

use runspan::runs;
use runspan::store::{self, Plan, Store};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use url::Url;

use super::pgbench::{Load, mean, p99};
use super::server::Server;
use super::{Failure, ROUNDS, Variant, added, cpu_goals, ratios, report};
use crate::report::{Bound, Report};
use crate::shown::millis;

const CPU: &str = "CPU of the server, µs a run";
const LOG: &str = "write-ahead log, bytes a run";
const RATE: &str = "runs a second";
const MEAN: &str = "a run's latency, mean, ms";
const P99: &str = "a run's latency, p99, ms";
const P99_DUE: &str = "since it was due, p99, ms";

const MANY: &str = include_str!("many.postgres.sql");
const MANY_MESSAGES: &str = "INSERT INTO outbox (event, payload)
    SELECT 'workflow.run.queued', jsonb_build_object('runId', id, 'workflowName', workflow_name, 'targetType', target_type,
        'targetOwner', target_owner, 'targetRepo', target_repo, 'targetNumber', target_number, 'deliveryId', delivery_id,
        'traceparent', state ->> 'traceparent') FROM workflow_runs";
const ONE_BY_ONE: &str = "DO $$
    DECLARE run workflow_runs;
    BEGIN
        FOR run IN SELECT * FROM workflow_runs LOOP
            UPDATE workflow_runs SET status = 'running' WHERE id = run.id AND status = 'queued';
            {message}
        END LOOP;
    END $$";
const MESSAGE: &str = "INSERT INTO outbox (event, payload) VALUES ('workflow.run.running',
    jsonb_build_object('runId', run.id, 'workflowName', run.workflow_name, 'targetType', run.target_type,
        'targetOwner', run.target_owner, 'targetRepo', run.target_repo, 'targetNumber', run.target_number,
        'deliveryId', run.delivery_id));";

/// In a database of its own.
pub(super) async fn run(server: &Url) -> Result<(), Failure> {
    let mut url = server.clone();
    url.set_path("/bench_writer");
    let mut admin = PgConnection::connect(server.as_str()).await?;
    for sql in ["DROP DATABASE IF EXISTS bench_writer WITH (FORCE)", "CREATE DATABASE bench_writer"] {
        sqlx::raw_sql(sql).execute(&mut admin).await?;
    }
    let bench = Bench::new(url.as_str()).await?;
    bench.server.as_in_production().await?;
    let measured = bench.measure().await;
    bench.server.as_it_was().await?;
    drop(bench);
    sqlx::raw_sql("DROP DATABASE bench_writer WITH (FORCE)").execute(&mut admin).await?;
    measured
}

struct Bench {
    url: String,
    server: Server,
    store: Arc<dyn Store>,
}

impl Bench {
    async fn new(url: &str) -> Result<Self, Failure> {
        let mut connection = PgConnection::connect(url).await?;
        runs::migrate(&mut connection).await?;
        sqlx::raw_sql(include_str!("outbox.postgres.sql")).execute(&mut connection).await?;
        let store = store::open(&url.parse()?)?;
        store.attach(&plan()).await?;
        Ok(Self { url: url.to_owned(), server: Server::of(url).await?, store })
    }

    async fn measure(&self) -> Result<(), Failure> {
        let load = Load { clients: 8, runs: 800, protocol: "prepared", rate: None };
        let mut full = self.under("PostgreSQL, 8 clients", load).await?;
        cpu_goals(&mut full, CPU);
        full.goal("runs a second, of detached", Bound::AtLeast(0.85), ratios(&full, Variant::Attached, RATE));
        full.show()?;

        let load = Load { runs: 400, protocol: "extended", ..load };
        let mut parsed = self.under("PostgreSQL, 8 clients that prepare nothing", load).await?;
        cpu_goals(&mut parsed, CPU);
        parsed.show()?;

        let load = Load { clients: 1, runs: 800, protocol: "prepared", rate: None };
        self.under("PostgreSQL, 1 client", load).await?.show()?;

        let load = Load { clients: 8, runs: 300, protocol: "prepared", rate: Some(1_000) };
        let mut paced = self.under("PostgreSQL, 1,000 runs a second", load).await?;
        for name in [P99, P99_DUE] {
            let ratios = ratios(&paced, Variant::Attached, name);
            paced.goal(format!("{name}, of detached"), Bound::AtMost(1.05), ratios);
        }
        paced.show()?;

        self.bulk().await?.show()
    }

    /// Each variant under the same load.
    async fn under(&self, title: &str, load: Load) -> Result<Report, Failure> {
        let mut report = report(title);
        for round in 0..=ROUNDS {
            for variant in Variant::in_turn(round) {
                self.prepare(variant).await?;
                let mut connection = PgConnection::connect(&self.url).await?;
                let log = logged(&mut connection).await?;
                let before = self.server.cpu()?;
                let seen = load.put_on(&self.url, variant)?;
                let cpu = self.server.cpu_since(&before).await?;
                let log = logged(&mut connection).await? - log;
                if round == 0 {
                    continue; // warms up
                }
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let runs = seen.runs as f64;
                let mut add = |name, value| report.add(variant as usize, name, value);
                add(CPU, cpu / runs);
                add(LOG, log / runs);
                if load.rate.is_none() {
                    add(RATE, seen.rate);
                }
                add(MEAN, mean(&seen.latencies));
                add(P99, p99(&seen.latencies));
                if load.rate.is_some() {
                    add(P99_DUE, p99(&seen.since_due));
                }
            }
        }
        Ok(report)
    }

    /// Many rows in one transaction.
    async fn bulk(&self) -> Result<Report, Failure> {
        let mut report = report("PostgreSQL, in bulk");
        for round in 0..=ROUNDS {
            for variant in Variant::in_turn(round) {
                let (message, messages) = match variant {
                    Variant::Outbox => (MESSAGE, Some(MANY_MESSAGES)),
                    _ => ("", None),
                };
                self.prepare(variant).await?;
                let inserted =
                    self.transaction([MANY.to_owned()].into_iter().chain(messages.map(str::to_owned)));
                let inserted = inserted.await?;
                self.prepare(Variant::Detached).await?;
                self.transaction([MANY.replace("50000", "20000")].into_iter()).await?;
                self.prepare_triggers(variant).await?;
                let updated =
                    self.transaction([ONE_BY_ONE.replace("{message}", message)].into_iter()).await?;
                if round > 0 {
                    report.add(variant as usize, "50,000 runs in one INSERT, ms", inserted);
                    report.add(variant as usize, "20,000 UPDATEs in one transaction, ms", updated);
                }
            }
        }
        for (name, rows) in
            [("50,000 runs in one INSERT, ms", 50.0), ("20,000 UPDATEs in one transaction, ms", 20.0)]
        {
            let each = added(&report, Variant::Attached, name).iter().map(|ms| ms / rows).collect();
            report.goal(format!("added, µs a row: {name}"), Bound::AtMost(60.0), each);
        }
        Ok(report)
    }

    /// How many milliseconds the statements take, together.
    async fn transaction(&self, statements: impl Iterator<Item = String>) -> Result<f64, Failure> {
        let mut connection = PgConnection::connect(&self.url).await?;
        let began = Instant::now();
        let mut transaction = connection.begin().await?;
        for sql in statements {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(millis(began.elapsed()))
    }

    /// Tables as new, and what the variant needs.
    async fn prepare(&self, variant: Variant) -> Result<(), Failure> {
        let mut connection = PgConnection::connect(&self.url).await?;
        sqlx::raw_sql("TRUNCATE workflow_runs, outbox, runspan.journal, runspan.open_runs")
            .execute(&mut connection)
            .await?;
        self.prepare_triggers(variant).await
    }

    async fn prepare_triggers(&self, variant: Variant) -> Result<(), Failure> {
        let mut connection = PgConnection::connect(&self.url).await?;
        self.store.detach(false).await?;
        for sql in [
            "DROP TRIGGER IF EXISTS nothing_inserted ON workflow_runs",
            "DROP TRIGGER IF EXISTS nothing_changed ON workflow_runs",
            "DROP TRIGGER IF EXISTS nothing_deleted ON workflow_runs",
        ] {
            sqlx::raw_sql(sql).execute(&mut connection).await?;
        }
        match variant {
            Variant::Detached | Variant::Outbox => {}
            Variant::Empty => {
                sqlx::raw_sql(include_str!("empty.postgres.sql")).execute(&mut connection).await?;
            }
            Variant::Attached => {
                self.store.attach(&plan()).await?;
                // Runs in flight, which an attach takes in.
                sqlx::raw_sql("TRUNCATE runspan.journal").execute(&mut connection).await?;
            }
        }
        for sql in ["VACUUM ANALYZE", "CHECKPOINT"] {
            sqlx::raw_sql(sql).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }
}

fn plan() -> Plan {
    Plan::of("workflow_runs")
}

/// How many bytes of write-ahead log there ever were.
async fn logged(connection: &mut PgConnection) -> Result<f64, Failure> {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}
