//! What keeps transitions from the journal is reported, and attach repairs it.

use std::sync::Arc;
use std::time::Duration;

use runspan::relay::Settings;
use runspan::runs;
use runspan::store::{self, CaptureProblem, Plan, Store};

use super::owner;
use crate::database::{Database, eventually, plan};
use crate::logged::Logged;
use crate::projector::Relay;
use crate::receiver::Receiver;
use crate::series;

on_postgres!(
    disabled_triggers_are_reported_and_enabled_by_attach,
    disabled_triggers_of_a_partition_are_reported_and_enabled,
    a_swapped_table_is_reported_and_attach_moves,
    a_table_made_anew_is_reported_and_attached_again,
    a_renamed_table_is_captured_all_the_same,
    what_an_older_attach_made_is_replaced,
    another_owner_is_reported,
    forced_row_security_is_reported_and_ends_nothing,
    what_keeps_the_trigger_from_writing_is_reported,
    entries_that_the_journal_refuses_are_an_error_line,
    a_detach_is_no_accident,
);

/// What keeps transitions from the journal, one line each.
async fn problems(store: &dyn Store) -> String {
    let problems = store.capture().await.unwrap();
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

async fn disabled_triggers_are_reported_and_enabled_by_attach(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    assert_eq!(problems(&*store).await, "");
    for sql in [
        "DISABLE TRIGGER USER",
        "DISABLE TRIGGER ALL",
        "DISABLE TRIGGER \"!runspan\"",
        "ENABLE REPLICA TRIGGER \"!runspan\"",
    ] {
        session.execute(&format!("ALTER TABLE workflow_runs {sql}")).await;
        assert_eq!(
            problems(&*store).await,
            "runspan's triggers on public.workflow_runs are disabled (\"!runspan\"): its transitions are not journalled; \
             run `runspan attach --table 'public.workflow_runs'`, which enables them",
            "{sql}"
        );
        let (_, attached) = database.attach().await;
        assert!(
            attached.warnings[0]
                .starts_with("runspan's triggers on public.workflow_runs were disabled: enabled again"),
            "{attached:?}"
        );
        assert_eq!(problems(&*store).await, "");
        session.execute("ALTER TABLE workflow_runs ENABLE TRIGGER ALL").await;
    }
    let before = store.status().await.unwrap().journal_entries;
    session.queue("triage", 1).await;
    assert_eq!(store.status().await.unwrap().journal_entries, before + 1);
    // A trigger that always fires does.
    session.execute("ALTER TABLE workflow_runs ENABLE ALWAYS TRIGGER \"!runspan\"").await;
    assert_eq!(problems(&*store).await, "");
}

async fn disabled_triggers_of_a_partition_are_reported_and_enabled(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "CREATE TABLE jobs (LIKE workflow_runs INCLUDING DEFAULTS) PARTITION BY LIST (target_owner);
             CREATE TABLE jobs_acme PARTITION OF jobs FOR VALUES IN ('acme') PARTITION BY LIST (target_repo);
             CREATE TABLE jobs_widgets PARTITION OF jobs_acme DEFAULT;
             CREATE INDEX ON jobs (id)",
        )
        .await;
    let jobs = Plan::of("jobs");
    let store = database.store();
    store.attach(&jobs).await.unwrap();
    session.execute("ALTER TABLE jobs_widgets DISABLE TRIGGER USER").await;
    let problem = problems(&*store).await;
    assert!(problem.contains("are disabled (\"!runspan\" on public.jobs_widgets)"), "{problem}");
    store.attach(&jobs).await.unwrap();
    assert_eq!(problems(&*store).await, "");
    session
        .execute(
            "INSERT INTO jobs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', 1)",
        )
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
}

