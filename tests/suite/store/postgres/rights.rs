//! Nobody gains rights: whoever owns the table cannot have a command of runspan's run code with more than the owner's
//! rights, and what others are given by default is taken away.

use std::process::{Command, Output};

use runspan::store::{self, Plan, StoreError};

use super::grants::open_to;
use super::{owner, role};
use crate::database::{Database, Session, connect, plan};

on_postgres!(
    an_owner_who_lays_traps_gains_nothing,
    the_printed_sql_runs_nothing_of_the_owners,
    a_view_in_the_place_of_the_version_is_not_read,
    a_superuser_does_not_use_what_is_someone_elses,
    a_schema_that_appears_between_two_statements_is_not_used,
    a_member_with_more_rights_does_not_either,
    a_schema_that_is_renamed_to_runspan_hands_nothing_over,
    a_superuser_leaves_the_adoption_to_the_relay,
    a_table_named_to_break_out_of_the_sql_does_not,
    default_privileges_open_nothing,
    what_default_privileges_opened_before_is_closed_again,
    a_purge_says_what_is_lost_and_who_loses_rights,
    a_purge_counts_with_the_owners_rights_alone,
);

/// Makes the owner a superuser, if whoever runs it can: as it is, or once it has left the role that it was given.
const TRAP: &str = "
    CREATE FUNCTION public.gain() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
        BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
        BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
    END $$;
    CREATE FUNCTION public.gain_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN coalesce(NEW, OLD); END $$;
    CREATE FUNCTION public.gain_text(text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN $1; END $$;
    -- Better fits for what is called with a name or an unknown literal than what PostgreSQL has.
    CREATE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN pg_catalog.format($1, $2, $3); END $$;
    CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN pg_catalog.quote_ident($1::text); END $$;
    CREATE FUNCTION public.lower(name) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN pg_catalog.lower($1::text); END $$;
    CREATE FUNCTION public.same(name, text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN PERFORM public.gain(); RETURN $1::text OPERATOR(pg_catalog.=) $2; END $$;
    CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.same);
    CREATE OR REPLACE FUNCTION runspan.missed_runs() RETURNS SETOF uuid LANGUAGE plpgsql
        AS $$ BEGIN PERFORM public.gain(); RETURN; END $$;
    CREATE OR REPLACE FUNCTION runspan.adopt(runs uuid[]) RETURNS bigint LANGUAGE plpgsql
        AS $$ BEGIN PERFORM public.gain(); RETURN 0; END $$;
    CREATE OR REPLACE FUNCTION runspan.catch_up(OUT entries bigint, OUT vanished bigint) LANGUAGE plpgsql
        AS $$ BEGIN PERFORM public.gain(); entries := 0; vanished := 0; END $$;
    CREATE OR REPLACE FUNCTION runspan.attached_to() RETURNS regclass LANGUAGE plpgsql
        AS $$ BEGIN PERFORM public.gain(); RETURN NULL; END $$;
    CREATE OR REPLACE FUNCTION runspan.stuck_runs() RETURNS TABLE (
        run_id uuid, workflow_name text, target text, target_owner text, target_repo text, status text,
        since timestamptz, age_seconds float8, usual_seconds float8, parent_run_id uuid, delivery_id text
    ) LANGUAGE plpgsql AS $$ BEGIN PERFORM public.gain(); RETURN; END $$;";

/// What anyone who changes a row of it runs: at once, and at the end of the transaction.
const TRAP_OF_A_TABLE: &str = "
    CREATE TRIGGER now BEFORE INSERT OR UPDATE OR DELETE ON runspan.{table}
        FOR EACH ROW EXECUTE FUNCTION public.gain_trigger();
    CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE OR DELETE ON runspan.{table}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.gain_trigger();";

/// Lays a trap in everything that is the owner's, as the owner.
async fn lay_traps(session: &mut Session, owner: &str) {
    session.execute(&TRAP.replace("{owner}", owner)).await;
    let tables = "SELECT string_agg(relname, ' ') FROM pg_class
                  WHERE relnamespace = 'runspan'::regnamespace AND relkind = 'r'";
    for table in session.text(tables).await.unwrap().split(' ') {
        session.execute(&TRAP_OF_A_TABLE.replace("{table}", table)).await;
    }
}

async fn is_superuser(database: &Database, role: &str) -> bool {
    let sql = format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'");
    database.connect().await.text(&sql).await.as_deref() == Some("true")
}

/// Runs a command as the superuser of the tests.
fn runspan(database: &Database, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_runspan"))
        .args(arguments)
        .env("DATABASE_URL", &database.url)
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_METRICS_EXPORTER", "none")
        .output()
        .unwrap()
}

/// Hands table and schema to a role that is no superuser, and attaches as a superuser.
async fn attached_for(database: &Database) -> (String, String) {
    let (role, url) = owner(database).await;
    database.connect().await.execute(&format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
    database.attach().await;
    (role, url)
}

async fn an_owner_who_lays_traps_gains_nothing(database: &Database) {
    let (role, url) = attached_for(database).await;
    let mut session = connect(&url).await;
    session.queue("triage", 1).await;
    let commands: [&[&str]; 10] = [
        &["attach", "--dry-run"],
        &["attach"],
        &["stuck"],
        &["outbox"],
        &["outbox", "retry", "--all"],
        &["outbox", "drop", "--all"],
        &["relay", "--until-idle", "--logs", "stdout"],
        &["detach"],
        &["attach"],
        &["detach", "--purge", "--yes"],
    ];
    for arguments in commands {
        // `attach` replaces functions: the owner lays the traps anew.
        session.execute("DROP FUNCTION IF EXISTS public.gain() CASCADE").await;
        session
            .execute(
                "DROP FUNCTION IF EXISTS public.gain_trigger(), public.gain_text(text), public.same(name, text),
                     public.format(text, name, name), public.quote_ident(name), public.lower(name) CASCADE",
            )
            .await;
        lay_traps(&mut session, &role).await;
        let output = runspan(database, arguments);
        assert!(!is_superuser(database, &role).await, "{arguments:?}: {output:?}");
    }
    assert_eq!(session.count("pg_namespace WHERE nspname = 'runspan'").await, 0, "purged");
    // The traps do close on who walks into them.
    let mut admin = database.connect().await;
    admin.execute("SELECT public.format('%I.%I', 'a'::name, 'b'::name)").await;
    assert!(is_superuser(database, &role).await);
}

async fn the_printed_sql_runs_nothing_of_the_owners(database: &Database) {
    let (role, url) = attached_for(database).await;
    let mut session = connect(&url).await;
    session.queue("triage", 1).await;
    lay_traps(&mut session, &role).await;
    let sql = database.store().attach_sql(&plan()).await.unwrap();
    // In an encoding whose characters may end in a backslash, psql would take part of a name for a command of its own.
    assert!(sql.starts_with("SET client_encoding = 'UTF8';\n"), "{sql}");
    database.connect().await.execute(&sql).await;
    assert!(!is_superuser(database, &role).await);
}

async fn a_view_in_the_place_of_the_version_is_not_read(database: &Database) {
    let (role, url) = attached_for(database).await;
    let mut session = connect(&url).await;
    lay_traps(&mut session, &role).await;
    session
        .execute(
            "DROP TABLE runspan.meta;
             CREATE VIEW runspan.meta AS SELECT length(public.gain_text('12')) AS version",
        )
        .await;
    let error = database.store().attach(&plan()).await.unwrap_err().to_string();
    assert_eq!(error, "runspan.meta is no table: drop the schema runspan");
    _ = runspan(database, &["stuck"]);
    assert!(!is_superuser(database, &role).await);
}

async fn a_superuser_does_not_use_what_is_someone_elses(database: &Database) {
    let (role, _) = attached_for(database).await;
    for arguments in [&["stuck"][..], &["outbox"], &["relay", "--until-idle", "--logs", "stdout"]] {
        let output = runspan(database, arguments);
        let line = String::from_utf8(output.stderr).unwrap();
        let why = format!(
            "role \"postgres\" is a superuser, and the schema runspan belongs to {role}, whose code would run with \
             these rights: connect as {role}, or as a role with the grants of docs/table.md (Roles)\n"
        );
        assert!(line.ends_with(&why), "{line}");
        assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    }
    // Each method for itself, whatever is called first.
    let store = database.store();
    assert!(store.status().await.is_err() && !store.status().await.unwrap_err().is_transient());
    assert!(store.reconcile().await.is_err() && store.list(1).await.is_err());
}

async fn a_schema_that_appears_between_two_statements_is_not_used(database: &Database) {
    let (role, url) = owner(database).await;
    database.connect().await.execute(&format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
    let mut session = connect(&url).await;
    // What it has is called otherwise, until somebody looks.
    database.attach().await;
    lay_traps(&mut session, &role).await;
    session
        .execute(
            "DROP TABLE runspan.meta;
             CREATE VIEW runspan.meta AS SELECT length(public.gain_text('12')) AS version;
             ALTER SCHEMA runspan RENAME TO trap",
        )
        .await;
    assert!(matches!(database.store().check().await, Err(StoreError::NotAttached)));
    let done = tokio_util::sync::CancellationToken::new();
    let rename = async {
        while !done.is_cancelled() {
            session.execute("ALTER SCHEMA trap RENAME TO runspan").await;
            session.execute("ALTER SCHEMA runspan RENAME TO trap").await;
        }
    };
    let use_it = async {
        for _ in 0..40 {
            // Each with connections of its own, which know nothing yet.
            let store = database.store();
            _ = store.check().await;
            _ = store.stuck(1).await;
            _ = store.status().await;
        }
        done.cancel();
    };
    tokio::join!(rename, use_it);
    assert!(!is_superuser(database, &role).await);
}

async fn a_member_with_more_rights_does_not_either(database: &Database) {
    let (role, _) = attached_for(database).await;
    let (app, url) = super::role(database, "app").await;
    let mut admin = database.connect().await;
    admin.execute(&format!("GRANT {role} TO {app}")).await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.status().await.unwrap();
    admin.execute(&format!("ALTER ROLE {app} CREATEROLE")).await;
    let error = store.check().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("role {app:?} may create roles, and ")), "{error}");
    admin.execute(&format!("ALTER ROLE {app} NOCREATEROLE; GRANT pg_execute_server_program TO {app}")).await;
    let error = store.check().await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("role {app:?} is a member of pg_execute_server_program, ")),
        "{error}"
    );
    // Inherited or not: it can become that role.
    for member in ["pg_write_server_files", "postgres"] {
        admin
            .execute(&format!(
                "REVOKE pg_execute_server_program, pg_write_server_files FROM {app};
                 ALTER ROLE {app} NOINHERIT; GRANT {member} TO {app}"
            ))
            .await;
        let error = store.check().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("role {app:?} is a member of {member}, ")), "{error}");
    }
    admin.execute(&format!("REVOKE postgres FROM {app}")).await;
    for right in ["REPLICATION", "BYPASSRLS"] {
        admin.execute(&format!("ALTER ROLE {app} {right}")).await;
        assert!(store.check().await.is_err(), "{right}");
        admin.execute(&format!("ALTER ROLE {app} NO{right}")).await;
    }
    admin.execute(&format!("ALTER ROLE {app} INHERIT")).await;
    store.check().await.unwrap();
}

