//! Times that an application writes: by a clock of its own, in another zone, or none at all.

use runspan::projection::{SpanKind, Warning};

use crate::database::Database;
use crate::projector::Relay;

on_every_database!(
    no_created_at_puts_a_span_where_it_cannot_be,
    a_beginning_moves_back_to_created_at,
    an_adopted_run_begins_when_it_can_have_begun,
    the_oldest_run_in_flight_has_an_age_that_can_be,
);

/// Times at which no run can have been created that is inserted now.
fn impossible(database: &Database) -> &'static [&'static str] {
    if database.is_postgres() {
        &[
            "now() + interval '5 minutes'",
            "'infinity'",
            "'-infinity'",
            "'0001-01-01 00:00Z'",
            "'epoch'",
            "NULL",
        ]
    } else {
        &[
            "datetime('now', '+5 minutes')",
            "datetime('now', '+2 hours')", // local time, east of Greenwich
            "'0001-01-01 00:00:00'",
            "'1970-01-01T00:00:00Z'",
            "'9999-12-31T23:59:59Z'",
            "'soon'",
            "''",
            "1.5",
            "NULL",
        ]
    }
}

async fn without_constraints(database: &Database) {
    database
        .connect()
        .await
        .execute(if database.is_postgres() {
            "ALTER TABLE workflow_runs ALTER created_at DROP NOT NULL"
        } else {
            "DROP TABLE workflow_runs;
             CREATE TABLE workflow_runs (id TEXT PRIMARY KEY, workflow_name, target_type, target_owner, target_repo,
                 target_number, parent_run_id, parent_step_index, status DEFAULT 'queued', state DEFAULT '{}', delivery_id,
                 created_at, updated_at DEFAULT CURRENT_TIMESTAMP)"
        })
        .await;
}

fn insert(number: usize, created_at: &str) -> String {
    format!(
        "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number, created_at)
         VALUES ('{}', 'workflow-{number}', 'pr', 'acme', 'widgets', 7, {created_at})",
        runspan::run::RunId::generate()
    )
}

async fn no_created_at_puts_a_span_where_it_cannot_be(database: &Database) {
    without_constraints(database).await;
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let times = impossible(database);
    for (number, created_at) in times.iter().enumerate() {
        session.execute(&insert(number, created_at)).await;
    }
    session.execute("UPDATE workflow_runs SET status = 'failed'").await;
    let now = chrono::Utc::now().timestamp_micros();
    let (_, plan) = relay.step(1_000).await;
    let spans: Vec<_> = plan.spans.iter().filter(|span| !matches!(span.kind, SpanKind::Queue)).collect();
    assert_eq!(spans.len(), times.len());
    for span in spans {
        let [start, end] = [span.start, span.end].map(runspan::run::Timestamp::micros);
        assert!(
            start <= end && (now - start).abs() < 60_000_000 && (now - end).abs() < 60_000_000,
            "{span:?}"
        );
    }
    let warned = plan.warnings.iter().filter(|warning| matches!(warning, Warning::CreatedAt { .. })).count();
    assert_eq!(warned, times.len());
}

async fn a_beginning_moves_back_to_created_at(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let an_hour_ago =
        if database.is_postgres() { "now() - interval '1 hour'" } else { "datetime('now', '-1 hour')" };
    session.execute(&insert(1, an_hour_ago)).await;
    session.execute("UPDATE workflow_runs SET status = 'failed'").await;
    let (_, plan) = relay.step(1_000).await;
    assert_eq!(plan.warnings, []);
    assert!(plan.spans.iter().all(|span| span.end.millis_since(span.start) >= 3_600_000), "{:?}", plan.spans);
}

async fn an_adopted_run_begins_when_it_can_have_begun(database: &Database) {
    without_constraints(database).await;
    let mut session = database.connect().await;
    let times = impossible(database);
    for (number, created_at) in times.iter().enumerate() {
        session.execute(&insert(number, created_at)).await;
    }
    session.execute(&format!("UPDATE workflow_runs SET status = 'running', updated_at = {}", times[0])).await;
    let relay = Relay::new(database.attach().await.0).await;
    relay.store.reconcile().await.unwrap();
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    let now = chrono::Utc::now().timestamp_micros();
    let (_, plan) = relay.step(1_000).await;
    let spans: Vec<_> = plan.spans.iter().filter(|span| !matches!(span.kind, SpanKind::Queue)).collect();
    assert_eq!(spans.len(), times.len());
    for span in spans {
        let [start, end] = [span.start, span.end].map(runspan::run::Timestamp::micros);
        assert!(
            start <= end && (now - start).abs() < 60_000_000 && (now - end).abs() < 60_000_000,
            "{span:?}"
        );
    }
}

async fn the_oldest_run_in_flight_has_an_age_that_can_be(database: &Database) {
    without_constraints(database).await;
    let store = database.attach().await.0;
    let mut session = database.connect().await;
    for (number, created_at) in impossible(database).iter().enumerate() {
        session.execute(&insert(number, created_at)).await;
    }
    for row in store.in_flight().await.unwrap() {
        assert!((0.0..86_400.0).contains(&row.oldest_age), "{row:?}");
    }
    let relay = Relay::new(store).await;
    relay.step(1_000).await;
    let stuck = relay.store.stuck(100).await.unwrap();
    assert_eq!(stuck.count, 0, "none of them is an hour old: {stuck:?}");
}
