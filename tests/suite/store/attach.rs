//! Attaching and letting go.

use runspan::store::{Detached, Plan, StoreError};

use crate::database::{Database, plan};
use crate::projector::Relay;

on_every_database!(
    attaching_is_idempotent,
    the_sql_it_prints_is_the_sql_it_runs,
    what_is_not_attached_says_so,
    a_missing_table_is_named,
    a_missing_column_is_named,
    a_view_is_no_table,
    a_second_table_is_refused,
    a_table_without_an_index_is_warned_about,
    a_check_constraint_with_statuses_of_its_own_is_warned_about,
    a_newer_schema_is_left_alone,
    an_older_schema_is_brought_up_to_date,
    detaching_removes_the_triggers,
    purging_removes_everything,
    the_attached_table_is_named_as_it_is_now,
    a_renamed_table_is_still_the_one,
    a_detached_table_is_not_reconciled,
);

async fn attaching_is_idempotent(database: &Database) {
    let mut session = database.connect().await;
    let expected = if database.is_postgres() { "public.workflow_runs" } else { "workflow_runs" };
    for _ in 0..3 {
        let (_, attached) = database.attach().await;
        assert_eq!(
            (attached.table.as_str(), attached.adopted, attached.warnings.len()),
            (expected, Some(0), 0)
        );
    }
    session.queue("triage", 1).await;
    database.attach().await;
    assert_eq!(session.count(&database.own("journal")).await, 1);
}

async fn the_sql_it_prints_is_the_sql_it_runs(database: &Database) {
    let store = database.store();
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let sql = store.attach_sql(&plan()).await.unwrap();
    // Printing changes nothing.
    assert!(matches!(store.check().await, Err(StoreError::NotAttached)));
    session.execute(&sql).await;
    store.check().await.unwrap();
    store.reconcile().await.unwrap();
    session.queue("triage", 2).await;
    let status = store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.skipped_entries), (2, 0));
    // And again, on what is installed.
    let sql = store.attach_sql(&plan()).await.unwrap();
    session.execute(&sql).await;
    session.queue("triage", 3).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 3);
}

async fn what_is_not_attached_says_so(database: &Database) {
    let error = database.store().check().await.unwrap_err();
    assert!(matches!(error, StoreError::NotAttached), "{error:?}");
    assert!(!error.is_transient());
}

async fn unfit(database: &Database, table: &str) -> String {
    let plan = Plan::of(table);
    let error = database.store().attach(&plan).await.unwrap_err();
    assert!(matches!(error, StoreError::Unfit(_)), "{error:?}");
    let printed = database.store().attach_sql(&plan).await.unwrap_err();
    assert_eq!(printed.to_string(), error.to_string());
    error.to_string()
}

async fn a_missing_table_is_named(database: &Database) {
    let error = unfit(database, "workflow_runz").await;
    assert!(error.starts_with("there is no table workflow_runz in "), "{error}");
    assert!(matches!(database.store().check().await, Err(StoreError::NotAttached)));
    let attached = database.attach().await.1.table;
    let error = unfit(database, "workflow_runz").await;
    assert!(
        error.ends_with(&format!(", but runspan is attached to {attached}: write --table '{attached}'")),
        "{error}"
    );
}

async fn a_missing_column_is_named(database: &Database) {
    let mut session = database.connect().await;
    session.execute("CREATE TABLE jobs (id text, status text)").await;
    let error = unfit(database, "jobs").await;
    assert!(error.contains("jobs"), "{error}");
    assert!(error.contains(" lacks the columns workflow_name, target_type, "), "{error}");
}

async fn a_view_is_no_table(database: &Database) {
    database.connect().await.execute("CREATE VIEW active_runs AS SELECT * FROM workflow_runs").await;
    let error = unfit(database, "active_runs").await;
    assert!(error.ends_with("active_runs is not a table: triggers need the table itself"), "{error}");
}

async fn a_second_table_is_refused(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    session
        .execute(if database.is_postgres() {
            "CREATE TABLE other_runs (LIKE workflow_runs INCLUDING INDEXES)"
        } else {
            "CREATE TABLE other_runs AS SELECT * FROM workflow_runs"
        })
        .await;
    let error = unfit(database, "other_runs").await;
    assert!(
        error.contains(
            "workflow_runs in this database: run `runspan detach`, and then `runspan attach --table '"
        ),
        "{error}"
    );
}

async fn a_table_without_an_index_is_warned_about(database: &Database) {
    database.connect().await.execute("DROP INDEX idx_workflow_runs_inflight").await;
    let (_, attached) = database.attach().await;
    assert_eq!(attached.warnings.len(), 1);
    assert!(attached.warnings[0].contains("no index of "), "{}", attached.warnings[0]);
}

async fn a_check_constraint_with_statuses_of_its_own_is_warned_about(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "ALTER TABLE workflow_runs ADD COLUMN note text
                 CHECK (status IN ('scheduled', 'queued', 'running', 'succeeded', 'failed', 'incomplete', 'archived'));
             ALTER TABLE workflow_runs ADD COLUMN other text CHECK (other IN ('a', 'b'))",
        )
        .await;
    let (_, attached) = database.attach().await;
    assert_eq!(
        attached.warnings,
        [
            "status may be scheduled, archived, which runspan does not know: a run begins with its first known \
          status, and the span of a run that ends in one of these stays open, see docs/table.md"
        ]
    );
}

