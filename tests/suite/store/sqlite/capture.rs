//! Tables that are rebuilt, replaced or renamed under the triggers, and what `attach` makes of them.

use runspan::store::{CaptureProblem, Detached, Plan, Store};

use crate::database::{Database, Session, plan};

fn lost(table: &str, triggers: &str) -> Vec<CaptureProblem> {
    vec![CaptureProblem::TriggersMissing { table: table.to_owned(), triggers: triggers.to_owned() }]
}

const ALL: &str = "runspan_inserted, runspan_changed, runspan_deleted";

fn of(table: &str) -> Plan {
    Plan::of(table)
}

async fn problems(store: &dyn Store) -> Vec<CaptureProblem> {
    store.capture().await.unwrap()
}

/// What makes the table and its index anew, by another name.
async fn definition(session: &mut Session, name: &str) -> String {
    let mut all = String::new();
    for part in ["workflow_runs", "idx_workflow_runs_inflight"] {
        let sql =
            session.text(&format!("SELECT sql FROM sqlite_schema WHERE name = '{part}'")).await.unwrap();
        all += &sql
            .replacen("TABLE workflow_runs", &format!("TABLE {name}"), 1)
            .replacen("TABLE \"workflow_runs\"", &format!("TABLE {name}"), 1)
            .replacen("INDEX idx_", "INDEX new_", 1)
            .replacen("ON workflow_runs", &format!("ON {name}"), 1);
        all += ";\n";
    }
    all
}

/// As ORMs change a column.
async fn rebuild(session: &mut Session) {
    let definition = definition(session, "new_workflow_runs").await;
    session
        .execute(&format!(
            "{definition};
             INSERT INTO new_workflow_runs SELECT * FROM workflow_runs;
             DROP TABLE workflow_runs;
             ALTER TABLE new_workflow_runs RENAME TO workflow_runs"
        ))
        .await;
}

#[tokio::test]
async fn a_rebuilt_table_has_lost_the_triggers_and_attach_creates_them_again() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    assert_eq!(problems(&*store).await, []);
    rebuild(&mut session).await;
    assert_eq!(problems(&*store).await, lost("workflow_runs", ALL));
    assert_eq!(store.attached_table().await.unwrap(), None);
    // Nothing is seen of it, so nothing is gone.
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    let (_, attached) = database.attach().await;
    assert_eq!(attached.warnings, [format!("workflow_runs had lost triggers: created {ALL} again")]);
    assert_eq!(problems(&*store).await, []);
    session.queue("triage", 2).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 2);
}

#[tokio::test]
async fn each_missing_trigger_is_named() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    for trigger in ALL.split(", ") {
        session.execute(&format!("DROP TRIGGER {trigger}")).await;
        assert_eq!(problems(&*store).await, lost("workflow_runs", trigger));
        assert_eq!(store.attached_table().await.unwrap().as_deref(), Some("workflow_runs"));
        let (_, attached) = database.attach().await;
        assert_eq!(attached.warnings, [format!("workflow_runs had lost triggers: created {trigger} again")]);
        assert_eq!(problems(&*store).await, []);
    }
}

#[tokio::test]
async fn a_table_that_took_the_name_gets_the_triggers() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let definition = definition(&mut session, "Workflow_Runs").await;
    session
        .execute(&format!(
            "ALTER TABLE workflow_runs RENAME TO Runs_Old;
             {definition};
             INSERT INTO workflow_Runs SELECT * FROM runs_old"
        ))
        .await;
    let replaced =
        CaptureProblem::TableReplaced { table: "Workflow_Runs".to_owned(), attached: "Runs_Old".to_owned() };
    assert_eq!(problems(&*store).await, [replaced]);
    session.queue("triage", 2).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    let (_, attached) = database.attach().await;
    assert_eq!(attached.warnings, ["moved the triggers from \"Runs_Old\""]);
    assert_eq!((attached.table.as_str(), attached.adopted), ("\"Workflow_Runs\"", Some(1)));
    assert_eq!(problems(&*store).await, []);
    session.execute("DROP TABLE runs_old").await;
    session.queue("triage", 3).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 3);
}

