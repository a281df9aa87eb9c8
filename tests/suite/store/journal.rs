//! What the triggers write, for every path that a row can take.

use runspan::journal::{After, Before, Change, Entry};
use runspan::run::{RunId, Status};
use runspan::runs::{self, Parent};
use serde_json::json;

use crate::database::{Database, Session};
use crate::projector::Relay;

on_every_database!(
    every_transition_is_journalled,
    a_row_inserted_as_running_is_queued_first,
    a_restored_row_is_nothing,
    a_row_that_goes_back_to_queued_waits_again,
    what_changes_no_status_is_not_journalled,
    what_is_rolled_back_is_not_journalled,
    a_deleted_run_ends,
    a_late_change_is_a_conflict,
    children_know_their_root,
    a_cycle_of_parents_ends,
    a_parent_that_is_gone_is_the_root,
    a_refusal_is_journalled,
    an_entry_carries_the_whole_context,
    reasons_and_links_in_any_state_are_taken_as_they_are,
    a_long_reason_is_cut,
);

async fn fail(session: &mut Session, id: RunId, state: &str) {
    let state = state.replace('\'', "''");
    session
        .execute(&format!("UPDATE workflow_runs SET status = 'failed', state = '{state}' WHERE id = '{id}'"))
        .await;
}

async fn every_transition_is_journalled(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let succeeded = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), succeeded).await.unwrap();
    runs::mark_succeeded(session.runs(), succeeded).await.unwrap();
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#1 rootWorkflowName=triage
    running triage acme/widgets#1 rootWorkflowName=triage
    succeeded triage acme/widgets#1 rootWorkflowName=triage outcome=succeeded
    completed triage acme/widgets#1 rootWorkflowName=triage outcome=succeeded
    span "triage queued" [] child
    span "triage" [queued running succeeded]
    "#);
    let failed = session.queue("triage", 2).await;
    runs::mark_running(session.runs(), failed).await.unwrap();
    runs::mark_failed(session.runs(), failed, "uncaught: out of cheese").await.unwrap();
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#2 rootWorkflowName=triage
    running triage acme/widgets#2 rootWorkflowName=triage
    failed triage acme/widgets#2 rootWorkflowName=triage outcome=failed error.type=uncaught reason=uncaught: out of cheese
    completed triage acme/widgets#2 rootWorkflowName=triage outcome=failed
    span "triage queued" [] child
    span "triage" [queued running failed] error=uncaught: out of cheese
    "#);
    let incomplete = session.queue("triage", 3).await;
    runs::mark_running(session.runs(), incomplete).await.unwrap();
    runs::mark_incomplete(session.runs(), incomplete, "2 of 5 checks are red").await.unwrap();
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#3 rootWorkflowName=triage
    running triage acme/widgets#3 rootWorkflowName=triage
    incomplete triage acme/widgets#3 rootWorkflowName=triage outcome=incomplete reason=2 of 5 checks are red
    completed triage acme/widgets#3 rootWorkflowName=triage outcome=incomplete
    span "triage queued" [] child
    span "triage" [queued running incomplete]
    "#);
    let never_published = session.queue("triage", 4).await;
    runs::mark_failed(session.runs(), never_published, "enqueue failed: no broker").await.unwrap();
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#4 rootWorkflowName=triage
    enqueue_failed triage acme/widgets#4 rootWorkflowName=triage outcome=failed error.type=enqueue_failed reason=enqueue failed: no broker
    failed triage acme/widgets#4 rootWorkflowName=triage outcome=failed error.type=enqueue_failed reason=enqueue failed: no broker
    completed triage acme/widgets#4 rootWorkflowName=triage outcome=failed
    span "triage queued" [] child
    span "triage" [queued enqueue_failed failed] error=enqueue failed: no broker
    "#);
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.open_runs, status.skipped_entries), (0, 0, 0));
}

/// A row inserted by hand.
async fn insert(session: &mut Session, workflow: &str, status: &str) -> RunId {
    let id = RunId::generate();
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
             VALUES ('{id}', '{workflow}', 'pr', 'acme', 'widgets', 7, '{status}')"
        ))
        .await;
    id
}

async fn a_row_inserted_as_running_is_queued_first(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    insert(&mut database.connect().await, "triage", "running").await;
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#7 rootWorkflowName=triage
    running triage acme/widgets#7 rootWorkflowName=triage
    span "triage queued" [] child
    "#);
}

async fn a_restored_row_is_nothing(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    insert(&mut database.connect().await, "triage", "failed").await;
    assert_told!(relay.drain().await, @"");
}

