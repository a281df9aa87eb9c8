//! What is stuck: the view, the store's query and the command.

use std::process::{Command, Output};

use runspan::projection;
use runspan::relay::{self, Logs};
use runspan::run::RunId;
use runspan::runs;
use runspan::store::Store;

use crate::database::{Database, Session};
use crate::projector::Relay;
use crate::receiver::Receiver;

on_every_database!(
    a_run_is_stuck_past_twice_its_workflows_usual,
    a_usual_of_seconds_has_a_minutes_grace,
    without_a_history_it_is_an_hour,
    the_relay_learns_what_is_usual,
    what_has_ended_is_not_stuck,
    a_parent_that_waits_counts_like_any_run,
    it_is_since_when_the_run_took_its_status,
    the_oldest_come_first_and_all_are_counted,
    a_renamed_table_is_still_asked,
    without_a_table_nothing_is_stuck,
    rows_that_are_no_runs_are_left_out,
    the_command_lists_them,
    the_oldest_in_flight_has_its_age_in_seconds,
);

/// Says what is usual: seconds by workflow.
async fn usual(database: &Database, session: &mut Session, seconds: &str) {
    let series = database.own("series");
    session.execute(&format!("DELETE FROM {series}")).await;
    session
        .execute(&format!("INSERT INTO {series} (head, totals, usual) VALUES ('{{}}', '{{}}', '{seconds}')"))
        .await;
}

/// A time `seconds` ago, as the application writes it.
fn ago(database: &Database, seconds: u32) -> String {
    if database.is_postgres() {
        format!("clock_timestamp() - interval '{seconds} seconds'")
    } else {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{seconds} seconds')")
    }
}

/// Queues a run that many seconds ago.
async fn queued_ago(
    database: &Database,
    session: &mut Session,
    workflow: &str,
    number: i64,
    seconds: u32,
) -> RunId {
    let run = session.queue(workflow, number).await;
    let then = ago(database, seconds);
    session.execute(&format!("UPDATE workflow_runs SET created_at = {then} WHERE id = '{run}'")).await;
    run
}

/// The stuck runs: workflow, target, status.
async fn stuck(store: &dyn Store) -> Vec<String> {
    let stuck = store.stuck(100).await.unwrap();
    assert_eq!(stuck.count, stuck.runs.len() as u64);
    let told = stuck.runs.iter().map(|run| {
        format!("{} {} {}", run.workflow_name, run.target.as_deref().unwrap_or_default(), run.status)
    });
    told.collect()
}