async fn a_schema_that_is_renamed_to_runspan_hands_nothing_over(database: &Database) {
    let (role, url) = owner(database).await;
    let mut session = connect(&url).await;
    session.execute("CREATE SCHEMA app").await;
    let mut admin = database.connect().await;
    admin.execute("CREATE TABLE app.secrets AS SELECT 'x' AS secret; CREATE TABLE app.journal (a int)").await;
    session.execute("ALTER SCHEMA app RENAME TO runspan").await;
    for table in ["journal", "secrets"] {
        let error = database.store().attach(&plan()).await.unwrap_err().to_string();
        let why = format!("runspan.{table} belongs to role \"postgres\", and not to {role}");
        assert!(error.starts_with(&why), "{error}");
        admin.execute(&format!("DROP TABLE runspan.{table}")).await;
    }
    database.attach().await;
}

async fn a_superuser_leaves_the_adoption_to_the_relay(database: &Database) {
    let (_, url) = owner(database).await;
    let mut session = connect(&url).await;
    session.queue("triage", 1).await;
    let (_, attached) = database.attach().await;
    assert_eq!(attached.adopted, None);
    let store = store::open(&url.parse().unwrap()).unwrap();
    assert_eq!(store.reconcile().await.unwrap().entries, 1);
    // The owner need not wait.
    store.detach(true).await.unwrap();
    assert_eq!(store.attach(&plan()).await.unwrap().adopted, Some(1));
}

