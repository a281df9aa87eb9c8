//! The connection pool: every statement in a transaction, with or without names.
//!
//! Each is in a transaction, which says where names are looked for, so that nothing stays on the connection: behind a
//! pooler it is lent to others, whose statements would not find their tables. Usually a statement is prepared once a
//! connection and has a name there. Behind a pooler that lends a connection for a transaction at a time (`PgBouncer`'s
//! transaction mode) that goes wrong: the name is another's on the next one. There no statement has a name; a URL with
//! `statement-cache-capacity=0` says so.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use futures_util::{FutureExt as _, TryFutureExt as _};
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgQueryResult, PgRow, PgStatement,
    PgTypeInfo,
};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Either, Error, Execute, Executor, Postgres, SqlStr,
    Transaction,
};

use super::super::error::{is_read_only, is_starting, is_untranslatable};
use super::as_owner::Roles;

/// What every transaction begins with; a setting of the session would stay with a pooler's connection.
///
/// The isolation, whatever the database or the role has for its default: to wait for a row that another changes is no
/// error here. The search path: a function or an operator in a schema of the database or the role would otherwise be found
/// for what is not qualified, and run with this session's rights. The encoding: a database in `SQL_ASCII` keeps whatever
/// bytes it is given, and would refuse to send invalid UTF-8.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path = pg_catalog, pg_temp;
    SELECT set_config('client_encoding',
        CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, true)";

/// How long to wait for a connection, unless the URL says so.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// When a connection takes this long, the cause is looked for.
const PROBE_AFTER: Duration = Duration::from_millis(200);

/// How often a superuser checks again that the schema's owner could do as much.
const ASK_SUPERUSERS_EVERY: Duration = Duration::from_secs(5);

/// Executes single statements: none before it is known that what is the owner's would run with no more than the owner's
/// rights.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    connections: PgPool,
    has_pooler: bool,
    demotion: Demotion,
    /// Until when that is known; nothing is asked where only the catalogue is read.
    safe_until: Option<Arc<Mutex<Option<Instant>>>>,
}

/// A transaction.
pub(super) struct Tx {
    session: Session,
}

/// Executes the statements of a transaction.
#[derive(Debug)]
pub(super) struct Session {
    tx: Transaction<'static, Postgres>,
    has_pooler: bool,
    demotion: Demotion,
}

/// When a server was last found to accept no writes, as an old primary after a failover. Connections that are older lead to
/// it: they are closed, and the address is resolved anew.
#[derive(Clone, Debug, Default)]
struct Demotion(Arc<Mutex<Option<Instant>>>);

impl Demotion {
    fn notice(&self, error: &Error) {
        if is_read_only(error)
            && let Ok(mut last) = self.0.lock()
        {
            *last = Some(Instant::now());
        }
    }

    /// Whether a connection of this age was opened since.
    fn is_before(&self, age: Duration) -> bool {
        self.0.lock().is_ok_and(|last| last.is_none_or(|last| age < last.elapsed()))
    }
}

/// A statement without a name.
struct Unnamed<E>(E);

impl Pool {
    /// Connects when first asked.
    pub(super) fn new(options: PgConnectOptions, connect_timeout: Option<Duration>) -> Self {
        // The only way to read that option. What else is in the URL is not encoded, so that it may not parse again.
        let has_pooler = options
            .clone()
            .username("user")
            .host("host")
            .to_url_lossy()
            .query_pairs()
            .any(|(name, value)| name == "statement-cache-capacity" && value == "0");
        let demotion = Demotion::default();
        let watched = demotion.clone();
        // One per task of a relay: lease, projector, exporter, a sender per channel, and the poller.
        let connections = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(connect_timeout.unwrap_or(ACQUIRE_TIMEOUT))
            .idle_timeout(Duration::from_mins(1))
            .before_acquire(move |_, connection| {
                let is_usable = watched.is_before(connection.age);
                async move { Ok(is_usable) }.boxed()
            })
            .connect_lazy_with(options);
        Self { connections, has_pooler, demotion, safe_until: Some(Arc::default()) }
    }

    /// A connection, or why there is none.
    ///
    /// sqlx retries a connection that was refused until the time-out, and drops the cause. So a connection of our own is
    /// tried beside it: an error that is certain ends the wait, another one names the cause at its end.
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, Error> {
        let mut acquired = std::pin::pin!(self.connections.acquire());
        if let Ok(acquired) = tokio::time::timeout(PROBE_AFTER, &mut acquired).await {
            return acquired;
        }
        let options = self.connections.connect_options();
        let mut probed = std::pin::pin!(PgConnection::connect_with(&options));
        let cause = tokio::select! {
            acquired = &mut acquired => return acquired,
            probed = &mut probed => match probed {
                Ok(connection) => {
                    let _ = connection.close().await;
                    None
                }
                Err(error) if is_certain(&error) => return Err(error),
                Err(error) => Some(error),
            },
        };
        match (acquired.await, cause) {
            (Err(Error::PoolTimedOut), Some(cause)) => Err(cause),
            (acquired, _) => acquired,
        }
    }