async fn a_run_is_stuck_past_twice_its_workflows_usual(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    usual(database, &mut session, r#"{"ship": 1000, "plan": 7200}"#).await;
    for (number, seconds) in [(1, 1900), (2, 2100)] {
        queued_ago(database, &mut session, "ship", number, seconds).await;
        queued_ago(database, &mut session, "plan", number, seconds).await;
    }
    let stuck_now = store.stuck(9).await.unwrap();
    let [run] = stuck_now.runs.as_slice() else { panic!("{stuck_now:?}") };
    assert_eq!((run.workflow_name.as_str(), run.usual_seconds), ("ship", Some(1000.0)));
    assert!((2100.0..2160.0).contains(&run.age_seconds), "{}", run.age_seconds);
    assert_eq!((run.target_owner.as_deref(), run.target_repo.as_deref()), (Some("acme"), Some("widgets")));
    assert_eq!(run.target.as_deref(), Some("acme/widgets#2"));
    // Once more have ended, what is usual may be longer.
    usual(database, &mut session, r#"{"ship": 1100, "plan": 7200}"#).await;
    assert!(stuck(&*store).await.is_empty());
}

async fn the_oldest_in_flight_has_its_age_in_seconds(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    for (number, seconds) in [(1, 90), (2, 7200)] {
        queued_ago(database, &mut session, "ship", number, seconds).await;
    }
    let in_flight = store.in_flight().await.unwrap();
    let [ship] = in_flight.as_slice() else { panic!("{in_flight:?}") };
    assert_eq!((ship.workflow.as_str(), ship.status.as_str(), ship.runs), ("ship", "queued", 2));
    assert!((7200.0..7260.0).contains(&ship.oldest_age), "{ship:?}");
}

async fn a_usual_of_seconds_has_a_minutes_grace(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    usual(database, &mut session, r#"{"triage": 0.2}"#).await;
    queued_ago(database, &mut session, "triage", 1, 20).await;
    queued_ago(database, &mut session, "triage", 2, 70).await;
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#2 queued"]);
}

async fn without_a_history_it_is_an_hour(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    for (number, seconds) in [(1, 3500), (2, 3700)] {
        queued_ago(database, &mut session, "triage", number, seconds).await;
    }
    // Nothing is known at all, nothing of any workflow, nothing of this one.
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#2 queued"]);
    for known in ["{}", r#"{"ship": 5}"#] {
        usual(database, &mut session, known).await;
        assert_eq!(stuck(&*store).await, ["triage acme/widgets#2 queued"]);
    }
    assert_eq!(store.stuck(1).await.unwrap().runs[0].usual_seconds, None);
}

async fn the_relay_learns_what_is_usual(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    // 19 are no history, 20 are one.
    for (workflow, ended) in [("triage", 20), ("plan", 19)] {
        for number in 0..ended {
            let run = session.queue(workflow, number + 1).await;
            runs::mark_running(session.runs(), run).await.unwrap();
            runs::mark_succeeded(session.runs(), run).await.unwrap();
        }
        queued_ago(database, &mut session, workflow, 99, 90).await;
    }
    let receiver = Receiver::http().await;
    // Other buckets begin another history, and until there is enough of it the one before holds.
    for buckets in ["1,5", "2,7"] {
        let settings = relay::Settings {
            projection: projection::Settings { buckets: buckets.parse().unwrap(), ..Default::default() },
            ..relay::Settings::default()
        };
        let relay = relay::Relay::new(store.clone(), Logs::Otlp, &|name| {
            (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| receiver.endpoint())
        });
        relay.unwrap().with(settings).spawn().drain().await.unwrap();
        let now = store.stuck(9).await.unwrap();
        let [run] = now.runs.as_slice() else { panic!("{now:?}") };
        assert_eq!(run.workflow_name, "triage");
        assert!(run.usual_seconds.is_some_and(|usual| usual < 30.0), "{run:?}");
        let run = session.queue("triage", 98).await;
        runs::mark_running(session.runs(), run).await.unwrap();
        runs::mark_succeeded(session.runs(), run).await.unwrap();
    }
}

async fn what_has_ended_is_not_stuck(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let run = queued_ago(database, &mut session, "triage", 1, 4000).await;
    runs::mark_running(session.runs(), run).await.unwrap();
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#1 running"]);
    runs::mark_failed(session.runs(), run, "no").await.unwrap();
    assert!(stuck(&*store).await.is_empty());
}

async fn a_parent_that_waits_counts_like_any_run(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let parent = queued_ago(database, &mut session, "ship", 1, 9000).await;
    runs::mark_running(session.runs(), parent).await.unwrap();
    let child = queued_ago(database, &mut session, "review", 1, 4000).await;
    session
        .execute(&format!(
            "UPDATE workflow_runs SET parent_run_id = '{parent}', parent_step_index = 0, delivery_id = 'd-1'
             WHERE id = '{child}'"
        ))
        .await;
    assert_eq!(stuck(&*store).await, ["ship acme/widgets#1 running", "review acme/widgets#1 queued"]);
    let runs = store.stuck(2).await.unwrap().runs;
    assert_eq!((runs[0].run_id, runs[0].parent_run_id), (parent, None));
    assert_eq!((runs[1].run_id, runs[1].parent_run_id), (child, Some(parent)));
    assert_eq!(runs[1].delivery_id.as_deref(), Some("d-1"));
}

async fn it_is_since_when_the_run_took_its_status(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let run = queued_ago(database, &mut session, "triage", 1, 4000).await;
    let since = async || relay.store.stuck(1).await.unwrap().runs[0].since.clone().unwrap();
    let queued = since().await;
    runs::mark_running(session.runs(), run).await.unwrap();
    // Not projected yet: what the row says.
    assert!(since().await > queued);
    relay.drain().await;
    let began = since().await;
    // A run that writes down how far it is has not begun anew.
    session.execute("UPDATE workflow_runs SET state = '{\"step\": 2}'").await;
    assert_eq!(since().await, began);
    assert!(began > queued);
    session.execute("UPDATE workflow_runs SET status = 'queued'").await;
    relay.drain().await;
    assert!(since().await > began);
}

async fn the_oldest_come_first_and_all_are_counted(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    for number in [3, 1, 2] {
        let seconds = 9000 - 1000 * u32::try_from(number).unwrap();
        queued_ago(database, &mut session, "triage", number, seconds).await;
    }
    let numbers =
        ["triage acme/widgets#1 queued", "triage acme/widgets#2 queued", "triage acme/widgets#3 queued"];
    assert_eq!(stuck(&*store).await, numbers);
    let two = store.stuck(2).await.unwrap();
    assert_eq!((two.count, two.runs.len()), (3, 2));
}

async fn a_renamed_table_is_still_asked(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    queued_ago(database, &mut session, "triage", 1, 4000).await;
    session.execute("ALTER TABLE workflow_runs RENAME TO \"Jobs of 'old\"").await;
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#1 queued"]);
    session.execute("ALTER TABLE \"Jobs of 'old\" DROP COLUMN tracking_comment_id").await;
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#1 queued"]);
}

async fn without_a_table_nothing_is_stuck(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    queued_ago(database, &mut session, "triage", 1, 4000).await;
    session.execute("DROP TABLE workflow_runs").await;
    assert!(stuck(&*store).await.is_empty());
}

async fn rows_that_are_no_runs_are_left_out(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    queued_ago(database, &mut session, "triage", 1, 4000).await;
    let odd = if database.is_postgres() {
        session.execute("ALTER TABLE workflow_runs ALTER workflow_name DROP NOT NULL").await;
        ["workflow_name = NULL", "created_at = 'infinity'", "created_at = '-infinity'"]
    } else {
        ["id = 'run 2'", "created_at = 17", "created_at = X'00FF'"]
    };
    for (change, number) in odd.into_iter().zip(2..) {
        let run = queued_ago(database, &mut session, "triage", number, 4000).await;
        session.execute(&format!("UPDATE workflow_runs SET {change} WHERE id = '{run}'")).await;
    }
    assert_eq!(stuck(&*store).await, ["triage acme/widgets#1 queued"]);
}

fn command(database: &Database, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runspan"));
    command.arg("stuck").args(arguments).env("DATABASE_URL", &database.url).output().unwrap()
}

fn told(database: &Database, arguments: &[&str]) -> String {
    let output = command(database, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn the_command_lists_them(database: &Database) {
    let (store, _) = database.attach().await;
    assert_eq!(told(database, &[]), "nothing is stuck\n");
    assert_eq!(told(database, &["--exit-code"]), "nothing is stuck\n");
    insta::allow_duplicates! {
        insta::assert_snapshot!(told(database, &["--json"]), @r#"
        {
          "count": 0,
          "runs": []
        }
        "#);
    }
    let mut session = database.connect().await;
    usual(database, &mut session, r#"{"ship": 1500, "triage": 0.25}"#).await;
    for (workflow, number, seconds) in
        [("triage", 7, 4000), ("ship", 42, 93_700), ("re\u{1b}[2Jview\n", 1, 7300)]
    {
        queued_ago(database, &mut session, workflow, number, seconds).await;
    }
    for arguments in [&["--exit-code"][..], &["--exit-code", "--json"], &["--exit-code", "--limit", "1"]] {
        let output = command(database, arguments);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: 3 runs are stuck\n");
        assert!(!output.stdout.is_empty());
    }
    let ids = regex::Regex::new("[0-9a-f]{8}-[0-9a-f-]{27}").unwrap();
    let shown = |text: &str| ids.replace_all(text, "00000000-0000-0000-0000-000000000000").into_owned();
    insta::allow_duplicates! {
        insta::assert_snapshot!(shown(&told(database, &[])), @"
        3 runs are stuck
         run                                   workflow     target           status  age      usual
         00000000-0000-0000-0000-000000000000  ship         acme/widgets#42  queued  1day 2h  25m
         00000000-0000-0000-0000-000000000000  re [2Jview   acme/widgets#1   queued  2h 1m    unknown
         00000000-0000-0000-0000-000000000000  triage       acme/widgets#7   queued  1h 6m    250ms
        ");
        insta::assert_snapshot!(shown(&told(database, &["--limit", "1"])), @"
        3 runs are stuck, the oldest 1 of them:
         run                                   workflow  target           status  age      usual
         00000000-0000-0000-0000-000000000000  ship      acme/widgets#42  queued  1day 2h  25m
        ");
    }
    let listed: serde_json::Value =
        serde_json::from_str(&told(database, &["--json", "--limit", "1"])).unwrap();
    assert_eq!(listed["count"], 3);
    let run = &listed["runs"][0];
    assert_eq!((&run["workflowName"], &run["target"]), (&"ship".into(), &"acme/widgets#42".into()));
    assert_eq!((&run["usualSeconds"], &run["parentRunId"]), (&1500.0.into(), &serde_json::Value::Null));

    let refused = |arguments: &[&str]| {
        let output = command(database, arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        format!("{} {}", output.status.code().unwrap(), said.lines().next().unwrap_or_default())
    };
    insta::allow_duplicates! {
        insta::assert_snapshot!(refused(&["--limit", "0"]), @"2 error: invalid value '0' for '--limit <N>': 0 is not in 1..=4294967295");
        insta::assert_snapshot!(refused(&["--limit", "many"]), @"2 error: invalid value 'many' for '--limit <N>': invalid digit found in string");
        insta::assert_snapshot!(refused(&["--database-url", "mysql://h/d"]), @r#"2 error: unknown database URL scheme "mysql" (write postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:PATH)"#);
    }
    store.detach(false).await.unwrap();
    insta::allow_duplicates! {
        insta::assert_snapshot!(refused(&[]), @"1 error: no table has runspan's triggers: run `runspan attach` first");
    }
    store.detach(true).await.unwrap();
    insta::allow_duplicates! {
        insta::assert_snapshot!(refused(&[]), @"1 error: runspan is not attached to this database: run `runspan attach --database-url …` first");
    }
}
