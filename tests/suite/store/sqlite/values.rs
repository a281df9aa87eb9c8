//! Values of the application's that are no text, no number, or no UTF-8.

use runspan::run::RunId;

use crate::database::{Database, Session};
use crate::projector::Relay;

/// A table that takes anything.
const ANYTHING: &str = "DROP TABLE workflow_runs;
    CREATE TABLE workflow_runs (id PRIMARY KEY, workflow_name, target_type, target_owner, target_repo, target_number,
        parent_run_id, status, state, delivery_id, created_at, updated_at);
    CREATE INDEX in_flight ON workflow_runs (status)";

#[tokio::test]
async fn nothing_in_a_column_stops_what_is_read_of_the_table() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session.execute(ANYTHING).await;
    let values = [
        "CAST(x'61c328ff' AS TEXT)",
        "x'61c328ff'",
        "NULL",
        "7",
        "7.5",
        "1e999",
        "-9223372036854775808",
        "9223372036854775807",
        "zeroblob(100000)",
        "'a' || char(0) || 'b'",
    ];
    let bad = "CAST('{\"failedReason\": \"' || CAST(x'c328' AS TEXT) || '\", \"traceparent\": 7}' AS TEXT)";
    for attach_first in [true, false] {
        let (store, _) = database.attach().await;
        if !attach_first {
            store.detach(false).await.unwrap();
        }
        for value in values {
            for status in ["queued", "running"] {
                session
                    .execute(&format!(
                        "INSERT INTO workflow_runs VALUES ('{}', {value}, {value}, {value}, {value}, {value}, {value},
                             '{status}', {bad}, {value}, '2026-01-01', {value})",
                        RunId::generate()
                    ))
                    .await;
            }
        }
        if attach_first {
            session.execute("DELETE FROM runspan_journal").await;
        }
        let relay = Relay::new(database.attach().await.0).await;
        let in_flight = relay.store.in_flight().await.unwrap();
        let total: i64 = in_flight.iter().map(|row| row.runs).sum();
        assert_eq!(total.unsigned_abs() + 2, session.count("workflow_runs").await, "{in_flight:?}");
        relay.drain().await;
        let status = relay.store.status().await.unwrap();
        assert_eq!((status.journal_entries, status.set_aside_entries), (0, 0));
        assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
        let stuck = relay.store.stuck(100).await.unwrap();
        assert_eq!(stuck.count, total.unsigned_abs());
        assert!(stuck.runs.iter().any(|run| run.workflow_name == "a\u{fffd}(\u{fffd}"), "{stuck:?}");
        // What it becomes is told, and so is what nobody saw.
        session
            .execute(&format!("UPDATE workflow_runs SET status = 'failed', target_number = {}", values[5]))
            .await;
        session.execute("DELETE FROM runspan_journal").await;
        assert_eq!(relay.store.reconcile().await.unwrap().entries, total.unsigned_abs());
        assert!(relay.drain().await.contains("reason=\u{fffd}("));
        assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
        session.execute("DELETE FROM workflow_runs").await;
        relay.drain().await;
    }
}

#[tokio::test]
async fn a_status_that_is_no_text_stops_nothing() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session.execute(ANYTHING).await;
    let relay = Relay::new(database.attach().await.0).await;
    for status in
        ["x'71756575656400ff'", "x'717565756564'", "3", "3.5", "1e999", "CAST(x'ff' AS TEXT)", "NULL"]
    {
        let run = RunId::generate();
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, status, created_at)
                 VALUES ('{run}', 'triage', 'queued', '2026-01-01');
                 UPDATE workflow_runs SET status = {status} WHERE id = '{run}'"
            ))
            .await;
    }
    relay.drain().await;
    relay.store.reconcile().await.unwrap();
    relay.drain().await;
    relay.store.stuck(10).await.unwrap();
    relay.store.in_flight().await.unwrap();
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    let told = relay.drain().await;
    assert!(told.matches("span \"triage\" [").count() >= 6, "{told}");
    assert_eq!(relay.store.status().await.unwrap().journal_entries, 0);
    // And attach says what will be missing.
    session.execute("UPDATE workflow_runs SET status = 3").await;
    let (_, attached) = database.attach().await;
    assert_eq!(
        attached.warnings,
        [
            "workflow_runs.status holds 3, which is not a known status: spans of runs that end so stay open, see docs/table.md"
        ]
    );
}

#[tokio::test]
async fn attach_warns_of_values_that_make_less_of_a_run() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session.execute(ANYTHING).await;
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, status, target_number, state, created_at) VALUES
             ('{}', 'triage', 'queued', 7, '{{}}', '2026-01-01'), ('{}', 'triage', 'archived', 7.5, x'00', 'now')",
            RunId::generate(),
            RunId::generate()
        ))
        .await;
    let (_, attached) = database.attach().await;
    assert_eq!(
        attached.warnings,
        [
            "workflow_runs.status holds 'archived', which is not a known status: spans of runs that end so stay open, see docs/table.md",
            "workflow_runs.target_number holds 7.5, which is not an integer: such runs have no target",
            "workflow_runs.state holds values of type blob, not JSON text: no reason and no traceparent is read from them",
        ]
    );
}

