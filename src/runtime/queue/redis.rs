//! The queue between processes: a stream of a Redis (6.2 or newer) or Valkey server, read by a consumer group.
//!
//! An entry is deleted when it is acknowledged, so the stream holds the unacknowledged jobs, oldest first. That is how
//! the reaper learns the age of the oldest job.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::{
    StreamAutoClaimReply, StreamId, StreamInfoConsumersReply, StreamRangeReply, StreamReadReply,
};
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, FromRedisValue, Pipeline, RedisError,
    RedisResult, pipe,
};
use async_trait::async_trait;
use rustls::crypto::CryptoProvider;
use tokio::time::timeout;

use super::{Job, Queue, QueueError, RECLAIM_AFTER};
use crate::redact::url::{Form, is_unclear};
use crate::run::RunId;

/// The parameters of a Unix socket's URL, and the fragment that the client defines.
const FORM: Form =
    Form { parameter: |name, _| matches!(name, "user" | "pass"), fragments: &["insecure"], sockets: true };

const GROUP: &str = "executors";

/// The only field of an entry.
const RUN: &str = "run";

/// How long the server may take for an answer, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a read blocks on the server before it returns without a job.
const BLOCK: Duration = Duration::from_secs(1);

/// A consumer without pending jobs that has been idle for this many times the reclaim time (an hour by default) is dead.
const IDLE_RECLAIM_PERIODS: u32 = 360;

/// The most idle connections that are kept.
const MAX_IDLE: usize = 16;

/// Settings of a queue on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// The jobs are in the stream `{prefix}:jobs`.
    pub prefix: String,
    /// The time after which another consumer may take a job that was not acknowledged.
    pub reclaim_after: Duration,
}

impl RedisSettings {
    /// The settings of the application `prefix`: applications that share a server need different prefixes.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), reclaim_after: RECLAIM_AFTER }
    }
}

