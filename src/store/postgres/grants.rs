//! Who may use runspan's schema: the roles to which `attach` and docs/table.md grant it, and no others.

use sqlx::PgConnection;

use super::super::StoreError;
use super::super::admin::{Plan, PurgeLoss};

/// The functions of a relay that older versions did not have, and the one whose callers may call them.
const RELAY_FUNCTIONS: &str = "runspan.missed_runs(), runspan.adopt(uuid[]), runspan.catch_up(), runspan.make_room(), \
    runspan.bring_forward(bigint[], bigint[], boolean)";
const OLD_RELAY_FUNCTION: &str = "reconcile";

/// The grants of an attach.
pub(super) struct Grants {
    /// Revokes what was not granted on purpose, and grants.
    pub(super) sql: String,
    /// What was taken away, if anything.
    pub(super) warning: Option<String>,
}

impl Grants {
    /// What to revoke and grant, once the schema of `owner` (quoted) is as it should be.
    pub(super) async fn of(
        connection: &mut PgConnection,
        plan: &Plan,
        owner: &str,
    ) -> Result<Self, StoreError> {
        let default = default_grantees(connection, owner).await?;
        // Who may refuse and who relays keeps that.
        let mut callers = grantees(connection, "dispatch_refused").await?;
        if let Some(caller) = &plan.grant {
            callers.push(role(connection, caller, "--grant").await?);
        }
        let relays = grantees(connection, OLD_RELAY_FUNCTION).await?;
        let mut sql = String::new();
        for role in &default {
            sql += &format!(
                "REVOKE ALL ON ALL TABLES IN SCHEMA runspan FROM {role} CASCADE;\n\
                 REVOKE ALL ON ALL SEQUENCES IN SCHEMA runspan FROM {role} CASCADE;\n\
                 REVOKE ALL ON ALL FUNCTIONS IN SCHEMA runspan FROM {role} CASCADE;\n\
                 REVOKE ALL ON SCHEMA runspan FROM {role} CASCADE;\n"
            );
        }
        for role in callers {
            sql += &format!(
                "GRANT USAGE ON SCHEMA runspan TO {role};\n\
                 GRANT EXECUTE ON FUNCTION runspan.dispatch_refused TO {role};\n"
            );
        }
        for role in relays.iter().filter(|role| !default.contains(role)) {
            sql += &format!("GRANT EXECUTE ON FUNCTION {RELAY_FUNCTIONS} TO {role};\n");
        }
        let warning = (!default.is_empty()).then(|| {
            format!(
                "default privileges of {owner} open new objects to {}: revoked on runspan's schema (but for \
                 dispatch_refused); a relay among these roles needs its grants again, see docs/table.md",
                default.join(", ")
            )
        });
        Ok(Self { sql, warning })
    }
}

/// The role that an option names, quoted.
pub(super) async fn role(
    connection: &mut PgConnection,
    name: &str,
    option: &str,
) -> Result<String, StoreError> {
    let quoted: Option<String> =
        sqlx::query_scalar("SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = $1")
            .bind(name)
            .fetch_optional(connection)
            .await?;
    quoted.ok_or_else(|| {
        StoreError::Unfit(format!("there is no role {name:?}: create it, or name another with {option}"))
    })
}

/// The roles, quoted, to which `ALTER DEFAULT PRIVILEGES` opens what `owner` (quoted) makes in the schema `runspan`.
async fn default_grantees(connection: &mut PgConnection, owner: &str) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC')
         FROM pg_default_acl d
         JOIN pg_roles o ON o.oid = d.defaclrole
         CROSS JOIN LATERAL aclexplode(d.defaclacl) a
         LEFT JOIN pg_roles r ON r.oid = a.grantee
         WHERE quote_ident(o.rolname) = $1 AND d.defaclobjtype IN ('r', 'S', 'f', 'n')
           AND (d.defaclnamespace = 0 OR d.defaclnamespace = to_regnamespace('runspan'))
           AND a.grantee <> d.defaclrole
           -- Functions are open to PUBLIC by default; runspan's never are.
           AND NOT (a.grantee = 0 AND d.defaclobjtype = 'f')
         ORDER BY 1",
    )
    .bind(owner)
    .fetch_all(connection)
    .await?)
}

/// The roles, quoted, that may call the function `name` of runspan's and do not own it.
async fn grantees(connection: &mut PgConnection, name: &str) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT quote_ident(r.rolname)
         FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
         WHERE p.pronamespace = to_regnamespace('runspan') AND p.proname = $1 AND a.grantee <> p.proowner
         ORDER BY 1",
    )
    .bind(name)
    .fetch_all(connection)
    .await?)
}

/// Names the roles that a purge takes rights from.
pub(super) async fn of_purge(connection: &mut PgConnection, loss: &mut PurgeLoss) -> Result<(), StoreError> {
    loss.callers = Some(grantees(connection, "dispatch_refused").await?);
    loss.roles = sqlx::query_scalar(
        "SELECT DISTINCT quote_ident(r.rolname) FROM (
             SELECT nspacl, nspowner FROM pg_namespace WHERE nspname = 'runspan'
             UNION ALL SELECT relacl, relowner FROM pg_class WHERE relnamespace = to_regnamespace('runspan')
             UNION ALL SELECT proacl, proowner FROM pg_proc WHERE pronamespace = to_regnamespace('runspan')
         ) o (acl, owner) CROSS JOIN LATERAL aclexplode(o.acl) a JOIN pg_roles r ON r.oid = a.grantee
         WHERE a.grantee <> o.owner ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}
