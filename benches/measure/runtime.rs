//! What the runtime costs beside the statements that it stands for, and the journal beside both.
//!
//! Each round takes every variant in turn; what counts are the ratios of one run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use futures_util::{StreamExt as _, stream};
use runspan::DatabaseUrl;
use runspan::run::{Target, TargetKind};
use runspan::runs::{self, NewRun, Owner};
use runspan::runtime::queue::InProcessQueue;
use runspan::runtime::{Database, Delivery, ExecutorSettings, Outcome, Registry, Runtime, Workflow};
use runspan::store::{self, Plan};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// Runs a variant and round.
const RUNS: i64 = 2_000;
const ROUNDS: usize = 7;
/// Handlers, or statements of the same kind, at a time.
const CONCURRENCY: usize = 16;

pub(crate) async fn run() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    measure("SQLite", &format!("sqlite:{}", directory.path().join("bench.db").display()).parse()?).await?;
    match std::env::var("RUNSPAN_TEST_POSTGRES_URL") {
        Ok(url) => measure("PostgreSQL", &url.parse()?).await?,
        Err(_) => {
            eprintln!("PostgreSQL is not measured: run make bench ARGS=runtime");
        }
    }
    Ok(())
}

async fn measure(name: &str, url: &DatabaseUrl) -> Result<(), Failure> {
    let database = Database::connect(url, 20).await?;
    runs::migrate(database.acquire().await?.runs()).await?;
    let store = store::open(url)?;
    // statements, runtime; then the same with the journal
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for round in 0..=ROUNDS {
        for attached in [false, true] {
            if attached {
                store.attach(&Plan::of("workflow_runs")).await?;
            } else {
                store.detach(true).await?;
            }
            for runtime in [false, true] {
                clear(&database).await?;
                let took =
                    if runtime { through_runtime(&database).await? } else { by_hand(&database).await? };
                // The first round warms up.
                if round > 0 {
                    seconds[2 * usize::from(attached) + usize::from(runtime)].push(took.as_secs_f64());
                }
            }
        }
    }
    store.detach(true).await?;
    let medians = seconds.map(|mut round| {
        round.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let rate = |seconds: f64| RUNS as f64 / seconds;
        (rate(round[ROUNDS / 2]), rate(round[ROUNDS - 1]), rate(round[0]))
    });
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([name, "runs/s", "slowest to fastest", "of the statements alone"]);
    let names = ["statements alone", "runtime", "statements, journalled", "runtime, journalled"];
    for (index, (name, (median, slowest, fastest))) in names.into_iter().zip(medians).enumerate() {
        let alone = medians[index & 2].0;
        table.add_row([
            name.to_owned(),
            format!("{median:.0}"),
            format!("{slowest:.0} to {fastest:.0}"),
            format!("{:.2}", median / alone),
        ]);
    }
    println!("{table}\nthe journal costs the runtime: {:.2}\n", medians[3].0 / medians[1].0);
    database.close().await;
    Ok(())
}

async fn clear(database: &Database) -> Result<(), Failure> {
    match database {
        Database::Postgres(pool) => sqlx::raw_sql("TRUNCATE workflow_runs").execute(pool).await.map(drop)?,
        Database::Sqlite(pool) => sqlx::raw_sql("DELETE FROM workflow_runs").execute(pool).await.map(drop)?,
    }
    Ok(())
}

fn target(number: i64) -> Target {
    Target { kind: TargetKind::Issue, owner: "acme".to_owned(), repo: "widgets".to_owned(), number }
}

/// The three statements of a run, each a transaction.
async fn by_hand(database: &Database) -> Result<Duration, Failure> {
    let owner = Owner { kind: "executor".to_owned(), id: "bench".to_owned() };
    let began = Instant::now();
    let mut lives = stream::iter(1..=RUNS)
        .map(|number| {
            let (database, owner) = (database.clone(), owner.clone());
            async move {
                let run = NewRun::new("plan", target(number));
                let run = runs::insert_queued(database.acquire().await?.runs(), &run).await?;
                runs::claim(database.acquire().await?.runs(), run, &owner).await?;
                runs::mark_succeeded(database.acquire().await?.runs(), run).await
            }
        })
        .buffer_unordered(CONCURRENCY);
    while let Some(life) = lives.next().await {
        life?;
    }
    Ok(began.elapsed())
}

/// One dispatcher, one executor, handlers that do nothing.
async fn through_runtime(database: &Database) -> Result<Duration, Failure> {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let plan = Workflow::new("plan", move |_| {
        let ended = ended.clone();
        async move {
            ended.send(())?;
            Ok(Outcome::Succeeded)
        }
    });
    let runtime =
        Runtime::new("bench", database.clone(), Arc::new(InProcessQueue::default()), Registry::new([plan])?);
    let stop = CancellationToken::new();
    let settings = ExecutorSettings { concurrency: CONCURRENCY, ..ExecutorSettings::default() };
    let began = Instant::now();
    let executor = tokio::spawn(runtime.executor(settings).run(stop.clone()));
    let dispatcher = runtime.dispatcher();
    let mut deliveries = stream::iter(1..=RUNS)
        .map(|number| {
            let dispatcher = dispatcher.clone();
            async move {
                let delivery = Delivery {
                    id: number.to_string(),
                    owner: "acme".to_owned(),
                    repo: "widgets".to_owned(),
                    target: Some(target(number)),
                    input: serde_json::Map::new(),
                    traceparent: None,
                };
                dispatcher.intent("plan", &delivery).await
            }
        })
        .buffer_unordered(CONCURRENCY);
    while let Some(done) = deliveries.next().await {
        done?;
    }
    for _ in 0..RUNS {
        ends.recv().await.ok_or("the executor is gone")?;
    }
    // Its last ends are written down before it has stopped.
    stop.cancel();
    executor.await??;
    Ok(began.elapsed())
}
