//! A process of the application's: plays tests/sql/load/*.sql, scripts for pgbench, on a connection that it opens anew
//! when it is lost.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Column as _, Connection as _, Row as _};

use crate::{MIX, test_file};

/// How long a writer rests between two scripts at most; half of it on average.
const REST_MILLIS: u64 = 60;

/// What a writer prints before the error of a statement that failed by no fault of the play's.
pub(crate) const FAILED: &str = "FAILED ";

/// A step of a script.
enum Step {
    /// One query message, and whether its columns become variables (`\gset`).
    Query {
        sql: String,
        is_kept: bool,
    },
    Sleep(Duration),
}

/// Writes until it is killed.
pub(crate) fn run(url: &str, seed: u64, with_poison: bool) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(write(url, seed, with_poison))
}

async fn write(url: &str, seed: u64, with_poison: bool) -> ! {
    let mut random = StdRng::seed_from_u64(seed);
    let scripts: Vec<(&str, u32, Vec<Step>)> =
        MIX.iter().map(|(name, weight)| (*name, *weight, script(name))).collect();
    let all: u32 = scripts.iter().map(|(_, weight, _)| weight).sum();
    let options: PgConnectOptions = url.parse().unwrap();
    let mut connection = None;
    loop {
        let mut chosen = random.random_range(0..all);
        let (name, _, steps) = scripts
            .iter()
            .find(|(_, weight, _)| {
                let is_it = chosen < *weight;
                chosen = chosen.wrapping_sub(*weight);
                is_it
            })
            .expect("below the sum of the weights");
        let is_poison = with_poison && *name == "succeeded" && random.random_range(0..24) == 0;
        let open = match connection.take() {
            Some(open) => Some(open),
            // What does not connect is no statement that failed.
            None => PgConnection::connect_with(&options).await.ok(),
        };
        let Some(mut open) = open else {
            tokio::time::sleep(Duration::from_millis(REST_MILLIS)).await;
            continue;
        };
        match play(&mut open, steps, is_poison).await {
            Ok(()) => connection = Some(open),
            // The script ends here, as with a process that dies: its run stays as it is.
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => println!("{FAILED}{name}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..REST_MILLIS))).await;
    }
}

/// Whether the connection is lost, or the server is on its way down or up.
fn is_of_the_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            // 25006: read-only, as after a failover.
            error
                .code()
                .is_some_and(|code| code.starts_with("57P0") || code.starts_with("08") || code == "25006")
        }
        _ => false,
    }
}

async fn play(connection: &mut PgConnection, steps: &[Step], is_poison: bool) -> Result<(), sqlx::Error> {
    let mut variables: HashMap<String, String> = HashMap::new();
    for step in steps {
        match step {
            Step::Sleep(time) => tokio::time::sleep(*time).await,
            Step::Query { sql, is_kept } => {
                let mut sql = sql.clone();
                for (name, value) in &variables {
                    sql = sql.replace(&format!(":{name}"), value);
                }
                if is_poison {
                    sql = sql.replace("'triage'", "'poison'");
                }
                let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
                if let Some(row) = rows.last().filter(|_| *is_kept) {
                    for column in row.columns() {
                        let value = row.try_get_unchecked::<String, _>(column.ordinal())?;
                        variables.insert(column.name().to_owned(), value);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The steps of tests/sql/load/NAME.sql: what pgbench's language has and these scripts use.
fn script(name: &str) -> Vec<Step> {
    let text = std::fs::read_to_string(test_file(&format!("sql/load/{name}.sql"))).unwrap();
    let mut steps = Vec::new();
    let mut sql = String::new();
    for line in text.lines().map(str::trim_end).filter(|line| !line.starts_with("--")) {
        if let Some(millis) = line.strip_prefix("\\sleep ").and_then(|rest| rest.strip_suffix(" ms")) {
            steps.push(Step::Sleep(Duration::from_millis(millis.parse().expect("milliseconds"))));
            continue;
        }
        let (part, end) = match line.strip_suffix("\\gset") {
            Some(part) => (part, Some(true)),
            None if line.ends_with(';') && !line.ends_with("\\;") => (line, Some(false)),
            None => (line, None),
        };
        sql += &part.replace("\\;", ";");
        sql.push('\n');
        if let Some(is_kept) = end {
            steps.push(Step::Query { sql: std::mem::take(&mut sql), is_kept });
        }
    }
    assert!(sql.trim().is_empty(), "{name}.sql ends within a statement");
    steps
}
