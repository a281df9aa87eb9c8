//! Who may do what.

use runspan::relay::{Ended, Logs};
use runspan::runs;
use runspan::store::{self, Plan, StoreError};

use super::{owner, refused, role};
use crate::database::{Database, connect, plan};
use crate::points::Samples;
use crate::projector::Relay;
use crate::receiver::Receiver;

on_postgres!(
    a_writer_needs_no_rights_on_runspan,
    a_granted_role_can_refuse_and_nothing_else,
    granting_to_no_role_is_refused,
    row_security_is_refused,
    an_owner_who_is_no_superuser_can_do_it_all,
    a_relays_role_needs_what_the_page_grants,
    a_table_elsewhere_is_found_by_its_name,
    a_wrong_type_is_named,
    a_status_is_text_or_an_enum_that_has_them_all,
    a_domain_with_statuses_of_its_own_is_warned_about,
    a_publication_of_all_tables_is_refused_before_anything_changes,
    a_subscription_that_writes_the_table_is_warned_about,
    an_attach_that_fails_leaves_nothing_on_the_table,
    a_partitioned_table_gets_an_index_that_can_be_made,
    all_of_it_belongs_to_the_tables_owner,
    what_an_older_attach_left_is_handed_over,
    a_view_in_the_tables_place_is_not_used,
    someone_elses_schema_is_refused,
    someone_elses_table_is_refused,
    no_one_else_can_use_the_trigger,
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
        "SELECT runspan.missed_runs()",
        "SELECT runspan.adopt('{}')",
        "SELECT runspan.catch_up()",
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
        "SELECT runspan.missed_runs()",
        "SELECT runspan.adopt('{}')",
        "SELECT runspan.catch_up()",
        "SELECT runspan.skip('')",
        "SELECT runspan.root_of(NULL)",
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
    assert!(error.starts_with("public.workflow_runs has row security that its owner "), "{error}");
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

async fn a_relays_role_needs_what_the_page_grants(database: &Database) {
    database.attach().await;
    let (role, url) = role(database, "relay").await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/table.md")).unwrap();
    let grants: Vec<&str> = page.lines().filter(|line| line.ends_with(" TO relay;")).collect();
    let mut session = database.connect().await;
    for grant in &grants {
        session.execute(&grant.replace(" TO relay;", &format!(" TO {role};"))).await;
    }
    session.queue("triage", 1).await;
    let receiver = Receiver::http().await;
    let endpoint = receiver.endpoint();
    let env = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let store = store::open(&url.parse().unwrap()).unwrap();
    let relay = runspan::relay::Relay::new(store.clone(), Logs::Otlp, &env).unwrap().spawn();
    assert_eq!(relay.drain().await.unwrap(), Ended::Idle);
    // Read from a table that the role itself may not read.
    let samples = Samples::of(&receiver);
    assert_eq!(samples.last("workflow.run.active{workflowName=triage status=queued}"), Some(1.0));
    assert!(store.stuck(10).await.unwrap().runs.is_empty());
}

async fn a_table_elsewhere_is_found_by_its_name(database: &Database) {
    let mut session = database.connect().await;
    session.execute("CREATE SCHEMA \"My App\"; ALTER TABLE workflow_runs SET SCHEMA \"My App\"").await;
    let store = database.store();
    // Named before and after it is attached, and beside another one.
    let named = async || store.attach(&plan()).await.unwrap_err().to_string();
    let option = "\"My App\".workflow_runs: write --table '\"My App\".workflow_runs'";
    assert!(named().await.ends_with(&format!(", but {option}")), "{}", named().await);
    session.execute("CREATE SCHEMA app; CREATE TABLE app.workflow_runs (id uuid)").await;
    let both = "but \"My App\".workflow_runs and app.workflow_runs: write --table '\"My App\".workflow_runs' or \
                --table 'app.workflow_runs'";
    assert!(named().await.ends_with(both), "{}", named().await);
    let elsewhere = Plan::of("\"My App\".workflow_runs");
    assert_eq!(store.attach(&elsewhere).await.unwrap().table, "\"My App\".workflow_runs");
    assert!(named().await.ends_with(&format!(", but runspan is attached to {option}")), "{}", named().await);
    session.execute("SET search_path = \"My App\"").await;
    session.queue("triage", 1).await;
    assert_eq!(store.status().await.unwrap().journal_entries, 1);
    assert_eq!(store.reconcile().await.unwrap().entries, 0);
    // No name at all.
    for nonsense in ["a.b.c.d", "a.b.c", "My App.workflow_runs", ""] {
        let nonsense = Plan::of(nonsense);
        let error = store.attach(&nonsense).await.unwrap_err().to_string();
        let hint = "as in --table '\"My Schema\".\"Workflow Runs\"'";
        assert!(error.starts_with(&format!("{} names no table (", nonsense.table)), "{error}");
        assert!(error.ends_with(hint), "{error}");
    }
    store.detach(true).await.unwrap();
    session.execute("ALTER TABLE workflow_runs RENAME TO \"WorkflowRuns\"").await;
    let folded = Plan::of("WorkflowRuns");
    let error = store.attach(&folded).await.unwrap_err().to_string();
    assert!(
        error.ends_with(", but \"My App\".\"WorkflowRuns\": write --table '\"My App\".\"WorkflowRuns\"'"),
        "{error}"
    );
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

/// The owners of all that is in the schema runspan, and of itself.
const OWNERS: &str = "
    SELECT string_agg(DISTINCT owner::regrole::text, ' ') FROM (
        SELECT nspowner FROM pg_namespace WHERE nspname = 'runspan'
        UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'runspan'::regnamespace
        UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'runspan'::regnamespace) o (owner)";

async fn all_of_it_belongs_to_the_tables_owner(database: &Database) {
    let (role, url) = owner(database).await;
    database.attach().await;
    let relay = Relay::new(store::open(&url.parse().unwrap()).unwrap()).await;
    let mut session = database.connect().await;
    assert_eq!(session.text(OWNERS).await, Some(role.clone()));
    session.queue("triage", 1).await;
    assert_eq!(relay.drain().await.lines().count(), 1);
    database.attach().await;
    assert_eq!(session.text(OWNERS).await, Some(role));
}

async fn what_an_older_attach_left_is_handed_over(database: &Database) {
    database.attach().await;
    let (role, _) = owner(database).await;
    let mut session = database.connect().await;
    let sql = database.store().attach_sql(&plan()).await.unwrap();
    assert!(sql.contains(&format!("ALTER SCHEMA runspan OWNER TO {role};")), "{sql}");
    database.attach().await;
    assert_eq!(session.text(OWNERS).await, Some(role));
    session.queue("triage", 1).await;
    assert_eq!(session.count("runspan.journal").await, 1);
}

async fn a_view_in_the_tables_place_is_not_used(database: &Database) {
    let (role, url) = owner(database).await;
    let (store, _) = database.attach().await;
    let mut owner = connect(&url).await;
    database.connect().await.execute(&format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
    owner
        .execute(
            "CREATE TABLE who (name text);
             CREATE FUNCTION tell(text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN
                 INSERT INTO public.who VALUES (current_user); RETURN $1; END $$;
             INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', 1);
             DELETE FROM runspan.journal;
             ALTER TABLE workflow_runs RENAME TO real_runs;
             CREATE VIEW workflow_runs AS SELECT id, public.tell(workflow_name) AS workflow_name, target_type,
                 target_owner, target_repo, target_number, parent_run_id, status, state, delivery_id, created_at,
                 updated_at FROM real_runs",
        )
        .await;
    // Whatever comes of it. As a superuser calls them:
    _ = store.reconcile().await;
    let mut admin = database.connect().await;
    admin
        .execute(
            "SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch', NULL,
                 (SELECT id FROM real_runs))",
        )
        .await;
    assert_eq!(admin.count("who").await, 0);
}

async fn someone_elses_schema_is_refused(database: &Database) {
    let (owner, url) = owner(database).await;
    let (app, _) = role(database, "app").await;
    let mut session = database.connect().await;
    session.execute(&format!("CREATE SCHEMA runspan AUTHORIZATION {app}")).await;
    for store in [database.store(), store::open(&url.parse().unwrap()).unwrap()] {
        let error = store.attach(&plan()).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the schema runspan belongs to role \"{app}\", and not to {owner}, who owns public.workflow_runs: \
                 hand it over (ALTER … OWNER TO) if it is runspan's, drop it if not"
            )
        );
    }
    // Nor what someone has put into a schema that is all right.
    session
        .execute(&format!(
            "ALTER SCHEMA runspan OWNER TO {owner};
             CREATE TABLE runspan.meta (version int); ALTER TABLE runspan.meta OWNER TO {app}"
        ))
        .await;
    let error = database.store().attach(&plan()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("runspan.meta belongs to role \"{app}\", and not to ")), "{error}");
    session.execute("DROP TABLE runspan.meta").await;
    session
        .execute(&format!(
            "CREATE VIEW runspan.meta AS SELECT 1 AS version; ALTER VIEW runspan.meta OWNER TO {owner}"
        ))
        .await;
    let error = database.store().attach(&plan()).await.unwrap_err().to_string();
    assert_eq!(error, "runspan.meta is no table: drop the schema runspan");
    session.execute("DROP VIEW runspan.meta").await;
    database.attach().await;
    assert_eq!(session.text(OWNERS).await, Some(owner));
}

