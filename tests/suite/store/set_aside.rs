//! Entries that cannot be parsed: kept, listed, retried, dropped.

use std::sync::Arc;

use runspan::run::RunId;
use runspan::store::Selection;

use crate::cli::runspan;
use crate::database::Database;
use crate::projector::Relay;

on_every_database!(
    an_entry_that_was_set_aside_can_be_retried_or_dropped,
    the_oldest_of_too_many_are_dropped,
    the_command_lists_retries_and_drops_them,
);

/// Journals an entry without a workflow, as nobody's trigger does.
async fn journal_unreadable(database: &Database, run: RunId) {
    let at = if database.is_postgres() { "now()" } else { "1" };
    database
        .connect()
        .await
        .execute(&format!(
            "INSERT INTO {} (run_id, to_status, at, reason) VALUES ('{run}', 'queued', {at}, 'it''s')",
            database.own("journal")
        ))
        .await;
}

async fn an_entry_that_was_set_aside_can_be_retried_or_dropped(database: &Database) {
    let store = database.attach().await.0;
    let relay = Relay::new(Arc::clone(&store)).await;
    let runs = [RunId::generate(), RunId::generate()];
    for run in runs {
        journal_unreadable(database, run).await;
    }
    relay.drain().await;
    let entries = store.list_set_aside(10).await.unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].entry["run_id"], runs[0].to_string());
    assert_eq!(entries[0].entry["reason"], "it's");
    assert_eq!(store.list_set_aside(1).await.unwrap(), entries[..1]);

    // Once what is missing is there, it can be read.
    let named = if database.is_postgres() {
        "UPDATE runspan.set_aside SET entry = entry || '{\"workflow_name\": \"triage\"}'"
    } else {
        "UPDATE runspan_set_aside SET entry = json_set(entry, '$.workflow_name', 'triage')"
    };
    database.connect().await.execute(named).await;
    let first = Selection::Ids(vec![entries[0].seq]);
    assert_eq!(store.retry_set_aside(&first).await.unwrap(), 1);
    assert_eq!(store.retry_set_aside(&first).await.unwrap(), 0, "it is there no longer");
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert!(relay.drain().await.contains("queued"));
    assert_eq!(store.discard_set_aside(&Selection::All).await.unwrap(), 1);
    assert_eq!(store.status().await.unwrap().set_aside_entries, 0);
}

async fn the_oldest_of_too_many_are_dropped(database: &Database) {
    let store = database.attach().await.0;
    let relay = Relay::new(Arc::clone(&store)).await;
    let (at, numbers) = if database.is_postgres() {
        ("now()", "SELECT n FROM generate_series(1, 9999) n")
    } else {
        (
            "1",
            "WITH RECURSIVE m (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM m WHERE n < 9999) SELECT n FROM m",
        )
    };
    let many = format!(
        "INSERT INTO {} (seq, error, entry, set_aside_at) SELECT -n, 'old', '{{}}', {at} FROM ({numbers}) s",
        database.own("set_aside")
    );
    database.connect().await.execute(&many).await;
    for _ in 0..3 {
        journal_unreadable(database, RunId::generate()).await;
    }
    relay.drain().await;
    let entries = store.list_set_aside(20_000).await.unwrap();
    assert_eq!(entries.len(), 10_000);
    assert_eq!(entries[0].seq, -9_997, "two went");
    assert_eq!(entries.iter().filter(|entry| entry.error != "old").count(), 3);
}

async fn the_command_lists_retries_and_drops_them(database: &Database) {
    let store = database.attach().await.0;
    let relay = Relay::new(Arc::clone(&store)).await;
    let text = |arguments: &[&str]| {
        let output = runspan(database, arguments);
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(text(&["set-aside"]), (Some(0), "set aside: 0 entries\n".to_owned()));
    let run = RunId::generate();
    journal_unreadable(database, run).await;
    relay.drain().await;
    let (_, listed) = text(&["set-aside"]);
    assert!(listed.starts_with("set aside: 1 entry\n") && listed.contains(&run.to_string()), "{listed}");
    let json: serde_json::Value = serde_json::from_str(&text(&["set-aside", "--json"]).1).unwrap();
    assert_eq!(json[0]["entry"]["run_id"], run.to_string());
    let id = json[0]["seq"].to_string();
    let (code, line) = text(&["set-aside", "drop", "999999"]);
    assert_eq!(code, Some(1));
    assert!(
        line.contains("found 0 of 1 id among the entries that are set aside: see `runspan set-aside`"),
        "{line}"
    );
    assert_eq!(text(&["set-aside", "retry", &id]), (Some(0), "1 entry in the journal again\n".to_owned()));
    relay.drain().await;
    assert_eq!(text(&["set-aside", "drop", "--all"]), (Some(0), "1 entry dropped\n".to_owned()));
}