async fn a_swapped_table_is_reported_and_attach_moves(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let run = session.queue("triage", 1).await;
    relay.drain().await;
    // As an online schema change does it.
    session
        .execute(
            "BEGIN;
             CREATE TABLE shadow (LIKE workflow_runs INCLUDING ALL);
             INSERT INTO shadow SELECT * FROM workflow_runs;
             ALTER TABLE workflow_runs RENAME TO workflow_runs_old;
             ALTER TABLE shadow RENAME TO workflow_runs;
             COMMIT",
        )
        .await;
    assert_eq!(
        relay.store.capture().await.unwrap(),
        [CaptureProblem::TableReplaced {
            table: "public.workflow_runs".to_owned(),
            attached: "public.workflow_runs_old".to_owned()
        }]
    );
    session.queue("triage", 2).await;
    let (_, attached) = database.attach().await;
    assert_eq!((attached.table.as_str(), attached.adopted), ("public.workflow_runs", Some(1)));
    assert!(
        attached.warnings[0].contains("the trigger was moved from public.workflow_runs_old"),
        "{attached:?}"
    );
    assert_eq!(problems(&*relay.store).await, "");
    runs::mark_running(session.runs(), run).await.unwrap();
    session.execute("UPDATE workflow_runs_old SET status = 'failed'").await;
    insta::assert_snapshot!(relay.drain().await, @r#"
    queued triage acme/widgets#2 rootWorkflowName=triage reconciled
    running triage acme/widgets#1 rootWorkflowName=triage
    span "triage queued" [] child
    "#);
}

async fn a_table_made_anew_is_reported_and_attached_again(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session.execute("CREATE TABLE copy (LIKE workflow_runs INCLUDING ALL); DROP TABLE workflow_runs").await;
    assert_eq!(
        store.capture().await.unwrap(),
        [CaptureProblem::TableMissing { table: "public.workflow_runs".to_owned() }]
    );
    session.execute("ALTER TABLE copy RENAME TO workflow_runs").await;
    assert_eq!(
        store.capture().await.unwrap(),
        [CaptureProblem::TriggersMissing {
            table: "public.workflow_runs".to_owned(),
            triggers: "INSERT, UPDATE, DELETE".to_owned()
        }]
    );
    database.attach().await;
    assert_eq!(problems(&*store).await, "");
    session.execute("DROP TRIGGER \"!runspan\" ON workflow_runs").await;
    assert!(problems(&*store).await.contains("has lost runspan's triggers (INSERT, UPDATE, DELETE)"));
    // One that somebody has narrowed covers nothing.
    for narrowed in [
        "UPDATE OF workflow_name ON workflow_runs FOR EACH ROW",
        "UPDATE ON workflow_runs FOR EACH ROW WHEN (NEW.status = 'running')",
    ] {
        database.attach().await;
        assert_eq!(problems(&*store).await, "");
        let trigger = format!("CREATE OR REPLACE TRIGGER \"!runspan\" AFTER {narrowed}");
        session.execute(&format!("{trigger} EXECUTE FUNCTION runspan.journal_run()")).await;
        assert!(problems(&*store).await.contains("has lost runspan's triggers (INSERT, UPDATE, DELETE)"));
    }
}

async fn a_renamed_table_is_captured_all_the_same(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    session
        .execute("ALTER TABLE workflow_runs RENAME TO jobs; CREATE VIEW workflow_runs AS SELECT * FROM jobs")
        .await;
    assert_eq!(problems(&*store).await, "");
}

/// The triggers of versions before, which sort where an application's may, and hold on to the type of `status`.
const OLD_TRIGGERS: &str = "
    DROP TRIGGER \"!runspan\" ON workflow_runs;
    COMMENT ON FUNCTION runspan.journal_run() IS NULL;
    CREATE TRIGGER runspan_inserted AFTER INSERT ON workflow_runs
        FOR EACH ROW EXECUTE FUNCTION runspan.journal_run();
    CREATE TRIGGER runspan_changed AFTER UPDATE ON workflow_runs
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION runspan.journal_run();
    CREATE TRIGGER runspan_deleted AFTER DELETE ON workflow_runs
        FOR EACH ROW WHEN (OLD.status IN ('queued', 'running')) EXECUTE FUNCTION runspan.journal_run()";

async fn what_an_older_attach_made_is_replaced(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let (relay, _) = super::role(database, "app").await;
    session.execute(OLD_TRIGGERS).await;
    session
        .execute(&format!(
            "CREATE FUNCTION runspan.reconcile() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
             REVOKE ALL ON FUNCTION runspan.reconcile() FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION runspan.reconcile() TO {relay}"
        ))
        .await;
    assert_eq!(problems(&*store).await, "", "it works");
    session.execute("DROP TRIGGER runspan_changed ON workflow_runs").await;
    assert!(problems(&*store).await.contains("has lost runspan's triggers (UPDATE)"));
    database.attach().await;
    assert_eq!(problems(&*store).await, "");
    let names = "SELECT string_agg(tgname, ' ') FROM pg_trigger WHERE tgrelid = 'workflow_runs'::regclass AND tgname ~ 'runspan'";
    assert_eq!(session.text(names).await.as_deref(), Some("!runspan"));
    session.queue("triage", 1).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    // Who could reconcile can.
    let may =
        |function: &str| format!("SELECT has_function_privilege('{relay}', 'runspan.{function}', 'EXECUTE')");
    for function in ["missed_runs()", "adopt(uuid[])", "catch_up()"] {
        assert_eq!(session.text(&may(function)).await.as_deref(), Some("true"), "{function}");
    }
    assert_eq!(session.text(&may("in_flight()")).await.as_deref(), Some("false"));
}

async fn another_owner_is_reported(database: &Database) {
    let (owner, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    let (app, _) = super::role(database, "app").await;
    let mut admin = database.connect().await;
    admin.execute(&format!("ALTER TABLE workflow_runs OWNER TO {app}")).await;
    assert_eq!(
        store.capture().await.unwrap(),
        [CaptureProblem::OwnerChanged {
            table: "public.workflow_runs".to_owned(),
            owner: app.clone(),
            schema_owner: owner.clone()
        }]
    );
    // Runs without a parent are journalled all the same, and nothing is ended.
    admin.queue("triage", 1).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert!(store.reconcile().await.unwrap_err().refusal().is_some());
    admin.execute(&format!("ALTER TABLE workflow_runs OWNER TO {owner}")).await;
    assert_eq!(problems(&*store).await, "");
}

async fn forced_row_security_is_reported_and_ends_nothing(database: &Database) {
    let (owner, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    let relay = Relay::new(Arc::clone(&store)).await;
    let mut admin = database.connect().await;
    admin.queue("triage", 1).await;
    relay.drain().await;
    admin
        .execute("ALTER TABLE workflow_runs ENABLE ROW LEVEL SECURITY; ALTER TABLE workflow_runs FORCE ROW LEVEL SECURITY")
        .await;
    assert_eq!(
        store.capture().await.unwrap(),
        [CaptureProblem::RowSecurity { table: "public.workflow_runs".to_owned(), owner: owner.clone() }]
    );
    for error in [
        store.reconcile().await.unwrap_err(),
        store.in_flight().await.unwrap_err(),
        store.stuck(1).await.unwrap_err(),
    ] {
        assert!(error.refusal().is_some_and(|said| said.contains("row-level security")), "{error}");
    }
    let status = store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.open_runs), (0, 1));
    // What it says helps.
    admin.execute(&format!("ALTER ROLE {owner} BYPASSRLS")).await;
    assert_eq!((problems(&*store).await.as_str(), store.reconcile().await.unwrap().entries), ("", 0));
}

async fn what_keeps_the_trigger_from_writing_is_reported(database: &Database) {
    let (owner, url) = owner(database).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    let (app, _) = super::role(database, "app").await;
    let mut admin = database.connect().await;
    let name = database.name();
    let changed = "the function runspan.journal_run() has been changed: ";
    let closed =
        format!("{owner}, as whom the trigger of public.workflow_runs runs, cannot write runspan.journal: ");
    let asleep = format!("ALTER ROLE {app} IN DATABASE {name} RESET session_replication_role");
    for (sql, line, undo) in [
        ("ALTER FUNCTION runspan.journal_run() SECURITY INVOKER".to_owned(), changed, None),
        (format!("ALTER FUNCTION runspan.journal_run() OWNER TO {app}"), changed, Some(format!("ALTER FUNCTION runspan.journal_run() OWNER TO {owner}"))),
        (
            "CREATE OR REPLACE FUNCTION runspan.journal_run() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
             AS 'BEGIN RETURN NULL; END'"
                .to_owned(),
            changed,
            None,
        ),
        (format!("REVOKE INSERT ON runspan.journal FROM {owner}"), &closed, Some(format!("GRANT INSERT ON runspan.journal TO {owner}"))),
        (format!("REVOKE USAGE ON SEQUENCE runspan.journal_seq FROM {owner}"), &closed, Some(format!("GRANT USAGE ON SEQUENCE runspan.journal_seq TO {owner}"))),
        ("ALTER TABLE runspan.journal RENAME TO diary".to_owned(), &closed, Some("ALTER TABLE runspan.diary RENAME TO journal".to_owned())),
        (format!("ALTER ROLE {app} IN DATABASE {name} SET session_replication_role = replica"), "session_replication_role is replica by default for role ", Some(asleep.clone())),
        (
            "ALTER TABLE workflow_runs RENAME status TO phase".to_owned(),
            "public.workflow_runs no longer has the columns status: ",
            Some("ALTER TABLE workflow_runs RENAME phase TO status".to_owned()),
        ),
    ] {
        admin.execute(&sql).await;
        let problem = problems(&*store).await;
        assert!(problem.starts_with(line) && problem.lines().count() == 1, "{sql}: {problem}");
        match undo {
            Some(undo) => _ = admin.execute(&undo).await,
            None => _ = store.attach(&plan()).await.unwrap(),
        }
        assert_eq!(problems(&*store).await, "", "{sql}");
    }
    admin
        .execute(&format!("ALTER ROLE {app} IN DATABASE {name} SET session_replication_role = replica"))
        .await;
    assert!(problems(&*store).await.ends_with(&asleep));
    admin.execute(&asleep).await;
}

async fn entries_that_the_journal_refuses_are_an_error_line(database: &Database) {
    const LINE: &str = "error the triggers could not write transitions to the journal";
    let (store, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let (logged, _guard) = Logged::start();
    let settings = Settings { look_every: Duration::from_millis(20), ..series::settings() };
    let relay = series::relay(&store, &receiver, &[]).with(settings).spawn();
    // The count is compared with that of the poll before, by the holder of the lease.
    let has_polled = async || {
        let snapshot = relay.status().snapshot();
        snapshot.status.is_some() && snapshot.lease_epoch.is_some()
    };
    eventually("a poll", has_polled).await;
    assert_eq!(logged.with(LINE), Vec::<String>::new());
    let mut session = database.connect().await;
    session.execute("ALTER TABLE runspan.journal ADD CHECK (workflow_name <> 'triage') NOT VALID").await;
    session.queue("triage", 1).await;
    eventually("the line", async || !logged.with(LINE).is_empty()).await;
    relay.stop().await.unwrap();
}

async fn a_detach_is_no_accident(database: &Database) {
    let store = database.store();
    assert_eq!(store.capture().await.unwrap(), [CaptureProblem::Detached]);
    database.attach().await;
    store.detach(false).await.unwrap();
    assert_eq!(store.capture().await.unwrap(), [CaptureProblem::Detached]);
}
