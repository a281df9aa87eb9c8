//! What teams do to their databases: nothing of it is lost silently, and none of their statements waits for long.

use std::sync::Arc;
use std::time::Duration;

use runspan::run::RunId;
use runspan::runs;
use runspan::store::{self, Channel, Commit, NewRequest, Plan, Position, StoreError};
use tokio_util::sync::CancellationToken;

use crate::database::{Database, Session, connect, plan};
use crate::projector::Relay;

on_postgres!(
    a_short_lock_timeout_is_never_hit_while_many_runs_are_adopted,
    a_short_lock_timeout_is_never_hit_while_an_attach_waits,
    a_row_that_is_locked_is_adopted_the_next_time,
    an_id_without_an_index_is_refused,
    a_child_by_inheritance_is_warned_about,
    another_table_of_the_old_name_is_not_asked_for_parents,
    a_truncated_table_ends_its_runs_and_says_so,
    sequences_that_were_set_back_lose_no_request,
    text_that_is_no_utf8_stops_nothing,
);

/// Changes a run again and again, as an application that waits no longer than 50 ms for a lock; how often.
async fn hurry(database: &Database, run: RunId, until: CancellationToken) -> u64 {
    let mut session = database.connect().await;
    session.execute("SET lock_timeout = '50ms'").await;
    let mut changes = 0;
    while !until.is_cancelled() {
        for status in ["running", "queued"] {
            let sql = format!("UPDATE workflow_runs SET status = '{status}' WHERE id = '{run}'");
            session.execute(&sql).await;
            changes += 1;
        }
    }
    changes
}

const MANY: &str = "
    INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
    SELECT gen_random_uuid(), 'triage', 'pr', 'acme', 'widgets', n FROM generate_series(1, 60000) n";

async fn a_short_lock_timeout_is_never_hit_while_many_runs_are_adopted(database: &Database) {
    let mut session = database.connect().await;
    session.execute(MANY).await;
    let any = "SELECT id FROM workflow_runs ORDER BY created_at, id LIMIT 1 OFFSET ";
    let one: RunId = session.text(&format!("{any} 100")).await.unwrap().parse().unwrap();
    let two: RunId = session.text(&format!("{any} 50000")).await.unwrap().parse().unwrap();
    let done = CancellationToken::new();
    let attach = async {
        let (store, attached) = database.attach().await;
        assert!(attached.adopted.unwrap() > 59_000, "{attached:?}");
        // Once more, with nothing to find.
        store.reconcile().await.unwrap();
        done.cancel();
    };
    let ((), one, two) =
        tokio::join!(attach, hurry(database, one, done.clone()), hurry(database, two, done.clone()));
    assert!(one > 0 && two > 0);
}

async fn a_short_lock_timeout_is_never_hit_while_an_attach_waits(database: &Database) {
    let (mut long, mut session) = (database.connect().await, database.connect().await);
    let run = session.queue("triage", 1).await;
    let other = session.queue("triage", 2).await;
    long.execute("BEGIN").await;
    runs::mark_running(long.runs(), other).await.unwrap();
    let done = CancellationToken::new();
    let attach = async {
        database.attach().await;
        done.cancel();
    };
    // The attach has waited for its lock a few times before it can have it.
    let end = async {
        let mut looker = database.connect().await;
        for _ in 0..3 {
            let waits = "SELECT count(*) > 0 FROM pg_stat_activity
                         WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%CREATE OR REPLACE TRIGGER%'";
            while looker.text(waits).await.as_deref() != Some("true") {
                tokio::task::yield_now().await;
            }
        }
        long.execute("COMMIT").await;
    };
    let ((), (), changes) = tokio::join!(attach, end, hurry(database, run, done.clone()));
    assert!(changes > 0);
}

async fn a_row_that_is_locked_is_adopted_the_next_time(database: &Database) {
    let (mut holder, mut session) = (database.connect().await, database.connect().await);
    let held = session.queue("triage", 1).await;
    session.queue("triage", 2).await;
    holder.execute(&format!("BEGIN; SELECT FROM workflow_runs WHERE id = '{held}' FOR UPDATE")).await;
    let (store, attached) = database.attach().await;
    assert_eq!(attached.adopted, Some(1));
    holder.execute("ROLLBACK").await;
    assert_eq!(store.reconcile().await.unwrap().entries, 1);
}

async fn an_id_without_an_index_is_refused(database: &Database) {
    let mut session = database.connect().await;
    session
        .execute(
            "CREATE TABLE jobs (LIKE workflow_runs, tenant_id int);
             ALTER TABLE jobs ADD PRIMARY KEY (tenant_id, id);
             CREATE INDEX ON jobs (id) WHERE status = 'queued'",
        )
        .await;
    let jobs = Plan::of("jobs");
    let error = database.store().attach(&jobs).await.unwrap_err().to_string();
    let (why, create) = error.rsplit_once(": ").unwrap();
    assert_eq!(
        why,
        "no index of public.jobs begins with id, so finding a run's parent would read the whole table inside the \
         writer's statement"
    );
    assert!(matches!(database.store().check().await, Err(StoreError::NotAttached)));
    session.execute(create).await;
    database.store().attach(&jobs).await.unwrap();
}
async fn a_child_by_inheritance_is_warned_about(database: &Database) {
    database.connect().await.execute("CREATE TABLE old_runs () INHERITS (workflow_runs)").await;
    let warnings = database.attach().await.1.warnings;
    assert!(
        warnings.iter().any(|line| line.starts_with("rows of public.old_runs, which inherits ")),
        "{warnings:?}"
    );
}

