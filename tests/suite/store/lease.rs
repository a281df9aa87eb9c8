//! The lease, and what it fences.

use std::time::Duration;

use bytes::Bytes;
use runspan::series::Ledger;
use runspan::store::{Channel, Commit, NewRequest, Settlement, StoreError};

use crate::database::{Database, eventually};
use crate::projector::{Relay, TERM};

on_every_database!(
    the_lease_goes_to_one,
    an_expired_lease_is_seen_as_such,
    a_released_lease_can_be_taken_at_once,
    a_stale_holder_changes_nothing,
    a_commit_is_all_or_nothing,
    a_commit_remembers_open_runs,
    what_cannot_be_understood_is_kept_whole,
    the_instance_stays_the_same,
);

async fn the_lease_goes_to_one(database: &Database) {
    let (store, _) = database.attach().await;
    let free = store.lease().await.unwrap();
    assert_eq!((free.holder.as_deref(), free.epoch, free.expired), (None, 0, true));
    let one = store.take_lease(&free, "one", TERM).await.unwrap().unwrap();
    assert_eq!((one.holder(), one.epoch()), ("one", 1));
    // Who saw it free comes too late.
    assert_eq!(store.take_lease(&free, "two", TERM).await.unwrap(), None);
    let held = store.lease().await.unwrap();
    assert_eq!((held.holder.as_deref(), held.epoch, held.expired), (Some("one"), 1, false));
    // Renewed since it was seen: not taken either.
    store.renew_lease(&one, TERM * 2).await.unwrap();
    assert_eq!(store.take_lease(&held, "two", TERM).await.unwrap(), None);
    let seen = store.lease().await.unwrap();
    assert!(seen.expires_at >= held.expires_at + 50_000_000);
    let two = store.take_lease(&seen, "two", TERM).await.unwrap().unwrap();
    assert_eq!((two.holder(), two.epoch()), ("two", 2));
    assert!(matches!(store.renew_lease(&one, TERM).await, Err(StoreError::LeaseLost)));
    // Releasing what is lost takes nothing from the new holder.
    assert!(matches!(store.release_lease(&one).await, Err(StoreError::LeaseLost)));
    assert!(!store.lease().await.unwrap().expired);
}

async fn an_expired_lease_is_seen_as_such(database: &Database) {
    let (store, _) = database.attach().await;
    let free = store.lease().await.unwrap();
    store.take_lease(&free, "one", Duration::from_millis(1)).await.unwrap().unwrap();
    eventually("expired", async || store.lease().await.unwrap().expired).await;
}

async fn a_released_lease_can_be_taken_at_once(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    relay.store.release_lease(&relay.lease).await.unwrap();
    let seen = relay.store.lease().await.unwrap();
    assert!(seen.expired);
    assert_eq!(relay.store.take_lease(&seen, "two", TERM).await.unwrap().unwrap().epoch(), 2);
}

fn request(channel: Channel, bytes: usize) -> NewRequest {
    NewRequest { channel, items: 1, runs: 1, body: Bytes::from(vec![b'x'; bytes]) }
}

async fn a_stale_holder_changes_nothing(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let requests = vec![request(Channel::Traces, 10)];
    let commit = Commit { requests, ..Commit::default() };
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    let commit = relay.plan(relay.read(10).await).await.commit;
    let before = relay.store.status().await.unwrap();

    let thief = relay.store.take_lease(&relay.store.lease().await.unwrap(), "two", TERM).await.unwrap();
    assert!(thief.is_some());
    let delivered = [Settlement::Delivered { id: 1 }];
    let (mut ledger, _) = Ledger::open(None, &relay.instance);
    for result in [
        relay.store.commit(&relay.lease, &relay.instance, &commit).await,
        relay.store.settle(&relay.lease, &delivered).await,
        relay.store.trim(&relay.lease, 0).await.map(|_| ()),
        relay.store.renew_lease(&relay.lease, TERM).await,
        relay.store.record(&relay.lease, &ledger.change()).await,
        relay.store.pending_totals(&relay.lease, 0, 1).await.map(|_| ()),
    ] {
        assert!(matches!(result, Err(StoreError::LeaseLost)), "{result:?}");
    }
    assert_eq!(relay.store.recorded().await.unwrap(), None);
    let after = relay.store.status().await.unwrap();
    assert_eq!(
        (after.journal_entries, after.open_runs, after.waiting_requests),
        (before.journal_entries, before.open_runs, before.waiting_requests)
    );
    assert_eq!((after.journal_entries, after.open_runs, after.waiting_requests), (1, 0, 1));
}

async fn a_commit_is_all_or_nothing(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let mut commit = relay.plan(relay.read(10).await).await.commit;
    commit.requests.push(request(Channel::Logs, 10));
    commit.set_aside.push((commit.consumed[0], "a test".to_owned()));
    commit.consumed.push(999);
    let error = relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap_err();
    assert!(matches!(error, StoreError::JournalChanged { read: 2, deleted: 1 }), "{error:?}");
    let status = relay.store.status().await.unwrap();
    assert_eq!(
        (status.journal_entries, status.open_runs, status.waiting_requests, status.set_aside_entries),
        (1, 0, 0, 0)
    );
}

async fn a_commit_remembers_open_runs(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    let (one, two) = (session.queue("triage", 1).await, session.queue("triage", 2).await);
    let (_, projected) = relay.step(10).await;
    let stored = relay.store.open_runs(&[one, two]).await.unwrap();
    assert_eq!(stored.len(), 2);
    assert!(projected.commit.opened.iter().all(|(run, open)| stored[run] == *open));
    session.execute("UPDATE workflow_runs SET status = 'running'").await;
    session.execute(&format!("UPDATE workflow_runs SET status = 'succeeded' WHERE id = '{two}'")).await;
    relay.step(10).await;
    let stored = relay.store.open_runs(&[one, two]).await.unwrap();
    assert_eq!(stored.keys().collect::<Vec<_>>(), [&one]);
    assert_eq!(stored[&one].status().as_str(), "running");
    assert!(relay.store.open_runs(&[]).await.unwrap().is_empty());
}

async fn what_cannot_be_understood_is_kept_whole(database: &Database) {
    let relay = Relay::new(database.attach().await.0).await;
    let mut session = database.connect().await;
    session.queue("triage", 1).await;
    let journal = database.own("journal");
    session
        .execute(&format!(
            "INSERT INTO {journal} (run_id, to_status, reason, target_number)
             VALUES ('0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d', 'queued', 'it ''said'' \"so\"', 7)"
        ))
        .await;
    session.queue("triage", 2).await;
    let (read, projected) = relay.step(10).await;
    assert_eq!((read, projected.records.len()), (3, 2));
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.journal_entries, status.set_aside_entries), (0, 1));
    let aside = database.own("set_aside");
    let entry: serde_json::Value =
        serde_json::from_str(&session.text(&format!("SELECT entry FROM {aside}")).await.unwrap()).unwrap();
    assert_eq!(entry["run_id"], "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d");
    assert_eq!(entry["to_status"], "queued");
    assert_eq!(entry["reason"], "it 'said' \"so\"");
    assert_eq!(entry["target_number"], 7);
    assert_eq!(entry["seq"], 2);
    assert_eq!(
        session.text(&format!("SELECT error FROM {aside}")).await.as_deref(),
        Some("workflow_name is missing")
    );
}

async fn the_instance_stays_the_same(database: &Database) {
    let (store, _) = database.attach().await;
    let instance = store.instance().await.unwrap();
    assert!(instance.len() > 8, "{instance}");
    database.attach().await;
    assert_eq!(store.instance().await.unwrap(), instance);
}
