//! The roles of docs/table.md: what they are granted is enough, none of it is too much, and nothing else is open.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use runspan::projection::Settings;
use runspan::relay;
use runspan::run::RunId;
use runspan::series::{Change, Head};
use runspan::store::{self, Channel, NewRequest, Plan, Selection, Settlement, Store, StoreError};

use super::{owner, role};
use crate::database::{Database, Session, connect, plan};

on_postgres!(
    the_relay_needs_each_of_its_grants,
    nothing_is_open_but_what_is_granted,
    what_a_caller_has_in_its_way_catches_nothing,
    a_relays_role_is_granted_all_by_its_name,
    missing_rights_are_named_as_grants,
);

/// The grants to `role` of the page, one privilege on one object each: `SELECT`, `TABLE runspan.meta`.
fn grants(role: &str) -> Vec<(String, String)> {
    let page = include_str!("../../../../docs/table.md");
    let to = format!(" TO {role};");
    let mut grants = Vec::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("GRANT ")?.strip_suffix(&to)) {
        let (privileges, objects) = line.split_once(" ON ").unwrap();
        let kind = ["SCHEMA", "SEQUENCE", "FUNCTION"].into_iter().find(|kind| objects.starts_with(kind));
        let names = objects.strip_prefix(kind.unwrap_or_default()).unwrap();
        for name in names.split(", ") {
            for privilege in privileges.split(", ") {
                let object = format!("{} {}", kind.unwrap_or("TABLE"), name.trim());
                grants.push((privilege.to_owned(), object));
            }
        }
    }
    assert!(grants.len() > 2, "{grants:?}");
    grants
}

async fn the_relay_needs_each_of_its_grants(database: &Database) {
    owner(database).await;
    database.attach().await;
    let (role, url) = role(database, "relay").await;
    let mut admin = database.connect().await;
    let grants = grants("relay");
    for (privilege, object) in &grants {
        admin.execute(&format!("GRANT {privilege} ON {object} TO {role}")).await;
    }
    let store = store::open(&url.parse().unwrap()).unwrap();
    all_that_a_relay_does(&*store, &mut admin).await.unwrap();
    for (privilege, object) in &grants {
        admin.execute(&format!("REVOKE {privilege} ON {object} FROM {role}")).await;
        let error = all_that_a_relay_does(&*store, &mut admin).await.err();
        let error = error.unwrap_or_else(|| panic!("it does without {privilege} on {object}"));
        let error = store.explain_denial(error).await.to_string();
        assert!(error.contains("permission denied"), "without {privilege} on {object}: {error}");
        let grant = format!("GRANT {privilege} ON {object} TO {role};").replace("TABLE ", "");
        assert!(error.contains(&grant) && error.matches("GRANT").count() == 1, "no {grant}: {error}");
        admin.execute(&format!("GRANT {privilege} ON {object} TO {role}")).await;
    }
    all_that_a_relay_does(&*store, &mut admin).await.unwrap();
}

/// Each statement of a relay and of the commands on what it keeps, at least once.
async fn all_that_a_relay_does(store: &dyn Store, admin: &mut Session) -> Result<(), StoreError> {
    admin.execute("SET session_replication_role = replica").await;
    admin.queue("missed", rand::random_range(1..i64::MAX)).await;
    admin.execute("RESET session_replication_role").await;
    let run = admin.queue("triage", rand::random_range(1..i64::MAX)).await;
    admin
        .execute(
            "INSERT INTO runspan.journal (run_id, from_status, to_status, at)
             VALUES (gen_random_uuid(), 'queued', 'running', now())",
        )
        .await;
    store.check().await?;
    let instance = store.instance().await?;
    let seen = store.lease().await?;
    let lease =
        store.take_lease(&seen, "tester", Duration::from_mins(1)).await?.expect("nobody else wants it");
    store.renew_lease(&lease, Duration::from_mins(1)).await?;
    store.reconcile().await?;
    store.make_room().await?;

    store.bring_forward(&store.position(&instance).await?, false).await?;
    let batch = store.read(store.position(&instance).await?, 1_000).await?;
    store.open_runs(&[run]).await?;
    let mut commit = relay::plan(batch, HashMap::new(), &Settings::default()).commit;
    assert!(!commit.set_aside.is_empty() && commit.set_aside.len() < commit.consumed.len());
    commit.closed.push(RunId::generate());
    let totals = commit.totals.clone();
    commit.requests = ["ab", "cd"].map(request).into();
    store.commit(&lease, &instance, &commit).await?;

    let first = store.next_request(Channel::Traces, None).await?.expect("it was stored");
    let halved = Settlement::Halved {
        id: first.id,
        place: first.place,
        created_at: first.created_at,
        halves: ["a", "b"].map(request),
    };
    store.settle(&lease, &[halved]).await?;
    for _ in 0..2 {
        let first = store.next_request(Channel::Traces, None).await?.expect("a half");
        store.settle(&lease, &[Settlement::Dead { id: first.id, answer: "400".to_owned() }]).await?;
    }
    store.retry(&Selection::Ids(vec![first.id + 2])).await?;
    store.discard(&Selection::All).await?;
    store.settle(&lease, &[Settlement::Delivered { id: first.id }]).await?;
    store.trim(&lease, 0).await?;

    store.list(10).await?;
    store.status().await?;
    store.stuck(10).await?;
    store.in_flight().await?;
    store.skipped_entries().await?;
    store.recorded().await?;
    let fresh = store.pending_totals(&lease, 0, 1_000).await?;
    let removed: Vec<i64> = fresh.totals.into_iter().map(|(place, _)| place).collect();
    let merged = removed.last().map(|place| (*place, totals.clone())).into_iter().collect();
    let usual = Some(BTreeMap::from([("triage".to_owned(), 1.0)]));
    let change = Change { head: Head::default(), totals: Some(totals), usual, removed, merged };
    store.record(&lease, &change).await?;
    store.release_lease(&lease).await
}