async fn a_table_named_to_break_out_of_the_sql_does_not(database: &Database) {
    let (role, url) = owner(database).await;
    database.connect().await.execute(&format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
    let mut session = connect(&url).await;
    let escape = format!("RESET ROLE; ALTER ROLE {role} SUPERUSER; --");
    for name in [
        format!("x\n{escape}"),
        format!("'; {escape}"),
        format!("\\'; {escape}"),
        "{literal} {table} {stuck_threshold}".to_owned(),
    ] {
        // A name has 63 bytes at most.
        let name: String = name.chars().take(63).collect();
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        session.execute(&format!("ALTER TABLE workflow_runs RENAME TO {quoted}")).await;
        let named = Plan::of(&quoted);
        let sql = database.store().attach_sql(&named).await.unwrap();
        database.connect().await.execute(&sql).await;
        database.store().attach(&named).await.unwrap();
        assert!(!is_superuser(database, &role).await, "{name}");
        assert_eq!(database.store().capture().await.unwrap(), [], "{name}");
        database.store().detach(true).await.unwrap();
        session.execute(&format!("ALTER TABLE {quoted} RENAME TO workflow_runs")).await;
    }
}

/// Gives `app` and everyone all that can be given by default on what the owner makes.
async fn give_by_default(database: &Database, owner: &str, app: &str) {
    let mut admin = database.connect().await;
    for what in ["TABLES", "SEQUENCES", "FUNCTIONS", "SCHEMAS"] {
        for whom in [app, "PUBLIC"] {
            let sql = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON {what} TO {whom}");
            admin.execute(&sql).await;
        }
    }
}

const GRANTED: &str = "EXECUTE ON FUNCTION runspan.dispatch_refused\nUSAGE ON SCHEMA runspan";

async fn default_privileges_open_nothing(database: &Database) {
    let (owner, _) = owner(database).await;
    let (app, url) = role(database, "app").await;
    give_by_default(database, &owner, &app).await;
    database.store().attach(&Plan { grant: Some(app.clone()), ..plan() }).await.unwrap();
    let mut admin = database.connect().await;
    assert_eq!(open_to(&mut admin, &app).await, GRANTED);
    let mut session = connect(&url).await;
    session
        .execute("SELECT runspan.dispatch_refused('triage', 'pr', 'acme', 'widgets', 1, 'context-mismatch')")
        .await;
    for sql in [
        "SELECT * FROM runspan.outbox",
        "DELETE FROM runspan.journal",
        "UPDATE runspan.lease SET epoch = 7",
        "SELECT setval('runspan.journal_seq', 1)",
        "SELECT runspan.missed_runs()",
        "CREATE FUNCTION runspan.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ] {
        assert_eq!(super::refused(&mut session, sql).await, "42501", "{sql}");
    }
}

async fn what_default_privileges_opened_before_is_closed_again(database: &Database) {
    let (owner, url) = owner(database).await;
    let (app, _) = role(database, "app").await;
    database.store().attach(&Plan { grant: Some(app.clone()), ..plan() }).await.unwrap();
    give_by_default(database, &owner, &app).await;
    let mut session = connect(&url).await;
    // As an older runspan left it.
    session
        .execute(&format!(
            "GRANT ALL ON ALL TABLES IN SCHEMA runspan TO {app}, PUBLIC;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA runspan TO {app} WITH GRANT OPTION;
             GRANT ALL ON ALL FUNCTIONS IN SCHEMA runspan TO {app};
             GRANT ALL ON SCHEMA runspan TO {app}"
        ))
        .await;
    let attached = database.attach().await.1;
    assert_eq!(open_to(&mut database.connect().await, &app).await, GRANTED);
    let warning = format!("default privileges of {owner} open new objects to PUBLIC, {app}: revoked");
    assert!(attached.warnings.iter().any(|line| line.starts_with(&warning)), "{:?}", attached.warnings);
}

async fn a_purge_says_what_is_lost_and_who_loses_rights(database: &Database) {
    let store = database.store();
    assert_eq!(store.purge_loss().await.unwrap(), None);
    let (relay, _) = role(database, "owner").await;
    let (app, _) = role(database, "app").await;
    store.attach(&Plan { grant: Some(app.clone()), ..plan() }).await.unwrap();
    let mut session = database.connect().await;
    session.execute(&format!("GRANT SELECT ON runspan.outbox TO {relay}")).await;
    session.queue("triage", 1).await;
    session
        .execute(
            "INSERT INTO runspan.open_runs VALUES (gen_random_uuid(), 'queued', '{}');
             INSERT INTO runspan.set_aside VALUES (1, 'no', '{}'), (2, 'no', '{}');
             INSERT INTO runspan.outbox (place, channel, items, runs, bytes, dead, body)
             SELECT n, 'traces', 1, 1, 1, CASE n WHEN 1 THEN '400' END, '' FROM generate_series(1, 4) n",
        )
        .await;
    let loss = store.purge_loss().await.unwrap().unwrap();
    assert_eq!((loss.entries, loss.waiting, loss.dead, loss.set_aside, loss.open_runs), (1, 3, 1, 2, 1));
    assert_eq!(loss.callers, Some(vec![app.clone()]));
    assert_eq!(loss.roles, [app, relay]);
    // A damaged schema can be purged too.
    session.execute("DROP TABLE runspan.journal, runspan.outbox").await;
    assert_eq!(store.purge_loss().await.unwrap().unwrap().entries, 0);
}

async fn a_purge_counts_with_the_owners_rights_alone(database: &Database) {
    let (role, url) = attached_for(database).await;
    let mut session = connect(&url).await;
    session.queue("triage", 1).await;
    assert_eq!(database.store().purge_loss().await.unwrap().unwrap().entries, 1);
    lay_traps(&mut session, &role).await;
    session
        .execute(
            "DROP TABLE runspan.outbox;
             CREATE TABLE runspan.outbox (id bigint, dead text);
             ALTER TABLE runspan.journal ENABLE ROW LEVEL SECURITY;
             ALTER TABLE runspan.journal FORCE ROW LEVEL SECURITY;
             CREATE POLICY p ON runspan.journal USING (public.gain_text('') = '')",
        )
        .await;
    database.store().purge_loss().await.unwrap();
    assert!(!is_superuser(database, &role).await);
}