async fn someone_elses_table_is_refused(database: &Database) {
    let (owner, _) = owner(database).await;
    let (app, url) = role(database, "app").await;
    let mut admin = database.connect().await;
    admin
        .execute(&format!(
            "GRANT CREATE ON DATABASE {} TO {app}; GRANT ALL ON workflow_runs TO {app}",
            database.name()
        ))
        .await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    let error = store.attach(&plan()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "public.workflow_runs belongs to role {owner}, as which \"{app}\" cannot act: attach as {owner}, as a \
             member of it or as a superuser"
        )
    );
    // A member can, and it is the owner's all the same.
    admin.execute(&format!("GRANT {owner} TO {app}")).await;
    store.attach(&plan()).await.unwrap();
    assert_eq!(admin.text(OWNERS).await, Some(owner));
}

async fn no_one_else_can_use_the_trigger(database: &Database) {
    let (role, url) = role(database, "app").await;
    database.store().attach(&Plan { grant: Some(role), ..plan() }).await.unwrap();
    let mut session = connect(&url).await;
    session.execute("CREATE TEMP TABLE mine (id uuid, status text)").await;
    let sql = "CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION runspan.journal_run()";
    assert_eq!(refused(&mut session, sql).await, DENIED);
}

async fn a_status_is_text_or_an_enum_that_has_them_all(database: &Database) {
    let mut session = database.connect().await;
    let store = database.store();
    session
        .execute(
            "DROP INDEX idx_workflow_runs_inflight;
             CREATE TABLE jobs (LIKE workflow_runs);
             CREATE INDEX ON jobs (id);
             CREATE TYPE status AS ENUM ('queued', 'running', 'failed', 'cancelled', 'archived');
             ALTER TABLE jobs ALTER status TYPE status USING status::status, ALTER target_number TYPE text",
        )
        .await;
    let jobs = Plan::of("jobs");
    for (error, mend) in [
        (
            "public.jobs.target_number has the type text, and has to be integer or bigint or smallint or numeric; \
             public.jobs.status has the type public.status, which lacks succeeded, incomplete: ALTER TYPE public.status \
             ADD VALUE …",
            "ALTER TABLE jobs ALTER target_number TYPE bigint USING target_number::bigint",
        ),
        (
            "public.jobs.status has the type public.status, which lacks succeeded, incomplete: ALTER TYPE public.status ADD VALUE …",
            "ALTER TABLE jobs ALTER status TYPE int USING 1",
        ),
        (
            "public.jobs.status has the type integer, and has to be text, varchar or an enum",
            "ALTER TABLE jobs ALTER status TYPE status USING 'queued'",
        ),
    ] {
        assert_eq!(store.attach(&jobs).await.unwrap_err().to_string(), error);
        assert!(matches!(store.check().await, Err(StoreError::NotAttached)));
        session.execute(mend).await;
    }
    session.execute("ALTER TYPE status ADD VALUE 'succeeded'").await;
    session.execute("ALTER TYPE status ADD VALUE 'incomplete'").await;
    let attached = store.attach(&jobs).await.unwrap();
    assert_eq!(
        attached.warnings[0],
        "status may be archived, which runspan does not know: a run begins with its first known status, and the span \
         of a run that ends in one of these stays open, see docs/table.md"
    );
    session
        .execute(
            "INSERT INTO jobs (id, workflow_name, target_type, target_owner, target_repo, target_number, status,
                 state, created_at, updated_at)
             VALUES (gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', 1, 'queued', '{}', now(), now());
             UPDATE jobs SET status = 'succeeded'",
        )
        .await;
    assert_eq!(store.status().await.unwrap().journal_entries, 2);
}

