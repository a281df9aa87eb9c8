//! The table's mutators.

use runspan::run::{RunId, Status};
use runspan::runs::{self, Owner, Parent, RunsError};
use serde_json::{Map, Value, json};

use crate::database::{Database, Session, new_run};

on_every_database!(
    migrations_are_applied_once,
    a_run_goes_from_queued_to_its_end,
    every_column_arrives,
    reasons_come_with_the_status,
    merging_replaces_top_level_keys_whole,
    a_target_takes_one_run_in_flight_a_workflow,
    another_violation_is_not_in_flight,
    an_illegal_transition_is_an_error_and_changes_nothing,
    a_run_that_is_not_there_is_not_found,
    a_status_that_is_none_is_corrupt,
    a_change_is_part_of_the_callers_transaction,
    updated_at_moves_with_every_change,
);

async fn state(session: &mut Session, id: RunId) -> Value {
    let sql = format!("SELECT state FROM workflow_runs WHERE id = '{id}'");
    serde_json::from_str(&session.text(&sql).await.unwrap()).unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("no object: {other}"),
    }
}

async fn migrations_are_applied_once(database: &Database) {
    let mut session = database.connect().await;
    assert_eq!(runs::migrate(session.runs()).await.unwrap(), 0);
    session.execute("INSERT INTO workflow_runs_migrations (version) VALUES (99)").await;
    let error = runs::migrate(session.runs()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "workflow_runs has migration 99, this program knows 2: install a newer version"
    );
}

async fn a_run_goes_from_queued_to_its_end(database: &Database) {
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    assert_eq!(runs::status(session.runs(), id).await.unwrap(), Status::Queued);
    runs::mark_running(session.runs(), id).await.unwrap();
    assert_eq!(runs::status(session.runs(), id).await.unwrap(), Status::Running);
    runs::mark_succeeded(session.runs(), id).await.unwrap();
    assert_eq!(runs::status(session.runs(), id).await.unwrap(), Status::Succeeded);
}

async fn every_column_arrives(database: &Database) {
    let mut session = database.connect().await;
    let parent = session.queue("ship", 1).await;
    let mut run = new_run("implement", 1);
    run.parent = Some(Parent { run: parent, step_index: 2 });
    run.state = object(json!({"plan": [1, 2]}));
    run.delivery_id = Some("d-1".into());
    run.tracking_comment_id = Some(7);
    run.owner = Some(Owner { kind: "executor".into(), id: "e-1".into() });
    let id = runs::insert_queued(session.runs(), &run).await.unwrap();
    let columns = "workflow_name || ' ' || target_type || ' ' || target_owner || ' ' || target_repo || ' ' || \
                   target_number || ' ' || parent_step_index || ' ' || tracking_comment_id || ' ' || \
                   delivery_id || ' ' || owner_kind || ' ' || owner_id || ' ' || status";
    let sql = format!("SELECT {columns} FROM workflow_runs WHERE id = '{id}' AND parent_run_id = '{parent}'");
    assert_eq!(
        session.text(&sql).await.as_deref(),
        Some("implement issue acme widgets 1 2 7 d-1 executor e-1 queued")
    );
    assert_eq!(state(&mut session, id).await, json!({"plan": [1, 2]}));
}

async fn reasons_come_with_the_status(database: &Database) {
    let mut session = database.connect().await;
    let (failed, incomplete) = (session.queue("triage", 1).await, session.queue("triage", 2).await);
    let reason = "uncaught: \"quoted\" \\ \u{1}\n\u{0} 💥";
    runs::mark_failed(session.runs(), failed, reason).await.unwrap();
    assert_eq!(
        state(&mut session, failed).await,
        json!({"failedReason": "uncaught: \"quoted\" \\ \u{1}\n\u{fffd} 💥"})
    );
    runs::mark_running(session.runs(), incomplete).await.unwrap();
    let progress = object(json!({"failedReason": "an old one", "step": 3}));
    runs::merge_state(session.runs(), incomplete, &progress).await.unwrap();
    runs::mark_incomplete(session.runs(), incomplete, "2 of 5 checks are red").await.unwrap();
    assert_eq!(
        state(&mut session, incomplete).await,
        json!({"failedReason": "an old one", "incompleteReason": "2 of 5 checks are red", "step": 3})
    );
}

async fn merging_replaces_top_level_keys_whole(database: &Database) {
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    for (patch, merged) in [
        (json!({}), json!({})),
        (json!({"a": {"b": 1}, "c": "x"}), json!({"a": {"b": 1}, "c": "x"})),
        (json!({}), json!({"a": {"b": 1}, "c": "x"})),
        (json!({"a": {"d": null}}), json!({"a": {"d": null}, "c": "x"})),
        (json!({"c": null, "é\"\\.$[0]": 0.1}), json!({"a": {"d": null}, "c": null, "é\"\\.$[0]": 0.1})),
        (
            json!({"é\"\\.$[0]": [true, "\u{0}"], "a": 1}),
            json!({"a": 1, "c": null, "é\"\\.$[0]": [true, "\u{fffd}"]}),
        ),
    ] {
        runs::merge_state(session.runs(), id, &object(patch)).await.unwrap();
        assert_eq!(state(&mut session, id).await, merged);
    }
    session.execute("UPDATE workflow_runs SET state = '[1, 2]'").await;
    runs::merge_state(session.runs(), id, &object(json!({"a": 1}))).await.unwrap();
    assert_eq!(state(&mut session, id).await, json!({"a": 1}));
}

