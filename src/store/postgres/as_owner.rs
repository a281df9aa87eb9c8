//! With whose rights runspan's own tables and functions are used.
//!
//! They belong to the owner of the application's table, who may have put anything in their place: a trigger on the
//! outbox, a view instead of a table, another function. Whatever that is runs with the rights of whoever uses it. So a
//! role that can do more than the owner does not use them; where `attach` and `detach` have to read one, they read it
//! as the owner, from inside a function that runs as the owner and cannot become anyone else.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgExecutor, Row as _};

use super::super::StoreError;

/// A session's role beside the owner of the schema `runspan`.
pub(super) struct Roles {
    /// The session's role.
    me: String,
    /// The owner of the schema, quoted.
    pub(super) owner: String,
    /// Whether they are the same.
    pub(super) is_owner: bool,
    /// A right that the session's role has and the owner has not, and which would be enough to do harm.
    excess: Option<String>,
}

impl Roles {
    /// Those of this session; `None` where there is no schema `runspan`. Reads nothing that is the owner's.
    pub(super) async fn of(executor: impl PgExecutor<'_>) -> Result<Option<Self>, sqlx::Error> {
        let row = sqlx::query(
            "SELECT me.rolname::text, quote_ident(owner.rolname), me.oid = owner.oid,
                    CASE WHEN owner.rolsuper THEN NULL
                         WHEN me.rolsuper THEN 'is a superuser'
                         WHEN me.rolcreaterole AND NOT owner.rolcreaterole THEN 'may create roles'
                         WHEN me.rolreplication AND NOT owner.rolreplication THEN 'may replicate'
                         WHEN me.rolbypassrls AND NOT owner.rolbypassrls THEN 'bypasses row security'
                         -- Whatever it is a member of, it can become, inherited or not.
                         ELSE (SELECT 'is a member of ' || p.rolname FROM pg_roles p
                               WHERE p.oid NOT IN (me.oid, owner.oid)
                                 AND pg_has_role(me.oid, p.oid, 'MEMBER') AND NOT pg_has_role(owner.oid, p.oid, 'MEMBER')
                                 AND (p.rolsuper OR p.rolcreaterole OR p.rolreplication OR p.rolbypassrls
                                      OR p.rolname IN ('pg_execute_server_program', 'pg_write_server_files',
                                                       'pg_read_server_files', 'pg_write_all_data', 'pg_read_all_data')
                                      OR EXISTS (SELECT FROM pg_class c WHERE c.relowner = p.oid))
                               ORDER BY p.rolname LIMIT 1) END
             FROM pg_namespace n
             JOIN pg_roles owner ON owner.oid = n.nspowner
             JOIN pg_roles me ON me.rolname = session_user
             WHERE n.nspname = 'runspan'",
        )
        .fetch_optional(executor)
        .await?;
        row.map(|row| {
            Ok(Self {
                me: row.try_get(0)?,
                owner: row.try_get(1)?,
                is_owner: row.try_get(2)?,
                excess: row.try_get(3)?,
            })
        })
        .transpose()
    }

    /// That nothing of the owner's would run with more than the owner's rights.
    pub(super) fn check(self) -> Result<(), ExcessiveRights> {
        match self.excess {
            None => Ok(()),
            Some(excess) => Err(ExcessiveRights { me: self.me, excess, owner: self.owner }),
        }
    }
}

/// The session's role can do more than the owner of what it would use.
#[derive(Debug, thiserror::Error)]
#[error(
    "role {me:?} {excess}, and the schema runspan belongs to {owner}, whose code would run with these rights: connect as {owner}, or as a role with the grants of docs/table.md (Roles)"
)]
pub(in crate::store) struct ExcessiveRights {
    me: String,
    excess: String,
    owner: String,
}

/// The one value that `query` gives, as text, with the owner's rights and nobody else's.
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
        .await?;
        let value = sqlx::query_scalar("SELECT pg_temp.runspan_read()").fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        Ok(value)
    };
    let read: Result<_, StoreError> = read.await;
    _ = connection.close_hard().await;
    read
}
