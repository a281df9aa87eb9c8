//! The queue on a server: what happens while the server is away, when it comes back, and when it refuses.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use runspan::runtime::queue::{Queue, QueueError, RedisQueue, RedisSettings};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{LONG, NEVER, SOON, enqueue, runs, take, take_one};
use crate::database::eventually;

/// A variable of tests/with-services.
fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make test`"))
}

/// A queue of its own on the shared server, and its prefix.
pub(super) async fn shared(reclaim_after: Duration) -> (RedisQueue, String) {
    let prefix = format!("test-{}", uuid::Uuid::new_v4().simple());
    let settings = RedisSettings { prefix: prefix.clone(), reclaim_after };
    let queue = RedisQueue::connect(&service("RUNSPAN_TEST_REDIS_URL"), settings).await.unwrap();
    (queue, prefix)
}

async fn raw(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// A server of the test's own, to be killed.
pub(crate) struct Server {
    port: u16,
    options: &'static [&'static str],
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    pub(crate) async fn start(options: &'static [&'static str]) -> Self {
        // Below the ports that the kernel hands out; one that is taken ends the server, and another is tried.
        for _ in 0..6 {
            let port = rand::random_range(20_000..32_000);
            let mut server = Self { port, options, home: tempfile::tempdir().unwrap(), process: None };
            if server.restart().await {
                return server;
            }
        }
        panic!("no server started");
    }

    /// Whether it came up.
    pub(crate) async fn restart(&mut self) -> bool {
        let log = self.home.path().join("log");
        let child = Command::new(service("RUNSPAN_TEST_REDIS_SERVER"))
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", ""])
            .arg("--dir")
            .arg(self.home.path())
            .args(self.options)
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .spawn();
        let child = self.process.insert(child.unwrap());
        let ready = || fs::read_to_string(&log).unwrap().contains("Ready to accept connections");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if ready() {
                return true;
            }
            assert!(Instant::now() < deadline, "it neither starts nor ends: {}", log.display());
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) async fn queue(&self, reclaim_after: Duration) -> Arc<RedisQueue> {
        let settings = RedisSettings { reclaim_after, ..RedisSettings::new("test") };
        Arc::new(RedisQueue::connect(&self.url(), settings).await.unwrap())
    }

    /// An error's text, the same each time.
    fn text(&self, error: &QueueError) -> String {
        error.to_string().replace(&format!(":{}", self.port), ":PORT")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back_with_its_jobs() {
    let mut server = Server::start(&["--appendonly", "yes"]).await;
    let queue = server.queue(SOON).await;
    let enqueued = enqueue(&*queue, 2).await;
    let lost = take_one(&*queue, "one").await;
    assert_eq!(lost.run, enqueued[0]);

    server.kill();
    let error = queue.enqueue(enqueued[0]).await.unwrap_err();
    insta::assert_snapshot!(server.text(&error), @"cannot reach the queue at 127.0.0.1:PORT: Connection refused (os error 111)");
    let error = timeout(LONG, queue.take("two", 1)).await.expect("it does not wait").unwrap_err();
    insta::assert_snapshot!(server.text(&error), @"cannot reach the queue at 127.0.0.1:PORT: Connection refused (os error 111)");
    assert!(queue.acknowledge(&lost).await.is_err());
    assert!(queue.oldest().await.is_err());

    assert!(server.restart().await);
    let mut left = enqueued;
    left.extend(enqueue(&*queue, 1).await);
    while let [next, ..] = left[..] {
        let job = take_one(&*queue, "two").await;
        assert!(left.contains(&job.run), "{} before {next}", job.run);
        queue.acknowledge(&job).await.unwrap();
        left.retain(|run| *run != job.run);
    }
    assert_eq!(queue.oldest().await.unwrap(), None);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_gets_its_group_again() {
    let mut server = Server::start(&["--appendonly", "no"]).await;
    let queue = server.queue(NEVER).await;
    enqueue(&*queue, 1).await;
    let lost = take_one(&*queue, "one").await;
    server.kill();
    assert!(server.restart().await);

    // What is enqueued before anybody asks is there too.
    let enqueued = enqueue(&*queue, 2).await;
    assert_eq!(runs(&take(&*queue, "one", 10).await), enqueued);
    queue.acknowledge(&lost).await.unwrap();

    // While somebody waits.
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.take("two", 1).await }
    });
    let mut raw = raw(&server.url()).await;
    eventually("a consumer waits", async || is_somebody_waiting(&mut raw.clone()).await).await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut raw).await.unwrap();
    let enqueued = enqueue(&*queue, 1).await;
    let job = timeout(LONG, waiting).await.expect("it goes on waiting").unwrap().unwrap().remove(0);
    assert_eq!(job.run, enqueued[0]);
}

async fn is_somebody_waiting(raw: &mut MultiplexedConnection) -> bool {
    let clients: String = redis::cmd("INFO").arg("clients").query_async(raw).await.unwrap();
    clients.contains("blocked_clients:1")
}

#[tokio::test]
async fn a_take_under_way_ends_with_its_server() {
    let mut server = Server::start(&["--appendonly", "no"]).await;
    let queue = server.queue(NEVER).await;
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.take("one", 1).await }
    });
    let raw = raw(&server.url()).await;
    eventually("a consumer waits", async || is_somebody_waiting(&mut raw.clone()).await).await;
    server.kill();
    let error = timeout(LONG, waiting).await.expect("it ends").unwrap().unwrap_err();
    insta::assert_snapshot!(server.text(&error), @"cannot reach the queue at 127.0.0.1:PORT: Connection refused (os error 111)");
}

#[tokio::test]
async fn a_dropped_take_waits_no_more() {
    let server = Server::start(&["--appendonly", "no"]).await;
    let queue = server.queue(NEVER).await;
    let raw = raw(&server.url()).await;
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.take("one", 1).await }
    });
    eventually("a consumer waits", async || is_somebody_waiting(&mut raw.clone()).await).await;
    waiting.abort();
    eventually("it waits no more", async || !is_somebody_waiting(&mut raw.clone()).await).await;
    // So the next job goes to who does wait, at once.
    let enqueued = enqueue(&*queue, 1).await;
    assert_eq!(runs(&take(&*queue, "two", 1).await), enqueued);
}

#[tokio::test]
async fn a_refusal_is_one_line_without_the_password() {
    let server = Server::start(&["--requirepass", "open sesame", "--appendonly", "no"]).await;
    let connect = async |login: &str| {
        let url = format!("redis://{login}127.0.0.1:{}/0", server.port);
        RedisQueue::connect(&url, RedisSettings::new("test")).await
    };
    let refusal = async |login| server.text(&connect(login).await.unwrap_err());
    insta::assert_snapshot!(refusal(":s3cret@").await, @"the queue at 127.0.0.1:PORT rejected the user or password of its URL");
    insta::assert_snapshot!(refusal("").await, @"the queue at 127.0.0.1:PORT returned an error: NOAUTH Authentication required.");
    let queue = connect(":open%20sesame@").await.unwrap();
    enqueue(&queue, 1).await;
    take_one(&queue, "one").await;

    let away = Server { port: server.port, options: &[], home: tempfile::tempdir().unwrap(), process: None };
    drop(server);
    let error = RedisQueue::connect(&away.url(), RedisSettings::new("test")).await.unwrap_err();
    insta::assert_snapshot!(away.text(&error), @"cannot reach the queue at 127.0.0.1:PORT: Connection refused (os error 111)");
}

#[tokio::test]
async fn an_entry_that_names_no_run_is_removed() {
    let (queue, prefix) = shared(NEVER).await;
    let stream = format!("{prefix}:jobs");
    let mut raw = raw(&service("RUNSPAN_TEST_REDIS_URL")).await;
    for (field, value) in
        [("run", "42"), ("walk", "0190a5d4-7d3c-7cc1-8b6a-0d2f3a4b5c6d"), ("run", "\u{fffd}")]
    {
        let _: String = raw.xadd(&stream, "*", &[(field, value)]).await.unwrap();
    }
    let _: String = raw.xadd(&stream, "*", &[("run", &b"\xff\xfe"[..])]).await.unwrap();
    let enqueued = enqueue(&queue, 1).await;
    let jobs = take(&queue, "one", 2).await;
    assert_eq!(runs(&jobs), enqueued);
    queue.acknowledge(&jobs[0]).await.unwrap();
    assert_eq!(queue.oldest().await.unwrap(), None);
}

#[tokio::test]
async fn a_key_of_another_kind_is_a_refusal() {
    let prefix = format!("test-{}", uuid::Uuid::new_v4().simple());
    let url = service("RUNSPAN_TEST_REDIS_URL");
    let _: () = raw(&url).await.set(format!("{prefix}:jobs"), "taken").await.unwrap();
    let error =
        RedisQueue::connect(&url, RedisSettings { prefix, ..RedisSettings::new("test") }).await.unwrap_err();
    assert!(
        error.to_string().ends_with(
            " returned an error: WRONGTYPE Operation against a key holding the wrong kind of value"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn consumers_that_are_gone_are_forgotten() {
    let reclaim_after = Duration::from_millis(1);
    let (queue, prefix) = shared(reclaim_after).await;
    enqueue(&queue, 2).await;
    queue.acknowledge(&take_one(&queue, "done").await).await.unwrap();
    let url = service("RUNSPAN_TEST_REDIS_URL");
    let mut raw = raw(&url).await;
    let stream = format!("{prefix}:jobs");
    // One that ended with a job in its hands stays, as the job does.
    let _: redis::streams::StreamReadReply = redis::cmd("XREADGROUP")
        .arg(&["GROUP", "executors", "died", "STREAMS", &stream, ">"])
        .query_async(&mut raw)
        .await
        .unwrap();
    eventually("only the one with a job is left", async || {
        let settings = RedisSettings { prefix: prefix.clone(), reclaim_after };
        RedisQueue::connect(&url, settings).await.unwrap();
        let consumers: redis::streams::StreamInfoConsumersReply =
            raw.clone().xinfo_consumers(&stream, "executors").await.unwrap();
        consumers.consumers.len() == 1 && consumers.consumers[0].name == "died"
    })
    .await;
}