async fn a_target_takes_one_run_in_flight_a_workflow(database: &Database) {
    let mut session = database.connect().await;
    let first = session.queue("triage", 1).await;
    session.queue("review", 1).await;
    session.queue("triage", 2).await;
    // Inside a transaction, which goes on.
    session.execute("BEGIN").await;
    let error = runs::insert_queued(session.runs(), &new_run("triage", 1)).await.unwrap_err();
    assert!(matches!(error, RunsError::InFlight { run: Some(run) } if run == first), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("a run of this workflow is already in flight for this target: {first}")
    );
    runs::mark_failed(session.runs(), first, "superseded").await.unwrap();
    session.queue("triage", 1).await;
    session.execute("COMMIT").await;
    assert_eq!(session.count("workflow_runs").await, 4);
}

async fn another_violation_is_not_in_flight(database: &Database) {
    let mut session = database.connect().await;
    let error = runs::insert_queued(session.runs(), &new_run("triage", 0)).await.unwrap_err();
    assert!(matches!(error, RunsError::Database(_)), "{error:?}");
}

async fn an_illegal_transition_is_an_error_and_changes_nothing(database: &Database) {
    let mut session = database.connect().await;
    for (number, from) in (1..).zip(Status::REQUIRED) {
        for to in Status::REQUIRED {
            session.execute("DELETE FROM workflow_runs").await;
            let id = session.queue("triage", number).await;
            session.execute(&format!("UPDATE workflow_runs SET status = '{from}'")).await;
            let result = match to {
                Status::Queued | Status::Cancelled => continue,
                Status::Running => runs::mark_running(session.runs(), id).await,
                Status::Succeeded => runs::mark_succeeded(session.runs(), id).await,
                Status::Failed => runs::mark_failed(session.runs(), id, "why").await,
                Status::Incomplete => runs::mark_incomplete(session.runs(), id, "why").await,
            };
            let now = runs::status(session.runs(), id).await.unwrap();
            if from.may_become(to) {
                result.unwrap();
                assert_eq!(now, to);
            } else {
                let error = result.unwrap_err();
                assert!(
                    matches!(error, RunsError::IllegalTransition { run, from: f, to: t } if (run, f, t) == (id, from, to)),
                    "{error:?}"
                );
                assert_eq!(now, from);
                assert_eq!(state(&mut session, id).await, json!({}));
            }
        }
    }
}

async fn a_run_that_is_not_there_is_not_found(database: &Database) {
    let mut session = database.connect().await;
    let id = RunId::generate();
    for result in [
        runs::mark_running(session.runs(), id).await,
        runs::mark_failed(session.runs(), id, "why").await,
        runs::merge_state(session.runs(), id, &Map::new()).await,
        runs::status(session.runs(), id).await.map(|_| ()),
    ] {
        assert!(matches!(result, Err(RunsError::NotFound { run }) if run == id), "{result:?}");
    }
}

async fn a_status_that_is_none_is_corrupt(database: &Database) {
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    session
        .execute(if database.is_postgres() {
            "ALTER TABLE workflow_runs DROP CONSTRAINT workflow_runs_status_check"
        } else {
            "PRAGMA ignore_check_constraints = ON"
        })
        .await;
    session.execute("UPDATE workflow_runs SET status = 'paused'").await;
    let error = runs::mark_running(session.runs(), id).await.unwrap_err();
    assert!(matches!(error, RunsError::Corrupt { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "run {id} is corrupt: unknown status \"paused\" (known: queued, running, succeeded, failed, incomplete, cancelled)"
        )
    );
}

async fn a_change_is_part_of_the_callers_transaction(database: &Database) {
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    session.execute("BEGIN").await;
    runs::mark_running(session.runs(), id).await.unwrap();
    session.queue("triage", 2).await;
    session.execute("ROLLBACK").await;
    assert_eq!(runs::status(session.runs(), id).await.unwrap(), Status::Queued);
    assert_eq!(session.count("workflow_runs").await, 1);
}

async fn updated_at_moves_with_every_change(database: &Database) {
    let mut session = database.connect().await;
    let id = session.queue("triage", 1).await;
    session.execute("UPDATE workflow_runs SET updated_at = '2001-01-01T00:00:00Z'").await;
    if !database.is_postgres() {
        // There the trigger is set off by every column but this one.
        assert_eq!(session.count("workflow_runs WHERE updated_at < '2002-01-01'").await, 1);
    }
    runs::merge_state(session.runs(), id, &object(json!({"a": 1}))).await.unwrap();
    assert_eq!(session.count("workflow_runs WHERE updated_at >= created_at").await, 1);
}
