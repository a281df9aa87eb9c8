//! The application's migrations are free, and neither they nor its own triggers lose an entry or turn one round.

use runspan::store::{Plan, Store};

use crate::database::{Database, Session};
use crate::projector::Relay;

on_postgres!(
    any_column_can_be_altered_and_no_session_loses_an_entry,
    any_column_can_be_dropped_and_the_entry_is_written_without_it,
    an_update_of_nothing_that_matters_makes_no_entry_after_an_alter,
    a_number_that_is_none_is_left_out,
    a_change_made_by_a_trigger_follows_its_cause,
    a_change_of_a_sibling_row_follows_its_cause,
    a_deletion_made_by_a_trigger_follows_its_cause,
    a_chain_of_triggers_is_in_order,
    a_row_that_is_changed_back_and_forth_is_in_order,
    a_change_made_by_a_trigger_follows_its_cause_after_an_alter,
    changes_of_one_transaction_stay_in_their_order,
    a_trigger_that_sorts_before_ours_changes_nothing,
);

/// A table with nothing but what runspan reads.
const JOBS: &str = "
    CREATE TABLE jobs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), workflow_name text NOT NULL DEFAULT 'triage',
        target_type text DEFAULT 'pr', target_owner text DEFAULT 'acme', target_repo text DEFAULT 'widgets',
        target_number bigint DEFAULT 7, parent_run_id uuid, status text NOT NULL DEFAULT 'queued',
        state jsonb NOT NULL DEFAULT '{}', delivery_id text DEFAULT 'd-1', created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now(), note text)";

async fn attach(database: &Database) -> std::sync::Arc<dyn Store> {
    database.connect().await.execute(JOBS).await;
    let store = database.store();
    store.attach(&Plan::of("jobs")).await.unwrap();
    store
}

/// The life of a run and the deletion of another; the number of entries that makes.
async fn live(session: &mut Session) -> u64 {
    for sql in [
        "INSERT INTO jobs DEFAULT VALUES",
        "UPDATE jobs SET status = 'running'",
        "UPDATE jobs SET note = 'none'",
        "UPDATE jobs SET status = 'failed'",
        "DELETE FROM jobs",
        "INSERT INTO jobs DEFAULT VALUES",
        "DELETE FROM jobs",
    ] {
        session.execute(sql).await;
    }
    5
}

async fn any_column_can_be_altered_and_no_session_loses_an_entry(database: &Database) {
    let store = attach(database).await;
    let (mut old, mut admin) = (database.connect().await, database.connect().await);
    let mut expected = live(&mut old).await;
    for alter in [
        "ALTER workflow_name TYPE varchar(200)",
        "ALTER status TYPE varchar(30)",
        "ALTER status TYPE char(12)",
        "ALTER status DROP DEFAULT, ALTER status TYPE s1 USING status::text::s1, ALTER status SET DEFAULT 'queued'",
        "ALTER status DROP DEFAULT, ALTER status TYPE s2 USING status::text::s2, ALTER status SET DEFAULT 'queued'",
        "ALTER status DROP DEFAULT, ALTER status TYPE text, ALTER status SET DEFAULT 'queued'",
        "ALTER target_number TYPE integer",
        "ALTER target_number TYPE numeric",
        "ALTER target_number DROP DEFAULT, ALTER target_number TYPE text, ALTER target_number SET DEFAULT '7'",
        "ALTER target_type TYPE varchar(9), ALTER target_owner TYPE varchar(99), ALTER target_repo TYPE char(20)",
        "ALTER delivery_id DROP DEFAULT, ALTER delivery_id TYPE uuid USING NULL",
        "ALTER state DROP DEFAULT, ALTER state TYPE json USING state::json, ALTER state SET DEFAULT '{}'",
        "ALTER state DROP DEFAULT, ALTER state TYPE text USING state::text, ALTER state SET DEFAULT '{}'",
        "ALTER created_at TYPE timestamp, ALTER updated_at TYPE timestamp",
        "ALTER created_at TYPE text, ALTER created_at SET DEFAULT 'yesterday or so'",
        "ALTER parent_run_id TYPE text",
        "ALTER id DROP DEFAULT, ALTER id TYPE text USING id::text, ALTER id SET DEFAULT gen_random_uuid()::text",
        "ADD more text DEFAULT 'x', ADD still_more int",
    ] {
        if alter.contains("TYPE s1") {
            let values = "('queued', 'running', 'succeeded', 'failed', 'incomplete')";
            admin.execute(&format!("CREATE TYPE s1 AS ENUM {values}; CREATE TYPE s2 AS ENUM {values}")).await;
        }
        let mut young = database.connect().await;
        live(&mut young).await;
        admin.execute(&format!("ALTER TABLE jobs {alter}")).await;
        if alter.contains("TYPE s2") {
            admin.execute("DROP TYPE s1").await;
        }
        expected += 5;
        for session in [&mut old, &mut young, &mut database.connect().await] {
            expected += live(session).await;
        }
        let status = store.status().await.unwrap();
        let entries = u64::try_from(status.journal_entries).unwrap();
        assert_eq!((entries, status.skipped_entries), (expected, 0), "{alter}");
    }
    let whole = "runspan.journal WHERE run_id IS NOT NULL AND workflow_name = 'triage'
                 AND (from_status IS NOT NULL OR to_status = 'queued') AND target_number = 7";
    assert_eq!(admin.count(whole).await, expected);
}

