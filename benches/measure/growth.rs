//! How a drain changes as things grow: the backlog, the table, the runs in flight, the workflow names, and how long
//! someone else keeps a transaction open. Each case has a database of its own.

use runspan::otlp::config::Protocol;
use sqlx::Row as _;

use crate::Failure;
use crate::backlog::Backlog;
use crate::child;
use crate::receiver::Receiver;
use crate::report::Report;

/// Runs of most backlogs, three entries each.
const RUNS: u32 = 30_000;

/// What is different in a case.
#[derive(Default)]
struct Case {
    name: &'static str,
    /// Runs of the backlog, [`RUNS`] if it is 0.
    runs: u32,
    workflows: u32,
    /// Rows of runs that ended long ago.
    history: u32,
    /// Runs that wait to be executed all the while.
    open: u32,
    /// Whether another session has a transaction open, with a transaction id.
    held: bool,
}

const CASES: [Case; 9] = [
    Case { name: "10,000 entries", runs: 3_333, workflows: 1, history: 0, open: 0, held: false },
    Case { name: "100,000 entries", runs: 33_333, workflows: 1, history: 0, open: 0, held: false },
    Case { name: "1,000,000 entries", runs: 333_333, workflows: 1, history: 0, open: 0, held: false },
    Case { name: "20 workflows", runs: RUNS, workflows: 20, history: 0, open: 0, held: false },
    Case { name: "1,000 workflows", runs: RUNS, workflows: 1_000, history: 0, open: 0, held: false },
    Case { name: "1 M rows of history", runs: RUNS, workflows: 1, history: 1_000_000, open: 0, held: false },
    Case {
        name: "10 M rows of history",
        runs: RUNS,
        workflows: 1,
        history: 10_000_000,
        open: 0,
        held: false,
    },
    Case { name: "1 M runs in flight", runs: RUNS, workflows: 1, history: 0, open: 1_000_000, held: false },
    Case { name: "a transaction held open", runs: 333_333, workflows: 1, history: 0, open: 0, held: true },
];

pub(crate) async fn run() -> Result<(), Failure> {
    let receiver = Receiver::start(Protocol::Grpc).await?;
    let mut report = Report::new("growth", &CASES.map(|case| case.name));
    for (index, case) in CASES.iter().enumerate() {
        let Some(backlog) = Backlog::new("growth").await? else { return Ok(()) };
        if case.history > 0 || case.open > 0 {
            backlog.fill_table(case.history, case.open).await?;
        }
        if case.open > 0 {
            // They are taken in before anything is measured.
            child::drain(backlog.url(), &receiver.endpoint).await?;
        }
        backlog.write(case.runs, 100, case.workflows).await?;
        let mut other = backlog.pool.acquire().await?;
        if case.held {
            sqlx::raw_sql("BEGIN; SELECT pg_current_xact_id()").execute(&mut *other).await?;
        }
        let drained = child::drain(backlog.url(), &receiver.endpoint).await?;
        if case.held {
            sqlx::raw_sql("COMMIT").execute(&mut *other).await?;
        }
        drop(other);
        let rate = f64::from(3 * case.runs) / drained.took.as_secs_f64();
        println!("{}: {rate:.0} entries/s, {:.1} MiB", case.name, drained.most_mib);
        report.add(index, "entries/s", rate);
        report.add(index, "most memory, MiB", drained.most_mib);
        // Where all rows are in flight, to read the whole table is right.
        if case.history == 10_000_000 {
            plans(&backlog, case.name).await?;
        }
        backlog.remove().await?;
    }
    report.show()
}

/// How PostgreSQL reads for the relay. A plan that scans a whole table of the application's is an error.
async fn plans(backlog: &Backlog, case: &str) -> Result<(), Failure> {
    println!("plans, {case}:");
    for (what, sql) in [
        (
            "journal",
            "SELECT seq FROM runspan.journal WHERE seq > 0 AND seq NOT IN (SELECT unnest('{1,2}'::bigint[])) ORDER BY seq LIMIT 2000",
        ),
        (
            "outbox",
            "SELECT id FROM runspan.outbox WHERE channel = 'traces' AND dead IS NULL AND (place, id) > (0, 0) ORDER BY place, id LIMIT 1",
        ),
        (
            "open runs",
            "SELECT state FROM runspan.open_runs WHERE run_id = ANY('{00000000-0000-0000-0000-000000000001}'::uuid[])",
        ),
        (
            "runs in flight",
            "SELECT workflow_name, status, count(*) FROM workflow_runs WHERE status IN ('queued', 'running') GROUP BY 1, 2",
        ),
        ("root", "SELECT parent_run_id FROM workflow_runs WHERE id = '00000000-0000-0000-0000-000000000001'"),
    ] {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN (COSTS off) {sql}")))
            .fetch_all(&backlog.pool)
            .await?;
        let plan: Vec<String> =
            rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<Result<_, _>>()?;
        let scans: Vec<&str> =
            plan.iter().map(|line| line.trim()).filter(|line| line.contains("Scan")).collect();
        println!("  {what}: {}", scans.join("; "));
        if scans.iter().any(|scan| scan.contains("Seq Scan on workflow_runs")) {
            return Err(format!("{what}: the whole table is read:\n{}", plan.join("\n")).into());
        }
    }
    println!();
    Ok(())
}