async fn a_domain_with_statuses_of_its_own_is_warned_about(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "DROP INDEX idx_workflow_runs_inflight;
             CREATE DOMAIN word AS varchar(20) CHECK (VALUE <> 'none');
             CREATE DOMAIN status AS word CHECK (VALUE IN ('queued', 'running', 'on hold'));
             ALTER TABLE workflow_runs ALTER status TYPE status;
             CREATE INDEX ON workflow_runs (id) WHERE status::text IN ('queued', 'running')",
        )
        .await;
    let (_, attached) = database.attach().await;
    assert!(attached.warnings[0].starts_with("status may be on hold, which"), "{:?}", attached.warnings);
}

async fn an_attach_that_fails_leaves_nothing_on_the_table(database: &Database) {
    let (role, url) = owner(database).await;
    let mut session = connect(&url).await;
    session.execute(&format!("REVOKE SELECT ON workflow_runs FROM {role}")).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    let error = store.attach(&plan()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "the runs in flight of public.workflow_runs cannot be adopted (the database says: permission denied for \
         table workflow_runs); the triggers were removed again"
    );
    assert_eq!(store.attached_table().await.unwrap(), None);
    // What was there before stays.
    session.execute(&format!("GRANT SELECT ON workflow_runs TO {role}")).await;
    store.attach(&plan()).await.unwrap();
    session.execute(&format!("REVOKE SELECT ON workflow_runs FROM {role}")).await;
    let error = store.attach(&plan()).await.unwrap_err().to_string();
    assert!(error.ends_with("; the triggers are installed"), "{error}");
    assert!(store.attached_table().await.unwrap().is_some());
}

