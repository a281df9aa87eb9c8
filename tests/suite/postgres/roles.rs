//! Who may do what.

use runspan::runs;
use runspan::store::{self, Plan, StoreError};

use super::{owner, refused, role};
use crate::database::{Database, connect, plan};
use crate::relay::Relay;

on_postgres!(
    a_writer_needs_no_rights_on_runspan,
    a_granted_role_can_refuse_and_nothing_else,
    granting_to_no_role_is_refused,
    row_security_is_refused,
    an_owner_who_is_no_superuser_can_do_it_all,
    a_table_elsewhere_is_found_by_its_name,
    a_wrong_type_is_named,
);

const DENIED: &str = "42501";

async fn a_writer_needs_no_rights_on_runspan(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let (role, url) = role(database, "app").await;
    database
        .connect()
        .await
        .execute(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON workflow_runs TO {role}"))
        .await;
    let mut session = connect(&url).await;
    let id = session.queue("triage", 1).await;
    runs::mark_running(session.runs(), id).await.unwrap();
    session.execute("DELETE FROM workflow_runs").await;
    assert_eq!(relay.drain().await.lines().filter(|line| !line.starts_with("span")).count(), 4);
    for sql in [
        "SELECT * FROM runspan.journal",
        "INSERT INTO runspan.journal (reason) VALUES ('x')",
        "SELECT nextval('runspan.journal_seq')",
        "SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')",
        "SELECT runspan.reconcile()",
    ] {
        assert_eq!(refused(&mut session, sql).await, DENIED, "{sql}");
    }
}

async fn a_granted_role_can_refuse_and_nothing_else(database: &Database) {
    let (role, url) = role(database, "app").await;
    let granting = Plan { grant: Some(role.clone()), ..plan() };
    let store = database.store();
    assert!(
        store
            .attach_sql(&granting)
            .await
            .unwrap()
            .contains(&format!("GRANT EXECUTE ON FUNCTION runspan.dispatch_refused TO {role};"))
    );
    store.attach(&granting).await.unwrap();
    let mut session = connect(&url).await;
    session
        .execute("SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')")
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    for sql in [
        "SELECT * FROM runspan.journal",
        "SELECT * FROM runspan.outbox",
        "UPDATE runspan.lease SET epoch = 7",
        "SELECT last_value FROM runspan.journal_skipped",
        "SELECT setval('runspan.journal_seq', 1)",
        "SELECT runspan.reconcile()",
        "SELECT runspan.skip('')",
        "SELECT runspan.root_above(NULL)",
        "CREATE TABLE runspan.mine (a int)",
        "SELECT * FROM workflow_runs",
    ] {
        assert_eq!(refused(&mut session, sql).await, DENIED, "{sql}");
    }
    // Attaching again without --grant takes nothing away.
    store.attach(&plan()).await.unwrap();
    session
        .execute("SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')")
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 2);
}

async fn granting_to_no_role_is_refused(database: &Database) {
    let granting = Plan { grant: Some("nobody".to_owned()), ..plan() };
    let error = database.store().attach(&granting).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no role \"nobody\": create it, or name another with --grant");
    // Nothing is half done.
    assert!(matches!(database.store().check().await, Err(StoreError::NotAttached)));
}

async fn row_security_is_refused(database: &Database) {
    let (_, url) = owner(database).await;
    let mut session = connect(&url).await;
    session.execute("ALTER TABLE workflow_runs ENABLE ROW LEVEL SECURITY").await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    // The owner is not held by it, until it is forced.
    store.attach(&plan()).await.unwrap();
    session.execute("ALTER TABLE workflow_runs FORCE ROW LEVEL SECURITY").await;
    let error = store.attach(&plan()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("public.workflow_runs has row security that this role does not bypass"),
        "{error}"
    );
}

async fn an_owner_who_is_no_superuser_can_do_it_all(database: &Database) {
    let (_, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    let mut session = connect(&url).await;
    session.queue("triage", 1).await;
    let relay = Relay::new(store).await;
    assert_eq!(relay.drain().await.lines().count(), 1);
    relay.store.detach(true).await.unwrap();
    session.queue("triage", 2).await;
}

async fn a_table_elsewhere_is_found_by_its_name(database: &Database) {
    let mut session = database.connect().await;
    session.execute("CREATE SCHEMA \"My App\"; ALTER TABLE workflow_runs SET SCHEMA \"My App\"").await;
    let store = database.store();
    assert!(matches!(store.attach(&plan()).await, Err(StoreError::Unfit(_))));
    let elsewhere = Plan { table: "\"My App\".workflow_runs".to_owned(), grant: None };
    assert_eq!(store.attach(&elsewhere).await.unwrap().table, "\"My App\".workflow_runs");
    session.execute("SET search_path = \"My App\"").await;
    session.queue("triage", 1).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert_eq!(store.reconcile().await.unwrap(), 0);
    // No name at all.
    let nonsense = Plan { table: "a.b.c.d".to_owned(), grant: None };
    let error = store.attach(&nonsense).await.unwrap_err();
    assert!(!error.to_string().is_empty());
}

async fn a_wrong_type_is_named(database: &Database) {
    let mut session = database.connect().await;
    session.execute("ALTER TABLE workflow_runs ALTER created_at TYPE timestamp").await;
    let error = database.store().attach(&plan()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "public.workflow_runs.created_at has the type timestamp without time zone, and has to be timestamp with time zone"
    );
}