/// A queue on a Redis or Valkey server, for any number of processes.
#[derive(Debug)]
pub struct RedisQueue {
    client: Client,
    stream: String,
    reclaim_after: Duration,
    /// A connection serves one call at a time, as a blocking read delays all others. It returns here only after a
    /// response: without one, its state is unknown.
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl RedisQueue {
    /// Connects to `redis://HOST:6379/0` (`rediss://` for TLS; `redis://USER:PASSWORD@…`), so that an invalid URL or an
    /// unreachable server is an error immediately. Later it reconnects automatically.
    pub async fn connect(url: &str, settings: RedisSettings) -> Result<Self, QueueError> {
        if is_unclear(url, &FORM) {
            return Err(QueueError::Url);
        }
        let client = Client::open(url).map_err(|_| QueueError::Url)?;
        let is_tls = matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if is_tls && CryptoProvider::get_default().is_none() {
            // The client uses the process's default provider, and panics without one. If another is set concurrently, use that.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let stream = format!("{}:jobs", settings.prefix);
        let queue = Self { client, stream, reclaim_after: settings.reclaim_after, idle: Mutex::default() };
        let prepared = async {
            queue.create_group().await?;
            queue.delete_idle_consumers().await
        };
        prepared.await.map_err(|error| queue.failure(&error))?;
        Ok(queue)
    }

    /// Sends commands on an idle connection, or on a new one.
    ///
    /// After a broken connection they may be sent twice: duplicate jobs are harmless.
    async fn request<T: FromRedisValue>(&self, limit: Duration, commands: &Pipeline) -> RedisResult<T> {
        let response = async {
            loop {
                let idle = self.idle().pop();
                let was_idle = idle.is_some();
                let mut connection = match idle {
                    Some(connection) => connection,
                    None => self.open().await?,
                };
                let answer = commands.query_async(&mut connection).await;
                if answer.as_ref().is_err_and(|error| code(error).is_none()) {
                    // No response: the server may have closed an idle connection.
                    if was_idle {
                        continue;
                    }
                    return answer;
                }
                let mut idle = self.idle();
                if idle.len() < MAX_IDLE {
                    idle.push(connection);
                }
                return answer;
            }
        };
        if let Ok(answer) = timeout(limit, response).await {
            return answer;
        }
        // Other idle connections may hang as well.
        self.idle().clear();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> RedisResult<MultiplexedConnection> {
        // The caller has one timeout for connecting and the response.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Creates the group and the stream if they do not exist. The group starts at the oldest entry.
    async fn create_group(&self) -> RedisResult<()> {
        let mut create = pipe();
        create.cmd("XGROUP").arg("CREATE").arg(&self.stream).arg(GROUP).arg("0").arg("MKSTREAM");
        match self.request(REQUEST_TIMEOUT, &create).await {
            Err(error) if code(&error).as_deref() == Some("BUSYGROUP") => Ok(()),
            answer => answer,
        }
    }

    /// Deletes the consumers of dead processes: the server keeps every consumer name that it has seen.
    async fn delete_idle_consumers(&self) -> RedisResult<()> {
        let (consumers,): (StreamInfoConsumersReply,) = self
            .request(REQUEST_TIMEOUT, pipe().cmd("XINFO").arg("CONSUMERS").arg(&self.stream).arg(GROUP))
            .await?;
        let expiry = millis(self.reclaim_after.saturating_mul(IDLE_RECLAIM_PERIODS));
        let mut delete = pipe();
        for consumer in consumers.consumers.iter().filter(|it| it.pending == 0 && it.idle as u64 >= expiry) {
            delete.cmd("XGROUP").arg("DELCONSUMER").arg(&self.stream).arg(GROUP).arg(&consumer.name);
        }
        if delete.is_empty() { Ok(()) } else { self.request(REQUEST_TIMEOUT, &delete).await }
    }

    /// Jobs that another consumer did not acknowledge in time, otherwise new ones; empty if none arrives in time.
    async fn try_take(&self, consumer: &str, at_most: usize) -> RedisResult<Vec<Job>> {
        let entries = match self.claim(consumer, at_most).await? {
            entries if entries.is_empty() => self.read(consumer, at_most).await?,
            entries => entries,
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let run = entry.get::<String>(RUN).and_then(|run| run.parse::<RunId>().ok());
            if let Some(run) = run {
                jobs.push(Job { run, receipt: entry.id });
            } else {
                tracing::warn!(
                    stream = self.stream,
                    entry = entry.id,
                    "removing a queue entry without a run id"
                );
                self.remove(&entry.id).await?;
            }
        }
        Ok(jobs)
    }

    async fn claim(&self, consumer: &str, at_most: usize) -> RedisResult<Vec<StreamId>> {
        let mut from = "0-0".to_owned();
        loop {
            let mut claim = pipe();
            claim.cmd("XAUTOCLAIM").arg(&self.stream).arg(GROUP).arg(consumer);
            claim.arg(millis(self.reclaim_after)).arg(&from).arg("COUNT").arg(at_most);
            let (reply,): (StreamAutoClaimReply,) = self.request(REQUEST_TIMEOUT, &claim).await?;
            // The server scans a limited number of entries per call and returns where to continue.
            if !reply.claimed.is_empty() || reply.next_stream_id == "0-0" {
                return Ok(reply.claimed);
            }
            from = reply.next_stream_id;
        }
    }

    async fn read(&self, consumer: &str, at_most: usize) -> RedisResult<Vec<StreamId>> {
        // At most the reclaim time, so that expired jobs are reclaimed in time. 0 would block indefinitely.
        let block = BLOCK.min(self.reclaim_after).max(Duration::from_millis(1));
        let mut read = pipe();
        read.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(at_most);
        read.arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&self.stream).arg(">");
        let (reply,): (Option<StreamReadReply>,) = self.request(block + REQUEST_TIMEOUT, &read).await?;
        Ok(reply.unwrap_or_default().keys.into_iter().flat_map(|stream| stream.ids).collect())
    }

    async fn remove(&self, entry: &str) -> RedisResult<()> {
        let mut remove = pipe();
        remove.atomic().cmd("XACK").arg(&self.stream).arg(GROUP).arg(entry);
        remove.cmd("XDEL").arg(&self.stream).arg(entry);
        self.request(REQUEST_TIMEOUT, &remove).await
    }

    /// One line with the address only: the rest of the URL may be secret.
    fn failure(&self, error: &RedisError) -> QueueError {
        let server = self.client.get_connection_info().addr();
        QueueError::Server(match (error.kind(), error.clone().into_server_errors().as_deref()) {
            (_, Some([(_, error), ..])) => {
                let details = error.details().unwrap_or_default();
                format!("the queue at {server} returned an error: {} {details}", error.code())
            }
            (ErrorKind::AuthenticationFailed, _) => {
                format!("the queue at {server} rejected the user or password of its URL")
            }
            _ => format!("cannot reach the queue at {server}: {error}"),
        })
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn enqueue(&self, run: RunId) -> Result<(), QueueError> {
        let mut add = pipe();
        add.cmd("XADD").arg(&self.stream).arg("*").arg(RUN).arg(run.to_string()).ignore();
        self.request(REQUEST_TIMEOUT, &add).await.map_err(|error| self.failure(&error))
    }

    async fn take(&self, consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError> {
        loop {
            let taken = match self.try_take(consumer, at_most.max(1)).await {
                Ok(jobs) if jobs.is_empty() => continue,
                Ok(jobs) => return Ok(jobs),
                Err(error) => error,
            };
            // The server has lost the stream, before or during the request.
            if !matches!(code(&taken).as_deref(), Some("NOGROUP" | "UNBLOCKED")) {
                return Err(self.failure(&taken));
            }
            self.create_group().await.map_err(|error| self.failure(&error))?;
        }
    }

    async fn acknowledge(&self, job: &Job) -> Result<(), QueueError> {
        self.remove(&job.receipt).await.map_err(|error| self.failure(&error))
    }

    async fn oldest(&self) -> Result<Option<Duration>, QueueError> {
        let mut range = pipe();
        range.cmd("XRANGE").arg(&self.stream).arg("-").arg("+").arg("COUNT").arg(1).cmd("TIME");
        let answer = self.request(REQUEST_TIMEOUT, &range).await;
        let (first, (seconds, micros)): (StreamRangeReply, (u64, u64)) =
            answer.map_err(|error| self.failure(&error))?;
        let now = Duration::from_secs(seconds) + Duration::from_micros(micros);
        // An entry's id starts with the server's time in milliseconds when it was added.
        let added = first.ids.first().and_then(|entry| entry.id.split('-').next()?.parse().ok());
        Ok(added.map(|added| now.saturating_sub(Duration::from_millis(added))))
    }
}

/// The code of the server's error response.
fn code(error: &RedisError) -> Option<String> {
    let errors = error.clone().into_server_errors()?;
    errors.first().map(|(_, error)| error.code().to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