async fn any_column_can_be_dropped_and_the_entry_is_written_without_it(database: &Database) {
    let store = attach(database).await;
    let (mut old, mut admin) = (database.connect().await, database.connect().await);
    let mut expected = live(&mut old).await;
    for column in [
        "delivery_id",
        "target_number",
        "target_repo",
        "target_owner",
        "target_type",
        "parent_run_id",
        "created_at",
        "updated_at",
        "state",
    ] {
        admin.execute(&format!("ALTER TABLE jobs DROP COLUMN {column}")).await;
        for session in [&mut old, &mut database.connect().await] {
            expected += live(session).await;
        }
        let status = store.status().await.unwrap();
        let entries = u64::try_from(status.journal_entries).unwrap();
        assert_eq!((entries, status.skipped_entries), (expected, 0), "{column}");
    }
    assert_eq!(admin.count("runspan.journal WHERE workflow_name = 'triage'").await, expected);
    // Without a status there is nothing to journal, and the application goes on all the same.
    admin.execute("ALTER TABLE jobs DROP COLUMN status").await;
    for session in [&mut old, &mut database.connect().await] {
        session.execute("INSERT INTO jobs DEFAULT VALUES").await;
        session.execute("UPDATE jobs SET note = 'x'").await;
        session.execute("DELETE FROM jobs").await;
    }
}

async fn an_update_of_nothing_that_matters_makes_no_entry_after_an_alter(database: &Database) {
    let store = attach(database).await;
    let mut old = database.connect().await;
    live(&mut old).await;
    old.execute("INSERT INTO jobs DEFAULT VALUES").await;
    let before = store.status().await.unwrap();
    database.connect().await.execute("ALTER TABLE jobs ALTER status TYPE varchar(30)").await;
    old.execute("UPDATE jobs SET note = 'x'").await;
    old.execute("UPDATE jobs SET status = status").await;
    assert_eq!(store.status().await.unwrap().journal_entries, before.journal_entries);
    assert_eq!(store.status().await.unwrap().skipped_entries, 0);
}

async fn a_number_that_is_none_is_left_out(database: &Database) {
    database.connect().await.execute(JOBS).await;
    let mut session = database.connect().await;
    session.execute("ALTER TABLE jobs ALTER target_number TYPE numeric").await;
    let numbers = ["'NaN'", "'1e30'", "'-1e30'", "7.4", "7", "NULL"];
    for number in numbers {
        session.execute(&format!("INSERT INTO jobs (target_number) VALUES ({number})")).await;
    }
    let store = database.store();
    let attached = store.attach(&Plan::of("jobs")).await.unwrap();
    assert_eq!(attached.adopted, Some(6));
    session.execute("UPDATE jobs SET status = 'running'").await;
    let status = store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.skipped_entries), (12, 0));
    assert_eq!(session.count("runspan.journal WHERE target_number = 7").await, 4);
    assert_eq!(session.count("runspan.journal WHERE target_number IS NULL").await, 8);
}

