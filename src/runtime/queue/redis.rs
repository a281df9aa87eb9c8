//! The queue between processes: a stream of a Redis (6.2 or newer) or Valkey server, read by a consumer group.
//!
//! An entry leaves the stream when it is acknowledged, so the stream holds what is not, oldest first.

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

/// The parameters of a socket's URL, and the fragment of the client's own.
const FORM: Form =
    Form { parameter: |name, _| matches!(name, "user" | "pass"), fragments: &["insecure"], sockets: true };

const GROUP: &str = "executors";

/// The one field of an entry.
const RUN: &str = "run";

/// How long the server may take for an answer, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server waits for a job before it says that there is none; then we ask again.
const BLOCK: Duration = Duration::from_secs(1);

/// A consumer that has nothing and has not asked for this many times the reclaim time (an hour by default) is gone.
const GONE: u32 = 360;

/// Connections kept while nobody uses them.
const KEPT: usize = 16;

/// How to use the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// The jobs are in the stream `{prefix}:jobs`.
    pub prefix: String,
    /// How long a consumer has for acknowledging what it took: after that another gets it.
    pub reclaim_after: Duration,
}

impl RedisSettings {
    /// Those of the application `prefix`: another's jobs on the same server must not be taken for its own.
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
    /// A connection serves one call at a time, as one that waits for jobs holds up all else. It comes back here
    /// with an answer, and only then: what became of a connection without one, nobody knows.
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl RedisQueue {
    /// Connects to `redis://HOST:6379/0` (`rediss://` for TLS; `redis://USER:PASSWORD@…`), so that a wrong URL and
    /// a server that is away are known at once. Later it reconnects by itself.
    pub async fn connect(url: &str, settings: RedisSettings) -> Result<Self, QueueError> {
        if is_unclear(url, &FORM) {
            return Err(QueueError::Url);
        }
        let client = Client::open(url).map_err(|_| QueueError::Url)?;
        let is_tls = matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if is_tls && CryptoProvider::get_default().is_none() {
            // The client knows the process's only, and panics without one. Should one be set meanwhile, that is it.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let stream = format!("{}:jobs", settings.prefix);
        let queue = Self { client, stream, reclaim_after: settings.reclaim_after, idle: Mutex::default() };
        let prepared = async {
            queue.create_group().await?;
            queue.forget_consumers().await
        };
        prepared.await.map_err(|error| queue.failure(&error))?;
        Ok(queue)
    }

    /// Asks the server on an idle connection, else on a new one.
    ///
    /// What broke may be asked twice: jobs that come twice, or again after a while, do no harm.
    async fn ask<T: FromRedisValue>(&self, limit: Duration, commands: &Pipeline) -> RedisResult<T> {
        let answer = async {
            loop {
                let idle = self.idle().pop();
                let was_idle = idle.is_some();
                let mut connection = match idle {
                    Some(connection) => connection,
                    None => self.open().await?,
                };
                let answer = commands.query_async(&mut connection).await;
                if answer.as_ref().is_err_and(|error| code(error).is_none()) {
                    // Without an answer: what was idle, the server may have closed long ago.
                    if was_idle {
                        continue;
                    }
                    return answer;
                }
                let mut idle = self.idle();
                if idle.len() < KEPT {
                    idle.push(connection);
                }
                return answer;
            }
        };
        if let Ok(answer) = timeout(limit, answer).await {
            return answer;
        }
        // The others may hang as well, one after the other.
        self.idle().clear();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> RedisResult<MultiplexedConnection> {
        // Its own time-outs are off: whoever asks has one for the whole of it.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Creates the group, and the stream with it, if they are not there. The group begins with the oldest entry.
    async fn create_group(&self) -> RedisResult<()> {
        let mut create = pipe();
        create.cmd("XGROUP").arg("CREATE").arg(&self.stream).arg(GROUP).arg("0").arg("MKSTREAM");
        match self.ask(REQUEST_TIMEOUT, &create).await {
            Err(error) if code(&error).as_deref() == Some("BUSYGROUP") => Ok(()),
            answer => answer,
        }
    }

    /// Removes what processes that ended leave behind: the server remembers every name that ever asked.
    async fn forget_consumers(&self) -> RedisResult<()> {
        let (consumers,): (StreamInfoConsumersReply,) = self
            .ask(REQUEST_TIMEOUT, pipe().cmd("XINFO").arg("CONSUMERS").arg(&self.stream).arg(GROUP))
            .await?;
        let gone = millis(self.reclaim_after.saturating_mul(GONE));
        let mut forget = pipe();
        for consumer in consumers.consumers.iter().filter(|it| it.pending == 0 && it.idle as u64 >= gone) {
            forget.cmd("XGROUP").arg("DELCONSUMER").arg(&self.stream).arg(GROUP).arg(&consumer.name);
        }
        if forget.is_empty() { Ok(()) } else { self.ask(REQUEST_TIMEOUT, &forget).await }
    }

    /// What waits for too long with another consumer, or else is new; nothing if there is nothing for a while.
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
                    "an entry that names no run is removed"
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
            let (reply,): (StreamAutoClaimReply,) = self.ask(REQUEST_TIMEOUT, &claim).await?;
            // The server looks at so many at a time, and says where to go on.
            if !reply.claimed.is_empty() || reply.next_stream_id == "0-0" {
                return Ok(reply.claimed);
            }
            from = reply.next_stream_id;
        }
    }

    async fn read(&self, consumer: &str, at_most: usize) -> RedisResult<Vec<StreamId>> {
        // No longer than until something may be reclaimed; and 0 would be for ever.
        let block = BLOCK.min(self.reclaim_after).max(Duration::from_millis(1));
        let mut read = pipe();
        read.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(at_most);
        read.arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&self.stream).arg(">");
        let (reply,): (Option<StreamReadReply>,) = self.ask(block + REQUEST_TIMEOUT, &read).await?;
        Ok(reply.unwrap_or_default().keys.into_iter().flat_map(|stream| stream.ids).collect())
    }

    async fn remove(&self, entry: &str) -> RedisResult<()> {
        let mut remove = pipe();
        remove.atomic().cmd("XACK").arg(&self.stream).arg(GROUP).arg(entry);
        remove.cmd("XDEL").arg(&self.stream).arg(entry);
        self.ask(REQUEST_TIMEOUT, &remove).await
    }

    /// One line, without what the URL holds besides the address.
    fn failure(&self, error: &RedisError) -> QueueError {
        let server = self.client.get_connection_info().addr();
        QueueError::Server(match (error.kind(), error.clone().into_server_errors().as_deref()) {
            (_, Some([(_, refusal), ..])) => {
                let details = refusal.details().unwrap_or_default();
                format!("the queue at {server} refuses: {} {details}", refusal.code())
            }
            (ErrorKind::AuthenticationFailed, _) => {
                format!("the queue at {server} refuses the user or the password of its URL")
            }
            _ => format!("no queue at {server}: {error}"),
        })
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn publish(&self, run: RunId) -> Result<(), QueueError> {
        let mut add = pipe();
        add.cmd("XADD").arg(&self.stream).arg("*").arg(RUN).arg(run.to_string()).ignore();
        self.ask(REQUEST_TIMEOUT, &add).await.map_err(|error| self.failure(&error))
    }

    async fn take(&self, consumer: &str, at_most: usize) -> Result<Vec<Job>, QueueError> {
        loop {
            let taken = match self.try_take(consumer, at_most.max(1)).await {
                Ok(jobs) if jobs.is_empty() => continue,
                Ok(jobs) => return Ok(jobs),
                Err(error) => error,
            };
            // The server lost its data, before we asked or while we waited.
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
        let mut look = pipe();
        look.cmd("XRANGE").arg(&self.stream).arg("-").arg("+").arg("COUNT").arg(1).cmd("TIME");
        let answer = self.ask(REQUEST_TIMEOUT, &look).await;
        let (first, (seconds, micros)): (StreamRangeReply, (u64, u64)) =
            answer.map_err(|error| self.failure(&error))?;
        let now = Duration::from_secs(seconds) + Duration::from_micros(micros);
        // An entry's id begins with the server's milliseconds when it was added.
        let added = first.ids.first().and_then(|entry| entry.id.split('-').next()?.parse().ok());
        Ok(added.map(|added| now.saturating_sub(Duration::from_millis(added))))
    }
}

/// The first word of the server's refusal.
fn code(error: &RedisError) -> Option<String> {
    let refusals = error.clone().into_server_errors()?;
    refusals.first().map(|(_, refusal)| refusal.code().to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