fn request(body: &str) -> NewRequest {
    NewRequest { channel: Channel::Traces, items: 2, runs: 1, body: Bytes::copy_from_slice(body.as_bytes()) }
}

/// What a role can do in the schema runspan, by the catalogue.
pub(super) async fn open_to(admin: &mut Session, role: &str) -> String {
    let open = format!(
        "SELECT coalesce(string_agg(what, E'\\n' ORDER BY what COLLATE \"C\"), '') FROM (
             SELECT p || ' ON SCHEMA runspan' FROM unnest('{{USAGE,CREATE}}'::text[]) p
             WHERE has_schema_privilege('{role}', 'runspan', p)
             UNION ALL
             SELECT p || ' ON TABLE runspan.' || relname FROM pg_class,
                 unnest('{{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}}'::text[]) p
             WHERE relnamespace = 'runspan'::regnamespace AND relkind IN ('r', 'v')
               AND has_table_privilege('{role}', oid, p)
             UNION ALL
             SELECT p || ' ON SEQUENCE runspan.' || relname FROM pg_class,
                 unnest('{{SELECT,USAGE,UPDATE}}'::text[]) p
             WHERE relnamespace = 'runspan'::regnamespace AND relkind = 'S'
               AND has_sequence_privilege('{role}', oid, p)
             UNION ALL
             SELECT 'EXECUTE ON FUNCTION runspan.' || proname || CASE pronargs WHEN 0 THEN '()' WHEN 1 THEN '(' || format_type(proargtypes[0], NULL) || ')' ELSE '' END
             FROM pg_proc WHERE pronamespace = 'runspan'::regnamespace
               AND has_function_privilege('{role}', oid, 'EXECUTE')) o (what)"
    );
    admin.text(&open).await.unwrap()
}

async fn nothing_is_open_but_what_is_granted(database: &Database) {
    owner(database).await;
    let (app, _) = role(database, "app").await;
    database.attach().await;
    let mut admin = database.connect().await;
    assert_eq!(open_to(&mut admin, &app).await, "");
    database.store().attach(&Plan { grant: Some(app.clone()), ..plan() }).await.unwrap();
    assert_eq!(
        open_to(&mut admin, &app).await,
        "EXECUTE ON FUNCTION runspan.dispatch_refused\nUSAGE ON SCHEMA runspan"
    );
    for documented in ["relay", "grafana"] {
        let (role, _) = role(database, documented).await;
        let mut expected = Vec::new();
        for (privilege, object) in grants(documented) {
            admin.execute(&format!("GRANT {privilege} ON {object} TO {role}")).await;
            expected.push(format!("{privilege} ON {object}"));
        }
        expected.sort_unstable();
        assert_eq!(open_to(&mut admin, &role).await, expected.join("\n"));
    }
}

/// Objects by the names that runspan's functions use, in a schema of the caller's that it searches first.
const IN_THE_WAY: &str = "
    CREATE SCHEMA evil;
    CREATE TABLE evil.caught (who text);
    GRANT USAGE ON SCHEMA evil TO PUBLIC;
    GRANT INSERT ON evil.caught TO PUBLIC;
    CREATE FUNCTION evil.caught() RETURNS void LANGUAGE sql AS 'INSERT INTO evil.caught VALUES (current_user)';
    CREATE FUNCTION evil.left(text, integer) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN $1; END $$;
    CREATE FUNCTION evil.replace(text, text, text) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN $1; END $$;
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN 'epoch'; END $$;
    CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN ''; END $$;
    CREATE FUNCTION evil.to_regproc(text) RETURNS regproc LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN NULL; END $$;
    CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN NULL; END $$;
    CREATE FUNCTION evil.isfinite(timestamptz) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN true; END $$;
    CREATE FUNCTION evil.same(uuid, uuid) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN true; END $$;
    CREATE FUNCTION evil.other(text, text) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN true; END $$;
    CREATE FUNCTION evil.inside(jsonb, text) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN PERFORM evil.caught(); RETURN $2; END $$;
    CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.same);
    CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.other);
    CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.other);
    CREATE OPERATOR evil.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = evil.inside);
    CREATE TABLE evil.pg_trigger (tgrelid oid, tgfoid oid, tgparentid oid);
    CREATE TABLE evil.journal (LIKE evil.caught)";

