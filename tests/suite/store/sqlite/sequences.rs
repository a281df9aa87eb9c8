//! `sqlite_sequence` set back, by a script or a copy of the data.

use bytes::Bytes;
use runspan::run::RunId;
use runspan::store::{Channel, Commit, NewRequest, Settlement};

use crate::database::{Database, Session};
use crate::projector::Relay;

async fn attached() -> (Database, Relay, Session) {
    let database = Database::sqlite().await;
    let relay = Relay::new(database.attach().await.0).await;
    let session = database.connect().await;
    (database, relay, session)
}

const SET_BACK: [&str; 3] = [
    "UPDATE sqlite_sequence SET seq = 1",
    "DELETE FROM sqlite_sequence",
    "UPDATE sqlite_sequence SET seq = 'none'",
];

fn requests(bodies: &[&'static str]) -> Commit {
    let request = |body: &&'static str| NewRequest {
        channel: Channel::Traces,
        items: 2,
        runs: 1,
        body: Bytes::from_static(body.as_bytes()),
    };
    Commit { requests: bodies.iter().map(request).collect(), ..Commit::default() }
}

async fn commit(relay: &Relay, commit: &Commit) {
    relay.store.commit(&relay.lease, &relay.instance, commit).await.unwrap();
}

/// The bodies that wait behind a place.
async fn bodies(relay: &Relay, mut after: Option<(i64, i64)>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(request) = relay.store.next_request(Channel::Traces, after).await.unwrap() {
        after = Some((request.place, request.id));
        all.push(String::from_utf8(request.body.to_vec()).unwrap());
    }
    all
}

#[tokio::test]
async fn requests_neither_collide_nor_hide() {
    for set_back in SET_BACK {
        let (database, relay, mut session) = attached().await;
        commit(&relay, &requests(&["one", "two", "three"])).await;
        session.execute(set_back).await;
        // As another relay, which knows only what is in the file.
        let next = Relay::new(database.store()).await;
        commit(&next, &requests(&["four"])).await;
        assert_eq!(bodies(&next, None).await, ["one", "two", "three", "four"]);
        // Empty, but for the place where the sender stands.
        let last = next.store.list(10).await.unwrap().last().unwrap().id;
        session.execute("DELETE FROM runspan_outbox").await;
        session.execute(set_back).await;
        commit(&next, &requests(&["five"])).await;
        assert_eq!(bodies(&next, Some((last, last))).await, ["five"], "{set_back}");
        // The same for the halves of a request.
        let whole = next.store.next_request(Channel::Traces, None).await.unwrap().unwrap();
        session.execute(set_back).await;
        let halves = requests(&["fi", "ve"]).requests.try_into().unwrap();
        let (id, place, created_at) = (whole.id, whole.place, whole.created_at);
        let settled = [Settlement::Halved { id, place, created_at, halves }];
        next.store.settle(&next.lease, &settled).await.unwrap();
        assert_eq!(bodies(&next, Some((place, id))).await, ["fi", "ve"], "{set_back}");
    }
}

#[tokio::test]
async fn pending_totals_neither_collide_nor_hide() {
    for set_back in SET_BACK {
        let (database, relay, mut session) = attached().await;
        for number in 1..=3 {
            session.queue("triage", number).await;
            let made = relay.plan(relay.read(10).await).await.commit;
            assert!(!made.totals.is_empty());
            commit(&relay, &made).await;
        }
        let fresh = relay.store.pending_totals(&relay.lease, 0, 10).await.unwrap();
        assert_eq!((fresh.totals.len(), fresh.up_to), (3, 0));
        let last = fresh.totals[2].0;
        let fresh = relay.store.pending_totals(&relay.lease, last, 10).await.unwrap();
        assert_eq!((fresh.totals.len(), fresh.up_to), (0, 3));
        session.execute("DELETE FROM runspan_deltas").await;
        session.execute(set_back).await;
        session.queue("triage", 4).await;
        // The journal's position went back too, and it is for its reader to notice.
        let first = session.text("SELECT min(seq) FROM runspan_journal").await.unwrap();
        assert!(first.parse::<i64>().unwrap() <= 3, "{first}");
        let made = relay.plan(relay.read(10).await).await.commit;
        commit(&relay, &made).await;
        let fresh = relay.store.pending_totals(&relay.lease, last, 10).await.unwrap();
        assert_eq!((fresh.totals.len(), fresh.up_to), (1, 0), "{set_back}");
        // What another has written below the place that was read shows in the count.
        session.execute("UPDATE runspan_deltas SET id = 1").await;
        let fresh = relay.store.pending_totals(&relay.lease, last, 10).await.unwrap();
        assert_eq!((fresh.totals.len(), fresh.up_to), (0, 1), "{set_back}");
        drop(database);
    }
}

#[tokio::test]
async fn what_is_set_aside_overwrites_nothing() {
    let (_database, relay, mut session) = attached().await;
    let set_aside = async |session: &mut Session, count: i64| {
        for number in 1..=count {
            session
                .execute(&format!(
                    "INSERT INTO workflow_runs (id, workflow_name, target_type, target_owner, target_repo, target_number)
                     VALUES ('no {}', 'triage', 'pr', 'acme', 'widgets', {number});
                     DELETE FROM workflow_runs",
                    RunId::generate()
                ))
                .await;
        }
        relay.drain().await;
    };
    set_aside(&mut session, 3).await;
    session.execute("DELETE FROM sqlite_sequence").await;
    // Of the new positions the first ones are taken.
    set_aside(&mut session, 5).await;
    assert_eq!(relay.store.status().await.unwrap().set_aside_entries, 16);
    let entries = "SELECT count(DISTINCT json_extract(entry, '$.run_id')) FROM runspan_set_aside";
    assert_eq!(session.text(entries).await.as_deref(), Some("8"));
}
