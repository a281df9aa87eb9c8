//! The journal breaks under load and is mended: the application goes on, and the table tells what the journal missed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use uuid::Uuid;

use super::collector::Collector;
use super::database::Database;
use super::output::{Span, items};
use super::process::Process;
use super::{drain, relay, test_file, wait_for};

/// How long the journal is away.
const GAP: Duration = Duration::from_secs(3);

/// A row that has ended, and where it lies: all within the gap, or outside of it in part. At the gap's edges it may
/// be either.
#[derive(Deserialize)]
struct Ended {
    id: Uuid,
    status: String,
    created: i64,
    within: bool,
    apart: bool,
}

#[test]
fn only_runs_that_began_and_ended_while_the_journal_was_away_have_no_span() {
    let database = Database::attached();
    database.file("sql/ledger.sql");
    database.sql("CREATE TABLE gap (moment text, at timestamptz DEFAULT clock_timestamp())");
    let mut collector = Collector::start();
    let relay = Process::start(&mut relay(&database, &collector.http()));
    let life = test_file("sql/gap/life.sql");
    let mut pgbench = database.pgbench([(life.as_path(), 1)]);
    let writers = Process::start(pgbench.args(["--client=32", "--jobs=2", "--transactions=20"]));

    wait_for("runs in flight", || (database.number("SELECT count(*) FROM ledger") > 200).then_some(()));
    let rename = |from: &str, to: &str, before: &str, after: &str| {
        database.sql(&format!("INSERT INTO gap VALUES ('{before}')"));
        database.sql(&format!("ALTER TABLE runspan.{from} RENAME TO {to}"));
        database.sql(&format!("INSERT INTO gap VALUES ('{after}')"));
    };
    rename("journal", "journal_away", "breaks", "broken");
    let began = Instant::now();
    wait_for("end of the gap", || (began.elapsed() > GAP).then_some(()));
    rename("journal_away", "journal", "mends", "mended");

    let written = writers.wait();
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    let said = relay.terminate();
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("journal\" does not exist"), "{}", said.stderr);
    // It reconciles when it takes the lease.
    drain(&database, &collector.http());
    collector.go_away();

    let spans: Vec<Span> = items(&collector.lines("traces"));
    let mut runs: HashMap<String, Vec<Span>> = HashMap::new();
    spans.into_iter().filter(|span| span.kind == 2).for_each(|span| {
        let run = span.attributes["runId"].as_str().unwrap().to_owned();
        runs.entry(run).or_default().push(span);
    });
    let (mut lost, mut mended) = (0, 0);
    for row in ended(&database) {
        let spans = runs.remove(&row.id.to_string()).unwrap_or_default();
        let [span] = spans.as_slice() else {
            assert!(spans.is_empty(), "run {} has {} spans", row.id, spans.len());
            assert!(!row.apart, "run {} was in flight outside of the gap, and has no span", row.id);
            lost += 1;
            continue;
        };
        assert!(!row.within, "run {} began and ended while there was no journal", row.id);
        assert_eq!(span.start, row.created, "run {}", row.id);
        assert_eq!(span.attributes["outcome"], row.status, "run {}", row.id);
        assert_eq!(span.attributes["reason"], "1 test is red", "run {}", row.id);
        mended += usize::from(span.events.iter().any(|event| event.attributes.contains_key("reconciled")));
    }
    assert!(runs.is_empty(), "spans of nobody's");
    let skipped = skipped(&database);
    println!("{lost} runs lay within the gap; {mended} spans were mended; {skipped} entries skipped");
    assert!(lost > 0 && mended > 0);
    assert_eq!(database.number("SELECT count(*) FROM runspan.open_runs"), 0);
}

/// The runs that have ended, against the moments of the gap.
fn ended(database: &Database) -> Vec<Ended> {
    database.rows(
        "WITH life AS (
             SELECT run_id AS id, min(began) AS began, min(ended) AS noted, max(began) AS last, max(ended) AS ended
             FROM ledger GROUP BY 1)
         SELECT w.id, w.status, (extract(epoch FROM w.created_at) * 1000000)::bigint AS created,
             life.began > broken.at AND life.ended < mends.at AS within,
             life.noted < breaks.at OR life.last > mended.at AS apart
         FROM workflow_runs w JOIN life USING (id)
         JOIN gap breaks ON breaks.moment = 'breaks' JOIN gap broken ON broken.moment = 'broken'
         JOIN gap mends ON mends.moment = 'mends' JOIN gap mended ON mended.moment = 'mended'
         WHERE w.status NOT IN ('queued', 'running')",
    )
}

/// What the triggers could not write is counted: all that lies within the gap, and perhaps some at its edges.
fn skipped(database: &Database) -> i64 {
    let skipped = database.number("SELECT last_value FROM runspan.journal_skipped WHERE is_called");
    let between = |from: &str, to: &str, inner: bool| {
        let (after, before) = if inner { ("began", "ended") } else { ("ended", "began") };
        database.number(&format!(
            "SELECT count(*) FROM ledger WHERE {after} > (SELECT at FROM gap WHERE moment = '{from}')
                 AND {before} < (SELECT at FROM gap WHERE moment = '{to}')"
        ))
    };
    let (least, most) = (between("broken", "mends", true), between("breaks", "mended", false));
    assert!((least..=most).contains(&skipped), "{skipped} are counted, and should be {least} to {most}");
    skipped
}

#[test]
fn what_a_waiting_entry_hides_is_mended_before_the_relay_is_idle() {
    let database = Database::attached();
    let mut collector = Collector::start();
    database.sql(
        "INSERT INTO workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES ('triage', 'issue', 'acme', 'widgets', 1);
         SET session_replication_role = replica;
         UPDATE workflow_runs SET status = 'succeeded'",
    );
    drain(&database, &collector.http());
    collector.go_away();
    let spans: Vec<Span> = items(&collector.lines("traces"));
    let outcomes: Vec<_> = spans.iter().filter_map(|span| span.attributes.get("outcome")).collect();
    assert_eq!(outcomes, ["succeeded"]);
    assert_eq!(database.number("SELECT count(*) FROM runspan.open_runs"), 0);
}