#[tokio::test]
async fn a_table_by_another_name_goes_on_and_a_missing_one_is_reported() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    // Only a table takes the name away.
    session
        .execute(
            "ALTER TABLE workflow_runs RENAME TO jobs;
             CREATE VIEW workflow_runs AS SELECT * FROM jobs",
        )
        .await;
    assert_eq!(problems(&*store).await, []);
    session.execute("DROP VIEW workflow_runs; ALTER TABLE jobs RENAME TO WORKFLOW_RUNS").await;
    assert_eq!(problems(&*store).await, []);
    let run = session.queue("triage", 1).await;
    session.execute("DROP TABLE workflow_runs").await;
    assert_eq!(problems(&*store).await, [CaptureProblem::TableMissing { table: "workflow_runs".to_owned() }]);
    // The run did not end, as far as anyone knows.
    let reconciled = store.reconcile().await.unwrap();
    assert_eq!((reconciled.entries, reconciled.vanished), (0, 0), "{run}");
}

#[tokio::test]
async fn a_detach_is_no_loss() {
    let database = Database::sqlite().await;
    let (store, attached) = database.attach().await;
    for purge in [false, true] {
        database.attach().await;
        let mut session = database.connect().await;
        rebuild(&mut session).await;
        // The mark alone is left.
        assert_eq!(store.detach(purge).await.unwrap(), Detached::Removed { table: attached.table.clone() });
        assert_eq!(problems(&*store).await, [CaptureProblem::Detached]);
        assert_eq!(session.count("sqlite_schema WHERE name = 'runspan_attached'").await, 0);
        assert_eq!(store.detach(purge).await.unwrap(), Detached::Nothing);
        assert_eq!(database.attach().await.1.warnings, Vec::<String>::new());
        session
            .execute(
                "DROP INDEX new_workflow_runs_inflight;
                 CREATE INDEX idx_workflow_runs_inflight ON workflow_runs (id) WHERE status IN ('queued', 'running')",
            )
            .await;
    }
}

#[tokio::test]
async fn without_a_mark_only_what_is_certain_is_reported() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.execute("DROP VIEW runspan_attached").await;
    assert_eq!(problems(&*store).await, []);
    session.execute("DROP TRIGGER runspan_inserted").await;
    assert_eq!(problems(&*store).await, lost("workflow_runs", "runspan_inserted"));
    session
        .execute(
            "ALTER TABLE workflow_runs RENAME TO runs_old; CREATE TABLE workflow_runs (id TEXT PRIMARY KEY)",
        )
        .await;
    assert_eq!(problems(&*store).await, lost("runs_old", "runspan_inserted"));
    session.execute("DROP TABLE runs_old").await;
    assert_eq!(problems(&*store).await, [CaptureProblem::Detached]);
}

#[tokio::test]
async fn any_name_can_be_remembered() {
    for name in [
        "it's",
        "two\nlines",
        "Order \"x\"",
        "'); DROP TABLE runspan_meta; --",
        "{table}",
        "{now}",
        "up",
        "root",
    ] {
        let database = Database::sqlite().await;
        let mut session = database.connect().await;
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        session.execute(&format!("ALTER TABLE workflow_runs RENAME TO {quoted}")).await;
        let store = database.store();
        session.execute(&store.attach_sql(&of(name)).await.unwrap()).await;
        store.attach(&of(name)).await.unwrap();
        assert_eq!(problems(&*store).await, []);
        session
            .execute(&format!(
                "INSERT INTO {quoted} (id, workflow_name, target_type, target_owner, target_repo, target_number,
                     parent_run_id, parent_step_index)
                 VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'triage', 'pr', 'acme', 'widgets', 7,
                     '0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 0)"
            ))
            .await;
        assert_eq!(store.status().await.unwrap().journal_entries, 1);
        session.execute(&format!("DROP TABLE {quoted}")).await;
        assert_eq!(problems(&*store).await, [CaptureProblem::TableMissing { table: name.to_owned() }]);
    }
}

#[tokio::test]
async fn a_different_table_is_refused_with_both_commands() {
    let database = Database::sqlite().await;
    let (store, _) = database.attach().await;
    database.connect().await.execute("CREATE TABLE \"Bob's\" AS SELECT * FROM workflow_runs").await;
    let error = store.attach(&of("bob's")).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "runspan is attached to workflow_runs in this database: run `runspan detach`, and then \
         `runspan attach --table 'Bob'\\''s'`"
    );
}