async fn a_row_that_goes_back_to_queued_waits_again(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    for _ in 0..2 {
        runs::mark_running(session.runs(), id).await.unwrap();
        session.execute("UPDATE workflow_runs SET status = 'queued'").await;
    }
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#1 rootWorkflowName=triage
    running triage acme/widgets#1 rootWorkflowName=triage
    queued triage acme/widgets#1 rootWorkflowName=triage
    running triage acme/widgets#1 rootWorkflowName=triage
    queued triage acme/widgets#1 rootWorkflowName=triage
    span "triage queued" [] child
    "#);
}

async fn what_changes_no_status_is_not_journalled(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    let patch = serde_json::Map::from_iter([("step".to_owned(), json!(1))]);
    runs::merge_state(session.runs(), id, &patch).await.unwrap();
    session.execute("UPDATE workflow_runs SET status = status, delivery_id = 'd-1'").await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
}

async fn what_is_rolled_back_is_not_journalled(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.execute("BEGIN").await;
    session.queue("triage", 1).await;
    session.execute("SAVEPOINT inner_one").await;
    session.queue("triage", 2).await;
    session.execute("ROLLBACK TO inner_one").await;
    session.execute("COMMIT").await;
    session.execute("BEGIN").await;
    session.queue("triage", 3).await;
    session.execute("ROLLBACK").await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
}