async fn a_partitioned_table_gets_an_index_that_can_be_made(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "CREATE TABLE jobs (LIKE workflow_runs) PARTITION BY LIST (target_owner);
             CREATE INDEX ON jobs (id);
             CREATE TABLE jobs_all PARTITION OF jobs DEFAULT",
        )
        .await;
    let jobs = Plan::of("jobs");
    let attached = database.store().attach(&jobs).await.unwrap();
    let (_, create) = attached.warnings[0].rsplit_once(": ").unwrap();
    session.execute(create).await;
    assert_eq!(database.store().attach(&jobs).await.unwrap().warnings, Vec::<String>::new());
}

async fn a_publication_of_all_tables_is_refused_before_anything_changes(database: &Database) {
    let mut session = database.connect().await;
    session.execute("CREATE PUBLICATION \"All\" FOR ALL TABLES").await;
    let store = database.store();
    let error = store.attach(&plan()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("publication \"All\" is FOR ALL TABLES, so it would publish runspan's tables"),
        "{error}"
    );
    assert!(matches!(store.check().await, Err(StoreError::NotAttached)));
    // Who knows about it goes on, and the next attach too.
    let published = Plan { published: true, ..plan() };
    store.attach(&published).await.unwrap();
    store.attach(&plan()).await.unwrap();
    // The relay's own changes need no replica identity: each table has a key.
    let relay = Relay::new(store).await;
    session.queue("triage", 1).await;
    assert!(relay.drain().await.contains("queued"));
    relay.store.reset_identity().await.unwrap();
}

async fn a_subscription_that_writes_the_table_is_warned_about(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(&format!(
            "CREATE SUBSCRIPTION copy_{0} CONNECTION 'dbname={0}' PUBLICATION p
                 WITH (connect = false, enabled = false, slot_name = NONE);
             INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)
                 SELECT oid, 'workflow_runs'::regclass, 'r' FROM pg_subscription WHERE subname = 'copy_{0}'",
            database.name()
        ))
        .await;
    let (_, attached) = database.attach().await;
    let warning = attached.warnings.iter().find(|warning| warning.contains("that subscription copy_"));
    assert!(
        warning.is_some_and(|warning| warning.contains("attach in the publisher's database")),
        "{attached:?}"
    );
    session
        .execute(&format!("DELETE FROM pg_subscription_rel; DROP SUBSCRIPTION copy_{}", database.name()))
        .await;
}