    /// The same for statements that use nothing of the owner's.
    pub(super) fn for_catalogue(&self) -> Self {
        Self { safe_until: None, ..self.clone() }
    }

    /// Sees to it that a role which can do more than the owner uses nothing of the owner's.
    async fn ensure_safe(&self) -> Result<(), Error> {
        let Some(safe_until) = &self.safe_until else { return Ok(()) };
        if safe_until.lock().is_ok_and(|until| until.is_some_and(|until| Instant::now() < until)) {
            return Ok(());
        }
        let roles = Roles::of(&self.for_catalogue()).await?;
        roles.check().map_err(|error| Error::Configuration(Box::new(error)))?;
        // Schemas change hands. No one else has enough to gain or lose by it.
        let valid = if roles.is_superuser { ASK_SUPERUSERS_EVERY } else { Duration::from_hours(1) };
        if let Ok(mut until) = safe_until.lock() {
            *until = Some(Instant::now() + valid);
        }
        Ok(())
    }

    /// The rows of a statement whose transaction begins and ends on the server, in one message: what it locks is free again
    /// however long this process may stand still. Every name in it has to be qualified.
    pub(super) async fn at_once(&self, sql: &str) -> Result<Vec<PgRow>, Error> {
        Box::pin(self.ensure_safe()).await?;
        // Safe: the caller's own text.
        let sql = AssertSqlSafe(format!("SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {sql}"));
        let mut connection = self.acquire().await?;
        sqlx::raw_sql(sql).fetch_all(&mut *connection).await.inspect_err(|error| self.demotion.notice(error))
    }

    /// A transaction for what changes the schema, on a connection that has to be the server's own. It must use nothing of
    /// the owner's, as [`for_catalogue`](Self::for_catalogue).
    pub(super) async fn begin_admin(&self) -> Result<Transaction<'static, Postgres>, Error> {
        Transaction::begin(self.acquire().await?, Some(SqlStr::from_static(BEGIN))).await
    }

    /// A connection that does not come back.
    pub(super) async fn detached(&self) -> Result<PgConnection, Error> {
        Ok(self.acquire().await?.detach())
    }

    /// Rows with texts of the application's. A database in `WIN1252`, say, may hold bytes that no UTF-8 is equivalent to:
    /// then all of them come as they are.
    pub(super) async fn fetch_texts<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Error> {
        let untranslatable = match query().fetch_all(self).await {
            Err(error) if is_untranslatable(&error) => error,
            fetched => return fetched,
        };
        tracing::debug!("reading texts as they are: {}", untranslatable);
        let mut tx = self.begin().await?;
        sqlx::query("SET LOCAL client_encoding = 'SQL_ASCII'").execute(&mut *tx).await?;
        let rows = query().fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }

    pub(super) async fn begin(&self) -> Result<Tx, Error> {
        // It begins a transaction of its own.
        Box::pin(self.ensure_safe()).await?;
        let tx = Transaction::begin(self.acquire().await?, Some(SqlStr::from_static(BEGIN))).await?;
        let demotion = self.demotion.clone();
        Ok(Tx { session: Session { tx, has_pooler: self.has_pooler, demotion } })
    }
}

/// Whether nothing listens there, or only a server that starts or stops.
fn is_certain(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        error => is_starting(error),
    }
}

impl Tx {
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.session.tx.commit().await
    }
}

impl Deref for Tx {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// What `fetch_many` gives, one after the other.
type Step = Either<PgQueryResult, PgRow>;

impl<'c> Executor<'c> for &'c Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let mut tx = self.begin().await?;
            let steps: Vec<Step> = tx.fetch_many(query).try_collect().await?;
            tx.commit().await?;
            Ok(stream::iter(steps.into_iter().map(Ok)))
        };
        all.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let row = async move {
            let mut tx = self.begin().await?;
            let row = tx.fetch_optional(query).await?;
            tx.commit().await?;
            Ok(row)
        };
        row.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.connections.prepare_with(sql, parameters)
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let demotion = self.demotion.clone();
        let steps =
            if self.has_pooler { self.tx.fetch_many(Unnamed(query)) } else { self.tx.fetch_many(query) };
        steps.inspect_err(move |error| demotion.notice(error)).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let demotion = self.demotion.clone();
        let row = if self.has_pooler {
            self.tx.fetch_optional(Unnamed(query))
        } else {
            self.tx.fetch_optional(query)
        };
        row.inspect_err(move |error| demotion.notice(error)).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.tx.prepare_with(sql, parameters)
    }
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
