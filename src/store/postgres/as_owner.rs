//! Which roles may use runspan's tables and functions, and what `attach` reads as the owner.
//!
//! They belong to the owner of the application's table, who may have put anything in their place: a trigger on the
//! outbox, a view instead of a table, another function. Whatever that is runs with the rights of whoever uses it. So a
//! role that can do more than the owner does not use them; where `attach` and `detach` have to read one, they read it
//! as the owner, from inside a function that runs as the owner and cannot become anyone else.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgExecutor, Row as _};

use super::super::StoreError;
use super::super::error::is_denied;
use super::super::refused::Refused;

/// A session's role beside the owner of the schema `runspan`.
pub(super) struct Roles {
    /// The session's role.
    me: String,
    /// The owner of the schema, quoted; none where there is no schema.
    pub(super) owner: Option<String>,
    /// Whether they are the same.
    pub(super) is_owner: bool,
    /// A right that the session's role has and the owner has not, and which would be enough to do harm.
    excess: Option<String>,
    /// Whether the role could become anyone: nothing that is known of the schema's owner may be relied on for long.
    pub(super) is_superuser: bool,
}

impl Roles {
    /// Those of this session. Reads nothing that is the owner's.
    pub(super) async fn of(executor: impl PgExecutor<'_>) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "SELECT me.rolname::text, quote_ident(owner.rolname), coalesce(me.oid = owner.oid, false),
                    CASE WHEN owner.rolsuper OR me.oid = owner.oid THEN NULL
                         WHEN me.rolsuper THEN 'is a superuser'
                         WHEN me.rolcreaterole AND owner.rolcreaterole IS NOT TRUE THEN 'may create roles'
                         WHEN me.rolreplication AND owner.rolreplication IS NOT TRUE THEN 'may replicate'
                         WHEN me.rolbypassrls AND owner.rolbypassrls IS NOT TRUE THEN 'bypasses row security'
                         -- Whatever it is a member of, it can become, inherited or not.
                         ELSE (SELECT 'is a member of ' || p.rolname FROM pg_roles p
                               WHERE p.oid <> me.oid AND p.oid IS DISTINCT FROM owner.oid
                                 AND pg_has_role(me.oid, p.oid, 'MEMBER')
                                 AND pg_has_role(owner.oid, p.oid, 'MEMBER') IS NOT TRUE
                                 AND (p.rolsuper OR p.rolcreaterole OR p.rolreplication OR p.rolbypassrls
                                      OR p.rolname IN ('pg_execute_server_program', 'pg_write_server_files',
                                                       'pg_read_server_files', 'pg_write_all_data', 'pg_read_all_data')
                                      OR EXISTS (SELECT FROM pg_class c WHERE c.relowner = p.oid)
                                      OR EXISTS (SELECT FROM pg_database d WHERE d.datdba = p.oid))
                               ORDER BY p.rolname LIMIT 1) END,
                    EXISTS (SELECT FROM pg_roles p WHERE p.rolsuper AND pg_has_role(me.oid, p.oid, 'MEMBER'))
             FROM pg_roles me
             LEFT JOIN pg_namespace n ON n.nspname = 'runspan'
             LEFT JOIN pg_roles owner ON owner.oid = n.nspowner
             WHERE me.rolname = session_user",
        )
        .fetch_one(executor)
        .await?;
        Ok(Self {
            me: row.try_get(0)?,
            owner: row.try_get(1)?,
            is_owner: row.try_get(2)?,
            excess: row.try_get(3)?,
            is_superuser: row.try_get(4)?,
        })
    }

    /// That nothing of the owner's would run with more than the owner's rights. Where there is no schema yet, anyone
    /// might make one before the next statement.
    pub(super) fn check(&self) -> Result<(), Refused> {
        match (&self.excess, &self.owner) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refused::NoSchema),
            (Some(excess), Some(owner)) => Err(Refused::ExcessiveRights {
                me: self.me.clone(),
                excess: excess.clone(),
                owner: owner.clone(),
            }),
        }
    }
}

/// The one value that `query` gives, as text, read with the rights of the owner and no others.
///
/// The function that reads it lies in the session's own temporary schema, where no one else can replace it, and runs as
/// the owner, which it cannot leave: PostgreSQL refuses `SET ROLE` and `RESET ROLE` inside of it. The transaction is
/// rolled back, or a deferred trigger would run at its end, outside of the function. The connection is closed, since
/// whatever ran may have left prepared statements on it.
pub(super) async fn read_as_owner(
    connection: PgConnection,
    owner: &str,
    query: &str,
) -> Result<Option<String>, StoreError> {
    let mut connection = connection;
    let read = async {
        let mut tx = connection.begin().await?;
        tx.execute(sqlx::raw_sql(AssertSqlSafe(format!(
            "CREATE FUNCTION pg_temp.runspan_read() RETURNS text LANGUAGE plpgsql SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp AS $read$ BEGIN RETURN ({query}); END $read$;
             ALTER FUNCTION pg_temp.runspan_read() OWNER TO {owner};"
        ))))
        .await
        .map_err(|error| match error {
            error if is_denied(&error) => StoreError::Unfit(format!(
                "what is {owner}'s can only be read with a temporary function ({error}): run this as {owner}, or GRANT \
                 TEMPORARY ON DATABASE … TO both roles"
            )),
            error => error.into(),
        })?;
        let value = sqlx::query_scalar("SELECT pg_temp.runspan_read()").fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        Ok(value)
    };
    let read: Result<_, StoreError> = read.await;
    _ = connection.close_hard().await;
    read
}