/// Makes a trigger of the application's: after `when`, `sql`.
async fn trigger(session: &mut Session, name: &str, when: &str, sql: &str) {
    session
        .execute(&format!(
            "CREATE FUNCTION \"{name}\"() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {sql}; RETURN NULL; END $$;
             CREATE TRIGGER \"{name}\" AFTER {when} ON workflow_runs FOR EACH ROW EXECUTE FUNCTION \"{name}\"()"
        ))
        .await;
}

/// The transitions in the journal, in order: by target number.
async fn transitions(session: &mut Session) -> String {
    let sql = "SELECT string_agg(concat_ws(' ', target_number, coalesce(from_status, '-'), coalesce(to_status, '-')), E'\\n'
                   ORDER BY seq) FROM runspan.journal";
    session.text(sql).await.unwrap_or_default()
}

const FAIL: &str =
    "UPDATE workflow_runs SET status = 'failed', state = '{\"failedReason\": \"quota\"}' WHERE id = NEW.id";

async fn a_change_made_by_a_trigger_follows_its_cause(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for name in ["a_quota", "!!quota", " quota"] {
        trigger(&mut session, name, "UPDATE", &format!("IF NEW.status = 'running' THEN {FAIL}; END IF"))
            .await;
        let id = session.queue("triage", 1).await;
        session.execute(&format!("UPDATE workflow_runs SET status = 'running' WHERE id = '{id}'")).await;
        assert_eq!(
            transitions(&mut session).await,
            "1 - queued\n1 queued running\n1 running failed",
            "{name}"
        );
        let told = relay.drain().await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(told, @r#"
            queued triage acme/widgets#1 rootWorkflowName=triage
            running triage acme/widgets#1 rootWorkflowName=triage
            failed triage acme/widgets#1 rootWorkflowName=triage outcome=failed error.type=handler reason=quota
            completed triage acme/widgets#1 rootWorkflowName=triage outcome=failed
            span "triage queued" [] child
            span "triage" [queued running failed] error=quota
            "#);
        }
        session.execute(&format!("DROP TRIGGER \"{name}\" ON workflow_runs; DROP FUNCTION \"{name}\"")).await;
    }
    // And after an insert.
    trigger(&mut session, " at_once", "INSERT", &FAIL.replace("failed'", "running'")).await;
    session.queue("triage", 2).await;
    assert_eq!(transitions(&mut session).await, "2 - queued\n2 queued running");
}

async fn a_change_of_a_sibling_row_follows_its_cause(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    // Only the first may run: the others of the same statement fail.
    trigger(
        &mut session,
        "z_only_one",
        "UPDATE",
        "IF NEW.status = 'running' AND NEW.target_number = 1 THEN
             UPDATE workflow_runs SET status = 'failed' WHERE target_number > 1; END IF",
    )
    .await;
    for number in [1, 2, 3] {
        session.queue("triage", number).await;
    }
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    let told = transitions(&mut session).await;
    for number in [2, 3] {
        let of_run: Vec<&str> = told.lines().filter(|line| line.starts_with(&number.to_string())).collect();
        let expected =
            ["- queued", "queued running", "running failed"].map(|step| format!("{number} {step}"));
        assert_eq!(of_run, expected, "{told}");
    }
}

async fn a_deletion_made_by_a_trigger_follows_its_cause(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let delete = "IF NEW.status = 'running' THEN DELETE FROM workflow_runs WHERE id = NEW.id; END IF";
    trigger(&mut session, " delete", "UPDATE", delete).await;
    session.queue("triage", 1).await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    assert_eq!(transitions(&mut session).await, "1 - queued\n1 queued running\n1 running -");
}