const SEARCH: &str = "
    CREATE TEMP TABLE pg_trigger (tgrelid oid, tgfoid oid, tgparentid oid);
    CREATE TEMP TABLE journal (who text);
    CREATE TEMP TABLE open_runs (run_id uuid);
    SET search_path = evil, pg_temp, public, pg_catalog";

async fn what_a_caller_has_in_its_way_catches_nothing(database: &Database) {
    owner(database).await;
    let (app, url) = role(database, "app").await;
    database.store().attach(&Plan { grant: Some(app.clone()), ..plan() }).await.unwrap();
    let mut admin = database.connect().await;
    admin
        .execute(&format!(
            "GRANT CREATE ON DATABASE {} TO {app}; GRANT SELECT, INSERT, UPDATE, DELETE ON workflow_runs TO {app}",
            database.name()
        ))
        .await;
    let mut session = connect(&url).await;
    session.execute(IN_THE_WAY).await;
    // It works: whoever searches there is caught.
    session.execute(SEARCH).await;
    session.execute("SELECT left('a', 1)").await;
    assert_eq!(admin.count(&format!("evil.caught WHERE who = '{app}'")).await, 1);
    session
        .execute(
            "INSERT INTO public.workflow_runs (id, workflow_name, target_type, target_owner, target_repo,
                 target_number, parent_run_id, parent_step_index)
             VALUES ('00000000-0000-7000-8000-000000000001', 'ship', 'pr', 'acme', 'widgets', 1, NULL, NULL),
                    ('00000000-0000-7000-8000-000000000002', 'ship', 'pr', 'acme', 'widgets', 2,
                     '00000000-0000-7000-8000-000000000001', 0)",
        )
        .await;
    session
        .execute(
            "UPDATE public.workflow_runs SET status = 'failed', state = '{\"failedReason\": \"no\"}';
             SELECT runspan.dispatch_refused('ship', 'pr', 'acme', 'widgets', 1, 'context-mismatch', NULL,
                 gen_random_uuid())",
        )
        .await;
    // Someone with more rights, who searches there all the same.
    admin.execute(SEARCH).await;
    admin.execute("DELETE FROM evil.caught").await;
    admin
        .execute(
            "SELECT runspan.adopt(ARRAY(SELECT runspan.missed_runs())); SELECT runspan.catch_up(); SELECT * FROM runspan.in_flight(); SELECT * FROM runspan.stuck_runs();
             SELECT * FROM runspan.stuck; SELECT runspan.attached_to()",
        )
        .await;
    let mut looker = database.connect().await;
    let caught = "SELECT string_agg(DISTINCT who, ' ') FROM evil.caught";
    assert_eq!(looker.text(caught).await, None);
    assert_eq!(looker.count("runspan.journal WHERE workflow_name = 'ship'").await, 5);
    assert_eq!(looker.count("runspan.journal WHERE reason IN ('no', 'context-mismatch')").await, 3);
    assert_eq!(looker.count("runspan.journal WHERE root_workflow_name = 'ship'").await, 2);
    // Whatever is added: no function of runspan's searches where its caller does.
    let open = "SELECT string_agg(proname, ' ') FROM pg_proc WHERE pronamespace = 'runspan'::regnamespace
                AND NOT coalesce(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)";
    assert_eq!(looker.text(open).await, None);
}

async fn a_relays_role_is_granted_all_by_its_name(database: &Database) {
    owner(database).await;
    let (store, _) = database.attach().await;
    let (role, url) = role(database, "relay").await;
    assert_eq!(store.relay_grants(&role).await.unwrap().lines().count(), 12);
    store.grant_relay(&role).await.unwrap();
    let relays = store::open(&url.parse().unwrap()).unwrap();
    all_that_a_relay_does(&*relays, &mut database.connect().await).await.unwrap();
    let error = store.relay_grants("nobody").await.unwrap_err().to_string();
    assert_eq!(error, "there is no role \"nobody\": create it, or name another with --relay-role");
    assert_eq!(store.grant_relay("nobody").await.unwrap_err().to_string(), error);
}

async fn missing_rights_are_named_as_grants(database: &Database) {
    owner(database).await;
    database.attach().await;
    let (role, url) = role(database, "relay").await;
    let store = store::open(&url.parse().unwrap()).unwrap();
    let receiver = crate::receiver::Receiver::http().await;
    let endpoint = receiver.endpoint();
    let env = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let start =
        || runspan::relay::Relay::new(store.clone(), runspan::relay::Logs::Otlp, &env).unwrap().spawn();
    let error = start().drain().await.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    let option = format!("`runspan attach --table 'public.workflow_runs' --relay-role '{role}'`");
    assert!(error.contains(&option), "{error}");
    let (_, grants) = error.split_once(" lacks ").unwrap();
    let (grants, _) = grants.split_once(" `").unwrap();
    assert_eq!(grants.matches("GRANT ").count(), 12, "{grants}");
    let mut admin = database.connect().await;
    admin.execute(grants).await;
    all_that_a_relay_does(&*store, &mut admin).await.unwrap();
}