#[tokio::test]
async fn attach_refuses_what_can_be_no_id() {
    for id in [
        "'run_7'",
        "7",
        "x'0190a5d47d3c7cc18b6a0d2f3a4b5c6d'",
        "'0190A5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d'",
        "'{0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d}'",
        "'0190a5d47d3c-7cc1-8b6a-0d2f3a4b5c6d'",
        "NULL",
    ] {
        let database = Database::sqlite().await;
        let mut session = database.connect().await;
        session.execute(ANYTHING).await;
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, status) VALUES ('{}', 'triage', 'queued'),
                 ({id}, 'triage', 'queued')",
                RunId::generate()
            ))
            .await;
        let error = database.store().attach(&crate::database::plan()).await.unwrap_err().to_string();
        let expected = "workflow_runs.id holds ";
        assert!(error.starts_with(expected) && error.ends_with("with all hyphens or none"), "{id}: {error}");
        assert_eq!(session.count("sqlite_schema WHERE name LIKE 'runspan%'").await, 0);
    }
}

/// As Django and `SQLAlchemy` write UUIDs, and in capitals; a parent may be spelled in another case than its row.
#[tokio::test]
async fn ids_without_hyphens_or_in_capitals_are_runs() {
    let spell: [fn(RunId) -> String; 4] = [
        |run| run.to_string(),
        |run| run.uuid().simple().to_string(),
        |run| run.to_string().to_uppercase(),
        |run| run.uuid().simple().to_string().to_uppercase(),
    ];
    for spell in spell {
        let database = Database::sqlite().await;
        let mut session = database.connect().await;
        session.execute(ANYTHING).await;
        let (root, child, no_parent) = (RunId::generate(), RunId::generate(), RunId::generate());
        let insert = async |session: &mut Session, run: RunId, parent: &str| {
            let id = spell(run);
            session
                .execute(&format!(
                    "INSERT INTO workflow_runs (id, workflow_name, status, parent_run_id, created_at)
                     VALUES ('{id}', 'triage', 'queued', {parent}, CURRENT_TIMESTAMP)"
                ))
                .await;
        };
        // Adopted, then journalled, then missed.
        insert(&mut session, root, "NULL").await;
        let relay = Relay::new(database.attach().await.0).await;
        relay.drain().await;
        let capitals = format!("'{}'", spell(root).to_uppercase());
        insert(&mut session, child, &capitals).await;
        insert(&mut session, no_parent, "''").await;
        assert_eq!(relay.store.stuck(10).await.unwrap().count, 0);
        session.execute("UPDATE workflow_runs SET status = 'running'").await;
        relay.drain().await;
        assert_eq!(relay.store.reconcile().await.unwrap().entries, 0, "nothing was missed");
        session.execute("UPDATE workflow_runs SET status = 'succeeded'; DELETE FROM runspan_journal").await;
        assert_eq!(relay.store.reconcile().await.unwrap().entries, 3);
        let (_, plan) = relay.step(100).await;
        let mut ended: Vec<_> =
            plan.spans.iter().map(|span| (span.run, span.context.root_of(span.run))).collect();
        ended.sort_unstable();
        let mut expected = vec![(root, root), (child, root), (no_parent, no_parent)];
        expected.sort_unstable();
        assert_eq!(ended, expected);
        assert_eq!(relay.store.status().await.unwrap().set_aside_entries, 0);
    }
}

#[tokio::test]
async fn generated_columns_are_journalled() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    session
        .execute(
            "DROP TABLE workflow_runs;
             CREATE TABLE workflow_runs (id TEXT PRIMARY KEY, job TEXT, phase INTEGER, number INTEGER,
                 workflow_name TEXT GENERATED ALWAYS AS (lower(job)) VIRTUAL,
                 status TEXT GENERATED ALWAYS AS (CASE phase WHEN 0 THEN 'queued' WHEN 1 THEN 'running' ELSE 'failed' END) VIRTUAL,
                 target_number INTEGER GENERATED ALWAYS AS (number + 1) STORED,
                 target_type TEXT GENERATED ALWAYS AS ('pr'), target_owner TEXT DEFAULT 'acme',
                 target_repo TEXT GENERATED ALWAYS AS ('widgets') STORED, parent_run_id TEXT,
                 state TEXT GENERATED ALWAYS AS (json_object('failedReason', 'phase ' || phase)),
                 delivery_id TEXT, created_at TEXT DEFAULT '2026-01-01', updated_at TEXT);
             CREATE INDEX in_flight ON workflow_runs (status)",
        )
        .await;
    let (store, attached) = database.attach().await;
    assert_eq!(attached.warnings, Vec::<String>::new());
    let relay = Relay::new(store).await;
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, job, phase, number) VALUES ('{}', 'TRIAGE', 0, 6);
             UPDATE workflow_runs SET phase = 1;
             UPDATE workflow_runs SET phase = 2",
            RunId::generate()
        ))
        .await;
    assert_told!(relay.drain().await, @r#"
    queued triage acme/widgets#7 rootWorkflowName=triage
    running triage acme/widgets#7 rootWorkflowName=triage
    failed triage acme/widgets#7 rootWorkflowName=triage outcome=failed error.type=handler reason=phase 2
    completed triage acme/widgets#7 rootWorkflowName=triage outcome=failed
    span "triage queued" [] child
    span "triage" [queued running failed] error=phase 2
    "#);
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
}
