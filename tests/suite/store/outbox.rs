//! The outbox: order, what becomes of requests, and its bound.

use bytes::Bytes;
use runspan::store::{Channel, Commit, NewRequest, Request, Selection, Settlement, Trimmed};

use crate::database::Database;
use crate::projector::Relay;

on_every_database!(
    requests_come_back_as_they_were_in_order,
    halves_keep_the_place_of_the_whole,
    what_was_trimmed_away_is_not_halved,
    dead_requests_step_aside_until_retried,
    dead_requests_can_be_discarded,
    trimming_drops_the_oldest,
);

fn request(channel: Channel, body: &str) -> NewRequest {
    NewRequest { channel, items: 2, runs: 1, body: Bytes::copy_from_slice(body.as_bytes()) }
}

async fn relay_with(database: &Database, bodies: &[&str]) -> Relay {
    let relay = Relay::new(database.attach().await.0).await;
    let requests = bodies.iter().map(|body| request(Channel::Traces, body)).collect();
    let commit = Commit { requests, ..Commit::default() };
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    relay
}

/// The requests that wait, in the order that a sender sees them.
async fn waiting(relay: &Relay, channel: Channel) -> Vec<Request> {
    let mut all = Vec::new();
    let mut after = None;
    while let Some(request) = relay.store.next_request(channel, after).await.unwrap() {
        after = Some((request.place, request.id));
        all.push(request);
    }
    all
}

async fn bodies(relay: &Relay) -> Vec<String> {
    let text = |request: Request| String::from_utf8(request.body.to_vec()).unwrap();
    waiting(relay, Channel::Traces).await.into_iter().map(text).collect()
}

async fn requests_come_back_as_they_were_in_order(database: &Database) {
    let relay = relay_with(database, &["one", "two"]).await;
    let requests = vec![request(Channel::Logs, "\u{0}log"), request(Channel::Traces, "three")];
    let commit = Commit { requests, ..Commit::default() };
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    assert_eq!(bodies(&relay).await, ["one", "two", "three"]);
    let logs = waiting(&relay, Channel::Logs).await;
    assert_eq!(logs.len(), 1);
    assert_eq!((logs[0].items, logs[0].runs, logs[0].body.as_ref()), (2, 1, &b"\0log"[..]));
    assert!((0.0..60.0).contains(&logs[0].age_seconds), "{}", logs[0].age_seconds);
    assert!(waiting(&relay, Channel::Stdout).await.is_empty());
    let listed = relay.store.list(3).await.unwrap();
    let shown: Vec<_> = listed.iter().map(|listed| (listed.id, listed.channel, listed.bytes)).collect();
    assert_eq!(shown, [(1, Channel::Traces, 3), (2, Channel::Traces, 3), (3, Channel::Logs, 4)]);
    assert_eq!(listed[2].created_at, logs[0].created_at.to_string());

    let done = [Settlement::Delivered { id: 1 }, Settlement::Delivered { id: 4 }];
    relay.store.settle(&relay.lease, &done).await.unwrap();
    assert_eq!(bodies(&relay).await, ["two"]);
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.waiting_requests, status.waiting_bytes, status.dead_requests), (2, 7, 0));
    assert!(status.waiting_oldest_seconds.is_some());
    // What was delivered gives its place to no other.
    let commit = Commit { requests: vec![request(Channel::Traces, "four")], ..Commit::default() };
    relay.store.commit(&relay.lease, &relay.instance, &commit).await.unwrap();
    assert_eq!(waiting(&relay, Channel::Traces).await[1].id, 5);
}

async fn halves_keep_the_place_of_the_whole(database: &Database) {
    let relay = relay_with(database, &["ab", "cd"]).await;
    for _ in 0..2 {
        let whole = relay.store.next_request(Channel::Traces, None).await.unwrap().unwrap();
        let (id, place, created_at) = (whole.id, whole.place, whole.created_at);
        let halves = [request(Channel::Traces, "a"), request(Channel::Traces, "b")];
        let settled = Settlement::Halved { id, place, created_at, halves };
        relay.store.settle(&relay.lease, &[settled]).await.unwrap();
        let waiting = waiting(&relay, Channel::Traces).await;
        assert!(waiting[..2].iter().all(|half| (half.place, half.created_at) == (place, created_at)));
    }
    // The halves of the first half come behind the second: their ids are newer, their place is the same.
    assert_eq!(bodies(&relay).await, ["b", "a", "b", "cd"]);
    let ids: Vec<i64> = waiting(&relay, Channel::Traces).await.iter().map(|request| request.id).collect();
    assert!(ids[..3].is_sorted() && ids[0] > ids[3], "{ids:?}");
}

async fn what_was_trimmed_away_is_not_halved(database: &Database) {
    let relay = relay_with(database, &["ab"]).await;
    let whole = relay.store.next_request(Channel::Traces, None).await.unwrap().unwrap();
    relay.store.trim(&relay.lease, 0).await.unwrap();
    let halves = [request(Channel::Traces, "a"), request(Channel::Traces, "b")];
    let settled =
        Settlement::Halved { id: whole.id, place: whole.place, created_at: whole.created_at, halves };
    relay.store.settle(&relay.lease, &[settled]).await.unwrap();
    assert!(bodies(&relay).await.is_empty());
}

async fn dead_requests_step_aside_until_retried(database: &Database) {
    let relay = relay_with(database, &["one", "two", "three"]).await;
    let dead = [1, 2].map(|id| Settlement::Dead { id, answer: "400 it's bad".to_owned() });
    relay.store.settle(&relay.lease, &dead).await.unwrap();
    assert_eq!(bodies(&relay).await, ["three"]);
    let listed = relay.store.list(10).await.unwrap();
    assert_eq!(listed[0].dead.as_deref(), Some("400 it's bad"));
    let status = relay.store.status().await.unwrap();
    assert_eq!((status.waiting_requests, status.dead_requests), (1, 2));
    assert_eq!(relay.store.retry(&Selection::Ids(vec![2, 3, 99])).await.unwrap(), 1);
    assert_eq!(bodies(&relay).await, ["two", "three"]);
    assert_eq!(relay.store.retry(&Selection::All).await.unwrap(), 1);
    assert_eq!(bodies(&relay).await, ["one", "two", "three"]);
}

async fn dead_requests_can_be_discarded(database: &Database) {
    let relay = relay_with(database, &["one", "two", "three"]).await;
    let dead = [1, 2].map(|id| Settlement::Dead { id, answer: "no".to_owned() });
    relay.store.settle(&relay.lease, &dead).await.unwrap();
    assert_eq!(relay.store.discard(&Selection::Ids(vec![1, 3])).await.unwrap(), 1);
    assert_eq!(relay.store.discard(&Selection::All).await.unwrap(), 1);
    assert_eq!(bodies(&relay).await, ["three"]);
}

async fn trimming_drops_the_oldest(database: &Database) {
    let relay = relay_with(database, &["11111", "22222", "33333"]).await;
    let trim = async |max_bytes| relay.store.trim(&relay.lease, max_bytes).await.unwrap();
    assert_eq!(trim(15).await, Trimmed::default());
    assert_eq!(trim(11).await, Trimmed { requests: 1, items: 2 });
    assert_eq!(bodies(&relay).await, ["22222", "33333"]);
    assert_eq!(trim(0).await, Trimmed { requests: 2, items: 4 });
}