async fn a_chain_of_triggers_is_in_order(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    trigger(
        &mut session,
        " chain",
        "INSERT OR UPDATE",
        "UPDATE workflow_runs SET status = CASE NEW.status WHEN 'queued' THEN 'running' ELSE 'succeeded' END
         WHERE id = NEW.id AND NEW.status IN ('queued', 'running')",
    )
    .await;
    session.queue("triage", 1).await;
    assert_eq!(transitions(&mut session).await, "1 - queued\n1 queued running\n1 running succeeded");
}

async fn a_row_that_is_changed_back_and_forth_is_in_order(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    for name in [" back", "z_back"] {
        trigger(
            &mut session,
            name,
            "UPDATE",
            "IF NEW.status = 'running' AND OLD.status = 'queued' AND pg_trigger_depth() = 1 THEN
                 UPDATE workflow_runs SET status = 'queued' WHERE target_number = 2;
                 UPDATE workflow_runs SET status = 'running' WHERE target_number = 2; END IF",
        )
        .await;
        for number in [1, 2] {
            session.queue("triage", number).await;
        }
        session.execute("UPDATE workflow_runs SET status = 'running' WHERE status = 'queued'").await;
        let told = transitions(&mut session).await;
        let of_two: Vec<&str> = told.lines().filter(|line| line.starts_with("2 ")).collect();
        assert!(of_two.len() >= 4, "{told}");
        for pair in of_two.windows(2) {
            let status = |line: &str, place| line.split(' ').nth(place).unwrap().to_owned();
            assert_eq!(status(pair[1], 1), status(pair[0], 2), "{name}: {told}");
        }
        session
            .execute(&format!(
                "DROP TRIGGER \"{name}\" ON workflow_runs; DROP FUNCTION \"{name}\";
                 TRUNCATE workflow_runs; DELETE FROM runspan.journal"
            ))
            .await;
    }
}

async fn a_change_made_by_a_trigger_follows_its_cause_after_an_alter(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    trigger(&mut session, " quota", "UPDATE", &format!("IF NEW.status = 'running' THEN {FAIL}; END IF"))
        .await;
    session.queue("triage", 1).await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    session.execute("DELETE FROM workflow_runs; DELETE FROM runspan.journal").await;
    // Its plans are kept: each entry is written anew from the whole row.
    session
        .execute("ALTER TABLE workflow_runs ALTER delivery_id TYPE varchar(99), DROP COLUMN target_type")
        .await;
    session
        .execute(
            "INSERT INTO workflow_runs (id, workflow_name, target_owner, target_repo, target_number)
             VALUES (gen_random_uuid(), 'triage', 'acme', 'widgets', 2)",
        )
        .await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    assert_eq!(transitions(&mut session).await, "2 - queued\n2 queued running\n2 running failed");
}

async fn changes_of_one_transaction_stay_in_their_order(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let (one, two) = (session.queue("triage", 1).await, session.queue("triage", 2).await);
    // A trigger of one run's change changes another run, which is changed again afterwards.
    trigger(
        &mut session,
        " other",
        "UPDATE",
        &format!("UPDATE workflow_runs SET status = 'running' WHERE id = '{two}' AND NEW.id = '{one}'"),
    )
    .await;
    session.execute("BEGIN").await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'running' WHERE id = '{one}'")).await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'queued' WHERE id = '{two}'")).await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'running' WHERE id = '{two}'")).await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'succeeded' WHERE id = '{two}'")).await;
    session.execute("COMMIT").await;
    let told = transitions(&mut session).await;
    let of_two: Vec<&str> = told.lines().filter(|line| line.starts_with('2')).collect();
    assert_eq!(
        of_two,
        ["2 - queued", "2 queued running", "2 running queued", "2 queued running", "2 running succeeded"]
    );
}

async fn a_trigger_that_sorts_before_ours_changes_nothing(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let first = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'workflow_runs'::regclass AND NOT tgisinternal
                 ORDER BY tgname COLLATE \"C\" LIMIT 1";
    trigger(&mut session, "!a", "UPDATE", "NULL").await;
    trigger(&mut session, "a", "UPDATE", "NULL").await;
    assert_eq!(session.text(first).await.as_deref(), Some("!a"));
    session.queue("triage", 1).await;
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    assert_eq!(transitions(&mut session).await, "1 - queued\n1 queued running");
}
