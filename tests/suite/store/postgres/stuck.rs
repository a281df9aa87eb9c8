//! The view `runspan.stuck`: who may read it, what it costs, and what it leaves free.

use super::{owner, refused, role};
use crate::dashboards;
use crate::database::{Database, Session, connect};

on_postgres!(
    a_reader_needs_one_grant_and_sees_nothing_else,
    the_applications_table_stays_free,
    it_finds_the_runs_in_flight_by_their_index,
    a_status_may_be_an_enum,
    a_dashboard_finds_a_workflow_whatever_its_name,
);

const QUEUED_LONG_AGO: &str = "UPDATE workflow_runs SET created_at = clock_timestamp() - interval '2 hours'";
const DENIED: &str = "42501";

async fn a_reader_needs_one_grant_and_sees_nothing_else(database: &Database) {
    owner(database).await;
    database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    session.execute(QUEUED_LONG_AGO).await;
    let (role, url) = role(database, "app").await;
    let mut reader = connect(&url).await;
    assert_eq!(refused(&mut reader, "SELECT * FROM runspan.stuck").await, DENIED);
    let page = include_str!("../../../../docs/table.md");
    let grant = page.split("```").find(|block| block.contains("runspan.stuck TO grafana")).unwrap();
    session.execute(&grant.trim_start_matches("sql").replace("grafana", &role)).await;
    assert_eq!(reader.count("runspan.stuck WHERE target = 'acme/widgets#1'").await, 1);
    for sql in [
        "SELECT * FROM workflow_runs",
        "SELECT * FROM runspan.open_runs",
        "SELECT runspan.missed_runs()",
        "SELECT runspan.adopt('{}')",
        "SELECT runspan.catch_up()",
        "DELETE FROM runspan.stuck",
    ] {
        assert_ne!(refused(&mut reader, sql).await, "", "{sql}");
    }
    // Attaching again takes nothing away.
    database.attach().await;
    assert_eq!(reader.count("runspan.stuck").await, 1);
}

async fn the_applications_table_stays_free(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    session.execute(QUEUED_LONG_AGO).await;
    session
        .execute(
            "ALTER TABLE workflow_runs DROP COLUMN tracking_comment_id, ALTER delivery_id TYPE varchar(99),
                 ALTER target_number TYPE integer, ADD note text",
        )
        .await;
    session
        .execute(
            "ALTER TABLE workflow_runs RENAME TO jobs; CREATE SCHEMA app; ALTER TABLE jobs SET SCHEMA app",
        )
        .await;
    assert_eq!(session.count("runspan.stuck WHERE target = 'acme/widgets#1'").await, 1);
    // Even what it reads can go, as the application wishes; then the view has nothing to read.
    session.execute("ALTER TABLE app.jobs DROP COLUMN delivery_id").await;
    assert_eq!(refused(&mut session, "SELECT * FROM runspan.stuck").await, "42703");
    session.execute("DROP TABLE app.jobs").await;
    assert_eq!(session.count("runspan.stuck").await, 0);
}

/// How often this transaction has scanned a table (whole) or an index.
async fn scans(session: &mut Session, of: &str) -> i64 {
    let scans = session.text(&format!("SELECT pg_stat_get_xact_numscans('{of}'::regclass)")).await;
    scans.unwrap().parse().unwrap()
}

async fn it_finds_the_runs_in_flight_by_their_index(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, status)
             SELECT gen_random_uuid(), 'triage', 'issue', 'acme', 'widgets', n, CASE WHEN n > 20 THEN 'succeeded' ELSE 'queued' END
             FROM generate_series(1, 5000) n",
        )
        .await;
    session.execute(QUEUED_LONG_AGO).await;
    session.execute("VACUUM ANALYZE workflow_runs").await;
    database.attach().await;
    // Anew: what a session has counted is told to all with a delay, and is its own until then.
    let mut session = database.connect().await;
    session.execute("BEGIN").await;
    assert_eq!(session.count("runspan.stuck").await, 20);
    assert_eq!(scans(&mut session, "workflow_runs").await, 0);
    assert_eq!(scans(&mut session, "idx_workflow_runs_inflight").await, 1);
}

async fn a_status_may_be_an_enum(database: &Database) {
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    session.execute(QUEUED_LONG_AGO).await;
    session
        .execute(
            "DROP INDEX idx_workflow_runs_inflight, idx_workflow_runs_succeeded;
             ALTER TABLE workflow_runs DROP CONSTRAINT workflow_runs_status_check, ALTER status DROP DEFAULT;
             CREATE TYPE run_status AS ENUM ('queued', 'running', 'succeeded', 'failed', 'incomplete');
             ALTER TABLE workflow_runs ALTER status TYPE run_status USING status::run_status",
        )
        .await;
    let (store, _) = database.attach().await;
    assert_eq!(store.stuck(1).await.unwrap().runs[0].status, "queued");
}

async fn a_dashboard_finds_a_workflow_whatever_its_name(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let names = [
        "it's",
        "deploy (prod)",
        "a|b",
        "x$$ OR true --",
        "cost$",
        "back\\slash",
        "[a-z]*",
        "'; DROP TABLE x",
    ];
    for name in names {
        session.queue(name, 1).await;
    }
    session.execute(QUEUED_LONG_AGO).await;
    let mut found = async |workflows: &[&str], target: &str| {
        let sql = dashboards::what_is_stuck(workflows, target);
        let sql =
            format!("SELECT string_agg(workflow, ' & ' ORDER BY workflow COLLATE \"C\") FROM ({sql}) panel");
        session.text(&sql).await.unwrap_or_default()
    };
    for name in names {
        assert_eq!(found(&[name], "").await, name);
    }
    assert_eq!(found(&["cost$", "it's"], "acme/widgets#1").await, "cost$ & it's");
    assert_eq!(found(&[], "").await.split(" & ").count(), names.len());
    assert_eq!(found(&[], "acme's").await, "");
}