async fn a_newer_schema_is_left_alone(database: &Database) {
    let (store, _) = database.attach().await;
    database.connect().await.execute(&format!("UPDATE {} SET version = 99", database.own("meta"))).await;
    for result in [
        store.check().await,
        store.attach(&plan()).await.map(|_| ()),
        store.attach_sql(&plan()).await.map(|_| ()),
    ] {
        assert!(matches!(result, Err(StoreError::SchemaNewer { found: 99 })), "{result:?}");
    }
}

async fn an_older_schema_is_brought_up_to_date(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    for table in ["series", "deltas"] {
        session.execute(&format!("DROP TABLE {}", database.own(table))).await;
    }
    // What version 3 has added.
    let undo = if database.is_postgres() {
        "ALTER TABLE runspan.journal ALTER seq SET DEFAULT nextval('runspan.journal_seq');
         DROP SEQUENCE runspan.journal_room;
         DROP INDEX runspan.outbox_dead;
         ALTER TABLE runspan.meta DROP id, DROP is_copy, DROP max_journal_entries"
    } else {
        "DROP VIEW runspan_reordered;
         DROP TRIGGER runspan_inserted;
         DROP TRIGGER runspan_changed;
         DROP TRIGGER runspan_deleted;
         DROP TRIGGER runspan_refused;
         DROP VIEW runspan_journal_full;
         ALTER TABLE runspan_meta DROP path;
         ALTER TABLE runspan_meta DROP max_journal_entries;
         ALTER TABLE runspan_meta DROP skipped"
    };
    session.execute(undo).await;
    session.execute(&format!("ALTER TABLE {} DROP COLUMN root_delivery_id", database.own("journal"))).await;
    session.execute(&format!("UPDATE {} SET version = 1", database.own("meta"))).await;
    assert!(matches!(store.check().await, Err(StoreError::SchemaOlder { found: 1 })));
    store.attach(&plan()).await.unwrap();
    store.check().await.unwrap();
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
}

async fn detaching_removes_the_triggers(database: &Database) {
    let (store, attached) = database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    assert_eq!(store.detach(false).await.unwrap(), Detached::Removed { table: attached.table });
    session.queue("triage", 2).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert_eq!(store.detach(false).await.unwrap(), Detached::Nothing);
    // What was missed meanwhile is taken in.
    assert_eq!(database.attach().await.1.adopted, Some(1));
    assert_eq!(Relay::new(store).await.drain().await.lines().count(), 2);
}

async fn purging_removes_everything(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    assert!(matches!(store.detach(true).await.unwrap(), Detached::Removed { .. }));
    assert!(matches!(store.check().await, Err(StoreError::NotAttached)));
    assert_eq!(store.detach(true).await.unwrap(), Detached::Nothing);
    let left = if database.is_postgres() {
        "pg_namespace WHERE nspname LIKE 'runspan%'"
    } else {
        "sqlite_schema WHERE name LIKE 'runspan%' OR tbl_name LIKE 'runspan%'"
    };
    assert_eq!(session.count(left).await, 0);
    session.queue("triage", 2).await;
    assert_eq!(database.attach().await.1.adopted, Some(2));
}

async fn the_attached_table_is_named_as_it_is_now(database: &Database) {
    let store = database.store();
    assert_eq!(store.attached_table().await.unwrap(), None);
    let (_, attached) = database.attach().await;
    assert_eq!(store.attached_table().await.unwrap(), Some(attached.table));
    database.connect().await.execute("ALTER TABLE workflow_runs RENAME TO jobs").await;
    let renamed = if database.is_postgres() { "public.jobs" } else { "\"jobs\"" };
    assert_eq!(store.attached_table().await.unwrap().as_deref(), Some(renamed));
    store.detach(false).await.unwrap();
    assert_eq!(store.attached_table().await.unwrap(), None);
}

async fn a_renamed_table_is_still_the_one(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let parent = session.queue("ship", 1).await;
    session.execute("ALTER TABLE workflow_runs RENAME TO \"Jobs of 'old\"").await;
    let child = |number: i64| {
        format!(
            "INSERT INTO \"Jobs of 'old\" (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 parent_run_id, parent_step_index)
             VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6{number}', 'implement', 'pr', 'acme', 'widgets', {number},
                 '{parent}', {number})"
        )
    };
    session.execute(&child(2)).await;
    let journal = database.own("journal");
    let rooted = format!("SELECT root_workflow_name FROM {journal} WHERE workflow_name = 'implement'");
    assert_eq!(session.text(&rooted).await.as_deref(), Some("ship"));
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    // What the journal lost is found in the table.
    session.execute(&format!("DELETE FROM {journal}")).await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 2);
    assert_eq!(session.text(&rooted).await.as_deref(), Some("ship"));
    // And it can be attached to by its new name.
    let plan = Plan::of(if database.is_postgres() { "\"Jobs of 'old\"" } else { "Jobs of 'old" });
    relay.store.attach(&plan).await.unwrap();
    session.execute(&child(3)).await;
    assert_eq!(relay.store.reconcile().await.unwrap().entries, 0);
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.skipped_entries), (3, 0));
}

async fn a_detached_table_is_not_reconciled(database: &Database) {
    let (store, _) = database.attach().await;
    store.detach(false).await.unwrap();
    database.connect().await.queue("triage", 1).await;
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
    assert_eq!(store.status().await.unwrap().journal_entries, 0);
}
