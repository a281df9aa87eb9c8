//! Whether transitions reach the journal: what a relay says while they do not, and afterwards.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use runspan::relay::{RelayHandle, Settings, serve_health};
use runspan::store::{CaptureProblem, Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::get;
use crate::database::{Database, eventually};
use crate::hooked::{Hooked, Hooks};
use crate::logged::Logged;
use crate::receiver::Receiver;
use crate::series;

/// Says of capture what the test wants.
#[derive(Default)]
struct Capture {
    /// `None`: the database does not answer.
    problems: Mutex<Option<Vec<CaptureProblem>>>,
    looks: AtomicUsize,
}

#[async_trait]
impl Hooks for Capture {
    async fn before(&self, _: &'static str) {}

    async fn after(&self, _: &'static str) {}

    fn capture(&self) -> Option<Result<Vec<CaptureProblem>, StoreError>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let problems = self.problems.lock().unwrap().clone();
        Some(problems.ok_or_else(|| sqlx::Error::PoolTimedOut.into()))
    }
}

impl Capture {
    fn working() -> Arc<Self> {
        Arc::new(Self { problems: Mutex::new(Some(Vec::new())), looks: AtomicUsize::new(0) })
    }

    /// Says this from now on, and waits until somebody has looked twice: the first look is over then.
    async fn becomes(&self, problems: Option<Vec<CaptureProblem>>) {
        *self.problems.lock().unwrap() = problems;
        let looks = self.looks.load(Ordering::Relaxed);
        eventually("two looks", async || self.looks.load(Ordering::Relaxed) >= looks + 2).await;
    }
}

fn disabled() -> CaptureProblem {
    CaptureProblem::TriggersDisabled {
        table: "workflow_runs".to_owned(),
        triggers: "runspan_changed".to_owned(),
    }
}

fn start(store: &Arc<dyn Store>, capture: &Arc<Capture>, receiver: &Receiver) -> RelayHandle {
    let store: Arc<dyn Store> = Arc::new(Hooked { store: Arc::clone(store), hooks: Arc::clone(capture) });
    let settings = Settings { look_every: Duration::from_millis(10), ..series::settings() };
    series::relay(&store, receiver, &[]).with(settings).spawn()
}

/// The problem's own text: cause and command.
const DISABLED: &str = "error runspan's triggers on workflow_runs are disabled (runspan_changed): its transitions are not \
                        journalled; run `runspan attach --table 'workflow_runs'`, which enables them; capture was last \
                        seen working at ";

#[tokio::test]
async fn what_stops_capture_is_logged_once_and_the_gap_when_it_ends() {
    let (database, receiver) = (Database::sqlite().await, Receiver::grpc().await);
    let (store, _) = database.attach().await;
    let (logged, _guard) = Logged::start();
    let capture = Capture::working();
    let relay = start(&store, &capture, &receiver);
    let seen = || relay.status().snapshot().capture;
    eventually("a look", async || seen().is_some_and(|capture| capture.is_live())).await;

    let before = std::time::SystemTime::now();
    capture.becomes(Some(vec![disabled()])).await;
    capture.becomes(Some(vec![disabled()])).await;
    assert_eq!(logged.with(DISABLED).len(), 1);
    let broken = seen().unwrap();
    assert!(!broken.is_live() && broken.problems == [disabled()]);
    let since = broken.since.unwrap();

    // A database that does not answer says nothing of the triggers.
    capture.becomes(None).await;
    assert_eq!(seen(), None);
    capture.becomes(Some(vec![disabled()])).await;
    assert_eq!(seen().unwrap().since, Some(since));
    assert_eq!((logged.with(DISABLED).len(), logged.with("capture works again").len()), (1, 0));

    // Another one, beside the first.
    capture.becomes(Some(vec![disabled(), CaptureProblem::Detached])).await;
    assert_eq!(logged.with("error runspan is detached: no transition is journalled").len(), 1);
    assert_eq!(logged.with(DISABLED).len(), 1);

    capture.becomes(Some(Vec::new())).await;
    capture.becomes(Some(Vec::new())).await;
    let after = std::time::SystemTime::now();
    let gap = logged.with("capture works again");
    assert_eq!(gap.len(), 1, "{gap:?}");
    let times = regex::Regex::new(
        r"^warn capture works again: transitions between (\S+) and (\S+) were not journalled unless",
    )
    .unwrap();
    let [from, to] =
        times.captures(&gap[0]).unwrap().extract().1.map(|at| humantime::parse_rfc3339(at).unwrap());
    assert!(from <= since && before <= to && to <= after, "{gap:?} {since:?}");
    assert!(gap[0].ends_with("; runs that began and ended in that time have no span"), "{gap:?}");
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn a_standby_is_silent_until_it_takes_over() {
    let (database, receiver) = (Database::sqlite().await, Receiver::grpc().await);
    let (store, _) = database.attach().await;
    let (logged, _guard) = Logged::start();
    let (one, two) = (Capture::working(), Capture::working());
    let holder = start(&store, &one, &receiver);
    eventually("the lease", async || holder.status().snapshot().lease_epoch.is_some()).await;
    let standby = start(&store, &two, &receiver);
    eventually("a standby", async || standby.status().snapshot().stands_by).await;
    two.becomes(Some(vec![disabled()])).await;
    assert!(!standby.status().snapshot().capture.unwrap().is_live());
    assert_eq!(logged.with("capture").len(), 0);
    // Whoever held the lease has told of a gap that is over.
    two.becomes(Some(Vec::new())).await;
    two.becomes(Some(vec![CaptureProblem::Detached])).await;
    holder.stop().await.unwrap();
    let detached = async || logged.with("error runspan is detached").len() == 1;
    eventually("the word of the one that took over", detached).await;
    assert_eq!((logged.with("capture works again").len(), logged.with(DISABLED).len()), (0, 0));
    standby.stop().await.unwrap();
}

/// It may be gone before it looks for the second time.
#[tokio::test]
async fn a_relay_that_runs_until_idle_says_so_too() {
    let (database, receiver) = (Database::sqlite().await, Receiver::grpc().await);
    let (store, _) = database.attach().await;
    let (logged, _guard) = Logged::start();
    let capture = Capture::working();
    *capture.problems.lock().unwrap() = Some(vec![CaptureProblem::Detached]);
    let store: Arc<dyn Store> = Arc::new(Hooked { store, hooks: capture });
    let settings = Settings { look_every: Duration::from_mins(1), ..series::settings() };
    series::relay(&store, &receiver, &[]).with(settings).spawn().drain().await.unwrap();
    let said = logged.with("error runspan is detached");
    assert!(said.len() == 1 && said[0].contains("capture has not been seen working since"), "{said:?}");
}

#[tokio::test]
async fn health_reports_whether_transitions_reach_the_journal() {
    let (database, receiver) = (Database::sqlite().await, Receiver::grpc().await);
    let (store, _) = database.attach().await;
    let capture = Capture::working();
    let relay = start(&store, &capture, &receiver);
    let status = relay.status().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve_health(listener, store, status.clone(), stop.clone()));
    let journal = async || {
        let (status, ready) = get(address, "/ready").await;
        assert_eq!((status, ready["ready"].as_bool()), (200, Some(true)));
        ready["journal"].clone()
    };
    let time = |value: &serde_json::Value| humantime::parse_rfc3339(value.as_str().unwrap()).unwrap();
    eventually("a look", async || status.snapshot().capture.is_some()).await;
    let live = journal().await;
    assert_eq!((live["live"].as_bool(), &live["problems"]), (Some(true), &serde_json::json!([])));
    let since = time(&live["since"]);

    capture.becomes(Some(vec![disabled()])).await;
    let broken = journal().await;
    assert_eq!(broken["live"], false);
    assert_eq!(broken["problems"], serde_json::json!([disabled().to_string()]));
    assert!(time(&broken["since"]) >= since - Duration::from_secs(1));

    capture.becomes(None).await;
    let unknown = serde_json::json!({"live": null, "since": null, "problems": []});
    assert_eq!(journal().await, unknown);
    relay.stop().await.unwrap();
    stop.cancel();
    serving.await.unwrap().unwrap();
}