#[tokio::test]
async fn an_id_without_an_index_is_refused() {
    for (keys, is_fit) in [
        ("PRIMARY KEY (tenant_id, id))", false),
        ("UNIQUE (id, tenant_id))", true),
        ("PRIMARY KEY (ID))", true),
        ("PRIMARY KEY (id, tenant_id)) WITHOUT ROWID, STRICT", true),
        ("PRIMARY KEY (tenant_id, id)) WITHOUT ROWID", false),
        ("UNIQUE (id COLLATE NOCASE))", false),
        ("CHECK (true)); CREATE INDEX queued ON jobs (id) WHERE status = 'queued'", false),
        ("CHECK (true)); CREATE INDEX lower ON jobs (lower(id))", false),
        ("CHECK (true)); CREATE INDEX plain ON jobs (id)", true),
    ] {
        let database = Database::sqlite().await;
        let mut session = database.connect().await;
        session
            .execute(&format!(
                "CREATE TABLE jobs (tenant_id INTEGER, id TEXT, workflow_name TEXT, target_type TEXT, target_owner TEXT,
                     target_repo TEXT, target_number INTEGER, parent_run_id TEXT, status TEXT, state TEXT,
                     delivery_id TEXT, created_at TEXT, updated_at TEXT, {keys}"
            ))
            .await;
        let store = database.store();
        let plan = of("jobs");
        if is_fit {
            store.attach(&plan).await.unwrap();
            continue;
        }
        let error = store.attach(&plan).await.unwrap_err().to_string();
        assert_eq!(store.attach_sql(&plan).await.unwrap_err().to_string(), error);
        let fix = "CREATE UNIQUE INDEX idx_jobs_id ON \"jobs\" (id);";
        assert_eq!(
            error,
            format!("\"jobs\".id has no index, and the triggers look for parents by it: {fix}"),
            "{keys}"
        );
        session.execute(fix).await;
        store.attach(&plan).await.unwrap();
    }
}

#[tokio::test]
async fn an_id_that_ignores_case_is_found_by_its_own_index() {
    let database = Database::sqlite().await;
    let mut session = database.connect().await;
    let create = session.text("SELECT sql FROM sqlite_schema WHERE name = 'workflow_runs'").await.unwrap();
    session
        .execute(&format!(
            "DROP TABLE workflow_runs; {}",
            create.replacen("id TEXT", "id TEXT COLLATE NOCASE", 1)
        ))
        .await;
    database.attach().await;
}

#[tokio::test]
async fn what_a_purge_would_lose_is_counted() {
    let database = Database::sqlite().await;
    let store = database.store();
    assert_eq!(store.purge_loss().await.unwrap(), None);
    database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    session
        .execute(
            "INSERT INTO runspan_outbox (place, channel, created_at, items, runs, bytes, dead, body)
             VALUES (1, 'traces', 0, 1, 1, 1, NULL, x'00'), (2, 'traces', 0, 1, 1, 1, NULL, x'00'),
                 (3, 'logs', 0, 1, 1, 1, 'no', x'00');
             INSERT INTO runspan_set_aside VALUES (1, 'no', '{}', 0), (2, 'no', '{}', 0), (3, 'no', '{}', 0),
                 (4, 'no', '{}', 0);
             INSERT INTO runspan_open_runs VALUES ('a', 'queued', '{}'), ('b', 'queued', '{}'), ('c', 'queued', '{}'),
                 ('d', 'queued', '{}'), ('e', 'queued', '{}')",
        )
        .await;
    let loss = store.purge_loss().await.unwrap().unwrap();
    assert_eq!((loss.entries, loss.waiting, loss.dead, loss.set_aside, loss.open_runs), (1, 2, 1, 4, 5));
    assert_eq!((loss.roles, loss.callers), (Vec::new(), None));
    // A damaged journal is no reason to refuse.
    session.execute("DROP TABLE runspan_journal").await;
    assert_eq!(store.purge_loss().await.unwrap().unwrap().entries, 0);
    store.detach(true).await.unwrap();
    assert_eq!(store.purge_loss().await.unwrap(), None);
    store.attach(&plan()).await.unwrap();
}
