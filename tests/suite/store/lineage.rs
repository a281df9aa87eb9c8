//! Which root and which delivery a run has: of chains of any length, of cycles, and where rows are gone.

use std::collections::BTreeSet;

use runspan::projection::{Attributes, SpanKind, Value};
use runspan::run::RunId;
use runspan::runs;
use runspan::semconv::field;

use crate::database::{Database, Session};
use crate::projector::Relay;

on_every_database!(
    a_chain_is_one_trace_however_long,
    a_chain_that_ended_before_its_children_is_one_trace,
    a_cycle_is_one_trace,
    below_a_missing_parent_the_tree_is_one_trace,
    a_child_names_the_delivery_that_caused_its_root,
    an_adopted_child_has_its_roots_delivery,
    the_runtime_finds_the_roots_that_the_triggers_find,
);

/// Queues a run below `parent`, whose id no constraint checks.
async fn child(session: &mut Session, workflow: &str, parent: RunId) -> RunId {
    let run = RunId::generate();
    session
        .execute(&format!(
            "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                 parent_run_id, parent_step_index)
             VALUES ('{run}', '{workflow}', 'pr', 'acme', 'widgets', 7, '{parent}', 0)"
        ))
        .await;
    run
}

/// A run without a parent that delivery `d-1` caused.
async fn root(session: &mut Session) -> RunId {
    let run = session.queue("ship", 1).await;
    session.execute(&format!("UPDATE workflow_runs SET delivery_id = 'd-1' WHERE id = '{run}'")).await;
    run
}

/// A chain of `length` runs, the top first.
async fn chain(session: &mut Session, length: usize) -> Vec<RunId> {
    let mut runs = vec![root(session).await];
    for number in 1..length {
        let above = runs[number - 1];
        runs.push(child(session, &format!("step-{number}"), above).await);
    }
    runs
}

/// The roots of the spans that the relay makes of all that happened, once every run has ended.
async fn roots(relay: &Relay, session: &mut Session) -> BTreeSet<RunId> {
    session.execute("UPDATE workflow_runs SET status = 'failed' WHERE status IN ('queued', 'running')").await;
    let (_, plan) = relay.step(100_000).await;
    let run_spans = plan.spans.iter().filter(|span| !matches!(span.kind, SpanKind::Queue));
    run_spans.map(|span| span.context.root_of(span.run)).collect()
}

async fn a_chain_is_one_trace_however_long(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let runs = chain(&mut session, 100).await;
    assert_eq!(roots(&relay, &mut session).await, BTreeSet::from([runs[0]]));
}

async fn a_chain_that_ended_before_its_children_is_one_trace(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let mut above = root(&mut session).await;
    let top = above;
    for number in 0..60 {
        session.execute("UPDATE workflow_runs SET status = 'succeeded' WHERE status <> 'succeeded'").await;
        relay.step(1_000).await;
        above = child(&mut session, &format!("step-{number}"), above).await;
    }
    assert_eq!(roots(&relay, &mut session).await, BTreeSet::from([top]));
}

async fn a_cycle_is_one_trace(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let runs = chain(&mut session, 5).await;
    relay.step(1_000).await;
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    relay.step(1_000).await;
    // The third, fourth and fifth lead to the third again.
    let (third, fifth) = (runs[2], runs[4]);
    session
        .execute(&format!("UPDATE workflow_runs SET parent_run_id = '{fifth}' WHERE id = '{third}'"))
        .await;
    for (number, parent) in runs[2..].iter().enumerate() {
        child(&mut session, &format!("below-{number}"), *parent).await;
    }
    assert_eq!(roots(&relay, &mut session).await, BTreeSet::from([third]), "the smallest id");
}

async fn below_a_missing_parent_the_tree_is_one_trace(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let gone = RunId::generate();
    let top = child(&mut session, "plan", gone).await;
    let below = child(&mut session, "implement", top).await;
    session.execute("UPDATE workflow_runs SET status = 'succeeded'").await;
    relay.step(1_000).await;
    child(&mut session, "review", below).await;
    assert_eq!(roots(&relay, &mut session).await, BTreeSet::from([gone]));
}

async fn a_child_names_the_delivery_that_caused_its_root(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let top = session.queue("ship", 1).await;
    session.execute(&format!("UPDATE workflow_runs SET delivery_id = 'd-1' WHERE id = '{top}'")).await;
    runs::mark_running(session.runs(), top).await.unwrap();
    runs::mark_succeeded(session.runs(), top).await.unwrap();
    relay.step(1_000).await;
    let middle = child(&mut session, "plan", top).await;
    let last = child(&mut session, "implement", middle).await;
    runs::mark_failed(session.runs(), last, "no such branch").await.unwrap();
    let (_, plan) = relay.step(1_000).await;
    let of_child = plan.records.iter().filter(|record| record.run() == Some(last));
    let carry =
        |attributes: Attributes<'_>| attributes.contains(&(field::ROOT_DELIVERY_ID, Value::from("d-1")));
    let carried: Vec<bool> = of_child.map(|record| carry(record.attributes())).collect();
    assert_eq!(carried, [true, true, true], "queued, failed, completed");
    let spans: Vec<_> = plan.spans.iter().filter(|span| span.run == last).collect();
    assert!(spans.len() == 2 && spans.iter().all(|span| carry(span.attributes())), "{spans:?}");
}

async fn an_adopted_child_has_its_roots_delivery(database: &Database) {
    let mut session = database.connect().await;
    let top = root(&mut session).await;
    child(&mut session, "plan", top).await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'succeeded' WHERE id = '{top}'")).await;
    let relay = Relay::new(database.attach().await.0).await;
    let batch = relay.read(10).await;
    let lineage = batch.entries[0].1.as_ref().unwrap().context.lineage.clone().unwrap();
    assert_eq!((lineage.root, lineage.root_workflow_name.as_deref()), (top, Some("ship")));
    assert_eq!(lineage.root_delivery_id.as_deref(), Some("d-1"));
}

async fn the_runtime_finds_the_roots_that_the_triggers_find(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let gone = RunId::generate();
    let mut all = vec![child(&mut session, "orphan", gone).await];
    all.push(child(&mut session, "below", all[0]).await);
    let mut cycle = [RunId::generate(), RunId::generate()];
    cycle.sort_unstable();
    for (run, parent) in [(cycle[0], cycle[1]), (cycle[1], cycle[0])] {
        session
            .execute(&format!(
                "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number,
                     parent_run_id, parent_step_index, status)
                 VALUES ('{run}', 'cycle', 'pr', 'acme', 'widgets', 7, '{parent}', 0, 'succeeded')"
            ))
            .await;
    }
    all.push(child(&mut session, "below-the-cycle", cycle[1]).await);
    let mut found = Vec::new();
    for run in &all {
        found.push(runs::root(session.runs(), *run).await.unwrap());
    }
    assert_eq!(found, [gone, gone, cycle[0]]);
    let batch = relay.read(10).await;
    let of_triggers = batch.entries.iter().filter_map(|(_, entry)| match entry.as_ref().unwrap() {
        entry if entry.context.workflow_name == "cycle" => None,
        entry => Some(entry.context.root_of(gone)),
    });
    assert_eq!(of_triggers.collect::<Vec<_>>(), found);
}