async fn a_deleted_run_ends(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let ended = session.queue("triage", 2).await;
    runs::mark_failed(session.runs(), ended, "no").await.unwrap();
    relay.drain().await;
    session.execute("DELETE FROM workflow_runs").await;
    // The one that had ended is only cleaned up.
    assert_told!(relay.drain().await, @r#"
    deleted triage acme/widgets#1 rootWorkflowName=triage outcome=deleted
    completed triage acme/widgets#1 rootWorkflowName=triage outcome=deleted
    span "triage queued" [] child
    span "triage" [queued deleted]
    "#);
}

async fn a_late_change_is_a_conflict(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    runs::mark_failed(session.runs(), id, "owner lost: no heartbeat").await.unwrap();
    relay.drain().await;
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    assert_told!(relay.drain().await, @"conflict triage acme/widgets#1 rootWorkflowName=triage fromStatus=failed toStatus=succeeded");
}

async fn queue_child(session: &mut Session, workflow: &str, parent: RunId) -> RunId {
    let mut run = crate::database::new_run(workflow, 1);
    run.parent = Some(Parent { run: parent, step_index: 0 });
    runs::insert_queued(session.runs(), &run).await.unwrap()
}

async fn children_know_their_root(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let root = session.queue("ship", 1).await;
    let child = queue_child(&mut session, "implement", root).await;
    let grandchild = queue_child(&mut session, "review", child).await;
    let batch = relay.read(10).await;
    let lineage: Vec<_> = batch
        .entries
        .iter()
        .map(|(_, entry)| {
            entry.as_ref().unwrap().context.lineage.as_ref().map(|lineage| (lineage.parent, lineage.root))
        })
        .collect();
    assert_eq!(lineage, [None, Some((root, root)), Some((child, root))]);
    runs::mark_failed(session.runs(), grandchild, "no").await.unwrap();
    assert_told!(relay.drain().await, @r#"
    queued ship acme/widgets#1 rootWorkflowName=ship
    queued implement acme/widgets#1 rootWorkflowName=ship
    handed_off ship acme/widgets#1 rootWorkflowName=ship childWorkflowName=implement
    queued review acme/widgets#1 rootWorkflowName=ship
    handed_off implement acme/widgets#1 rootWorkflowName=ship childWorkflowName=review
    failed review acme/widgets#1 rootWorkflowName=ship outcome=failed error.type=handler reason=no
    completed review acme/widgets#1 rootWorkflowName=ship outcome=failed
    span "review queued" [] child
    span "review" [queued failed] child error=no
    "#);
}

async fn a_cycle_of_parents_ends(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let one = session.queue("one", 1).await;
    let two = queue_child(&mut session, "two", one).await;
    session
        .execute(&format!(
            "UPDATE workflow_runs SET parent_run_id = '{two}', parent_step_index = 0 WHERE id = '{one}'"
        ))
        .await;
    runs::mark_running(session.runs(), two).await.unwrap();
    assert_eq!(store.status().await.unwrap().journal_entries, 3);
}

async fn a_parent_that_is_gone_is_the_root(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let gone = RunId::generate();
    queue_child(&mut database.connect().await, "implement", gone).await;
    let batch = relay.read(10).await;
    let lineage = batch.entries[0].1.as_ref().unwrap().context.lineage.clone().unwrap();
    assert_eq!((lineage.parent, lineage.root, lineage.root_workflow_name), (gone, gone, None));
}

async fn a_refusal_is_journalled(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let root = session.queue("ship", 1).await;
    let child = queue_child(&mut session, "triage", root).await;
    relay.drain().await;
    let refuse = |inflight: &str| {
        if database.is_postgres() {
            format!(
                "SELECT runspan.dispatch_refused('triage', 'issue', 'acme', 'widgets', 1,
                     'workflow-dispatch-inflight', delivery_id => 'd-1', inflight_run_id => {inflight})"
            )
        } else {
            format!(
                "INSERT INTO runspan_dispatch_refused (workflow_name, target_type, target_owner, target_repo,
                     target_number, reason, delivery_id, inflight_run_id)
                 VALUES ('triage', 'issue', 'acme', 'widgets', 1, 'workflow-dispatch-inflight', 'd-1', {inflight})"
            )
        }
    };
    let gone = RunId::generate();
    for inflight in ["NULL".to_owned(), format!("'{child}'"), format!("'{gone}'")] {
        session.execute(&refuse(&inflight)).await;
    }
    let batch = relay.read(10).await;
    let found: Vec<_> = batch
        .entries
        .iter()
        .map(|(_, entry)| match entry.as_ref().unwrap().change {
            Change::Refusal { inflight } => inflight,
            Change::Transition { .. } => panic!("no refusal"),
        })
        .collect();
    assert_eq!(found, [None, Some((child, root)), Some((gone, gone))]);
    assert_told!(relay.drain().await, @r"
    dispatch_refused triage acme/widgets#1 deliveryId=d-1 error.type=workflow-dispatch-inflight reason=workflow-dispatch-inflight
    dispatch_refused triage acme/widgets#1 deliveryId=d-1 error.type=workflow-dispatch-inflight reason=workflow-dispatch-inflight
    dispatch_refused triage acme/widgets#1 deliveryId=d-1 error.type=workflow-dispatch-inflight reason=workflow-dispatch-inflight
    ");
}

async fn an_entry_carries_the_whole_context(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 delivery_id, state, created_at)
             VALUES ('{}', 'triage', 'pr', 'acme', 'widgets', 7, 'd-1',
                 '{{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}}',
                 '2026-01-02T03:04:05.678+02:00')",
            RunId::generate()
        ))
        .await;
    let mut batch = relay.read(10).await;
    let entry: Entry = batch.entries.remove(0).1.unwrap();
    assert!(!entry.reconciled);
    assert_eq!(entry.context.target().as_deref(), Some("acme/widgets#7"));
    assert_eq!(entry.context.target_type.as_deref(), Some("pr"));
    assert_eq!(entry.context.delivery_id.as_deref(), Some("d-1"));
    let Change::Transition { from, to, created_at, link, .. } = entry.change else { panic!("no transition") };
    assert_eq!((from, to), (Before::Absent, After::Known(Status::Queued)));
    assert_eq!(created_at.unwrap().to_string(), "2026-01-02T01:04:05.678000Z");
    assert_eq!(link.unwrap().to_string(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let now = chrono::Utc::now().timestamp_micros();
    assert!((now - entry.at.micros()).abs() < 60_000_000, "{}", entry.at);
}

async fn reasons_and_links_in_any_state_are_taken_as_they_are(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let mut reasons = Vec::new();
    let states = [
        r#"{"failedReason": "quote ' \" \\ / \u00e9 \t \u0001 💥"}"#,
        r#"{"failedReason": 42.5}"#,
        r#"{"failedReason": true}"#,
        r#"{"failedReason": null}"#,
        r#"{"failedReason": {"code": [1]}, "traceparent": 7}"#,
        r#"{"traceparent": {"a": 1}}"#,
        "{}",
        "[1, 2]",
        r#""failedReason""#,
        "null",
        "17",
    ];
    for (number, state) in (1..).zip(states) {
        let id = session.queue("triage", number).await;
        relay.drain().await;
        fail(&mut session, id, state).await;
        let mut batch = relay.read(10).await;
        let reason = batch.entries.remove(0).1.unwrap().reason;
        // jsonb puts a space after a comma and a colon.
        reasons.push(reason.map(|reason| reason.replace(": [", ":[")));
        relay.drain().await;
    }
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        reasons[..5],
        [text("quote ' \" \\ / é \t \u{1} 💥"), text("42.5"), text("true"), None, text(r#"{"code":[1]}"#)]
    );
    assert!(reasons[5..].iter().all(Option::is_none), "{reasons:?}");
    assert_eq!(relay.store.status().await.unwrap().skipped_entries, 0);
}

async fn a_long_reason_is_cut(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    runs::mark_failed(session.runs(), id, &"é".repeat(1 << 20)).await.unwrap();
    let batch = relay.read(10).await;
    let reason = batch.entries[1].1.as_ref().unwrap().reason.clone().unwrap();
    assert_eq!(reason, "é".repeat(8192));
}