async fn another_table_of_the_old_name_is_not_asked_for_parents(database: &Database) {
    database.attach().await;
    let mut session = database.connect().await;
    let parent = session.queue("ship", 1).await;
    session
        .execute(
            "ALTER TABLE workflow_runs RENAME TO jobs; CREATE TABLE workflow_runs (LIKE jobs INCLUDING ALL)",
        )
        .await;
    session
        .execute(&format!(
            "INSERT INTO jobs (id, workflow_name, target_type, target_owner, target_repo, target_number, parent_run_id,
                 parent_step_index)
             VALUES (gen_random_uuid(), 'implement', 'pr', 'acme', 'widgets', 1, '{parent}', 0)"
        ))
        .await;
    assert_eq!(session.count("runspan.journal WHERE root_workflow_name = 'ship'").await, 1);
}

async fn a_truncated_table_ends_its_runs_and_says_so(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    for number in [1, 2] {
        session.queue("triage", number).await;
    }
    relay.drain().await;
    session.execute("TRUNCATE workflow_runs").await;
    session.queue("triage", 3).await;
    let reconciled = relay.store.reconcile().await.unwrap();
    assert_eq!((reconciled.entries, reconciled.vanished), (2, 2));
}

fn request(body: &'static str) -> NewRequest {
    NewRequest { channel: Channel::Traces, items: 1, runs: 1, body: body.as_bytes().into() }
}

async fn sequences_that_were_set_back_lose_no_request(database: &Database) {
    let (store, _) = database.attach().await;
    let mut session = database.connect().await;
    let seen = store.lease().await.unwrap();
    let lease = store.take_lease(&seen, "tester", Duration::from_mins(1)).await.unwrap().unwrap();
    let instance = store.instance().await.unwrap();
    let commit = async |low: i64, body| {
        let commit = Commit {
            requests: vec![request(body)],
            position: Position::from_mark(low, None),
            ..Commit::default()
        };
        store.commit(&lease, &instance, &commit).await.unwrap();
    };
    for (low, body) in (1..).zip(["a", "b", "c"]) {
        commit(low, body).await;
    }
    for sequence in ["outbox_id_seq", "deltas_id_seq", "commits_id_seq", "journal_seq"] {
        session.execute(&format!("SELECT setval('runspan.{sequence}', 1, false)")).await;
    }
    for (low, body) in (4..).zip(["d", "e"]) {
        commit(low, body).await;
    }
    assert_eq!(store.position(&instance).await.unwrap().low, 5);
    let mut bodies = Vec::new();
    let mut after = None;
    while let Some(request) = store.next_request(Channel::Traces, after).await.unwrap() {
        after = Some((request.place, request.id));
        bodies.push(String::from_utf8(request.body.to_vec()).unwrap());
    }
    assert_eq!(bodies, ["a", "b", "c", "d", "e"]);
    // Nor an entry that is set aside at a position that came before.
    session
        .execute(
            "INSERT INTO runspan.journal (seq, workflow_name) SELECT n, 'no' FROM generate_series(3, 5) n;
             INSERT INTO runspan.set_aside SELECT n, 'no', '{}' FROM unnest(ARRAY[3, 4, 6]) n",
        )
        .await;
    let no = || "no".to_owned();
    let set_aside = Commit {
        consumed: vec![3, 4, 5],
        set_aside: vec![(3, no()), (4, no()), (5, no())],
        ..Commit::default()
    };
    store.commit(&lease, &instance, &set_aside).await.unwrap();
    assert_eq!(session.count("runspan.set_aside").await, 6);
    commit(5, "f").await;
    // Nor one that nobody has read.
    let position = store.position(&instance).await.unwrap();
    session.queue("triage", 1).await;
    assert_eq!(store.bring_forward(&position, false).await.unwrap(), Some(1));
    assert_eq!(store.bring_forward(&position, true).await.unwrap(), None);
    assert_eq!(store.read(position, 10).await.unwrap().entries.len(), 1);
}

async fn text_that_is_no_utf8_stops_nothing(database: &Database) {
    let mut admin = database.connect().await;
    // Two bytes each, behind a single one: every cut is in the middle of a character. And a byte without a character.
    let cut = format!("'x{}'", "é".repeat(5_000));
    for (encoding, text) in [("SQL_ASCII", cut.as_str()), ("WIN1252", "repeat('x' || chr(129), 600)")] {
        let name = format!("{}_{}", database.name(), encoding.to_lowercase());
        admin
            .execute(&format!(
                "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
            ))
            .await;
        let mut url = url::Url::parse(&database.url).unwrap();
        url.set_path(&name);
        let passed = tokio::spawn(relay_what_is_no_utf8(url.to_string(), text.to_owned())).await;
        admin.execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
        passed.unwrap_or_else(|error| panic!("{encoding}: {error}"));
    }
}

async fn relay_what_is_no_utf8(url: String, text: String) {
    let mut session = connect(&url).await;
    let Session::Postgres(connection) = &mut session else { unreachable!("PostgreSQL only") };
    runs::migrate(connection).await.unwrap();
    let store = store::open(&url.parse().unwrap()).unwrap();
    store.attach(&plan()).await.unwrap();
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 delivery_id, created_at)
             VALUES (gen_random_uuid(), {text}, 'pr', {text}, 'widgets', 1, {text}, now() - interval '1 day')"
        ))
        .await;
    assert_eq!(store.in_flight().await.unwrap().len(), 1);
    assert_eq!(store.stuck(5).await.unwrap().runs.len(), 1);
    let relay = Relay::new(Arc::clone(&store)).await;
    relay.drain().await;
    session
        .execute(&format!(
            "UPDATE workflow_runs SET status = 'failed', state = jsonb_build_object('failedReason', {text})"
        ))
        .await;
    let told = relay.drain().await;
    assert!(told.contains("[queued failed]"), "{told}");
    assert_eq!(store.status().await.unwrap().set_aside_entries, 0);
}
