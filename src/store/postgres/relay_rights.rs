//! What a relay's role needs on runspan's schema: granted by `attach --relay-role`, and named where it is missing.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgExecutor};

use super::super::StoreError;
use super::super::admin::shell_quoted;
use super::PgStore;
use super::capture::triggers;

/// Privileges, the kind of object, and the objects in the schema: one GRANT each, as on docs/table.md.
const RIGHTS: [(&str, &str, &[&str]); 11] = [
    ("SELECT", "TABLE", &["meta", "stuck"]),
    ("SELECT, UPDATE", "TABLE", &["lease"]),
    ("SELECT, DELETE", "TABLE", &["journal"]),
    ("SELECT, INSERT, DELETE", "TABLE", &["set_aside", "commits", "deltas"]),
    ("SELECT, INSERT, UPDATE", "TABLE", &["series"]),
    ("SELECT, INSERT, UPDATE, DELETE", "TABLE", &["open_runs", "outbox"]),
    ("SELECT", "SEQUENCE", &["journal_skipped"]),
    ("USAGE", "SEQUENCE", &["outbox_id_seq"]),
    ("EXECUTE", "FUNCTION", &["missed_runs()", "adopt(uuid[])", "catch_up()", "make_room()"]),
    ("EXECUTE", "FUNCTION", &["bring_forward"]),
    ("EXECUTE", "FUNCTION", &["in_flight()", "stuck_runs()"]),
];

const SCHEMA: &str = "GRANT USAGE ON SCHEMA runspan";

/// The statements that give a role (quoted) all of it.
pub(super) fn grants(role: &str) -> String {
    let rest = RIGHTS.iter().map(|(privileges, kind, objects)| grant(privileges, kind, objects));
    std::iter::once(SCHEMA.to_owned()).chain(rest).map(|grant| format!("{grant} TO {role};\n")).collect()
}

impl PgStore {
    /// The error, or if a right was missing, one that has the statements which grant all that the role lacks.
    pub(super) async fn name_missing_rights(&self, error: StoreError) -> StoreError {
        if !error.is_right_missing() {
            return error;
        }
        let looked = async {
            let mut tx = self.pool.begin_admin().await?;
            let (role, statements) = missing(&mut tx).await?;
            let table = triggers(&mut *tx).await?.into_iter().next().map(|trigger| trigger.table);
            Ok::<_, StoreError>((role, statements, table))
        };
        match looked.await {
            Ok((role, statements, table)) if !statements.is_empty() => {
                let table =
                    table.map(|table| format!(" --table {}", shell_quoted(&table))).unwrap_or_default();
                let word = shell_quoted(&role);
                StoreError::RightsMissing(format!(
                    "{error}; role {role} lacks {} `runspan attach{table} --relay-role {word}` grants all of it",
                    statements.join(" ")
                ))
            }
            _ => error,
        }
    }
}

/// The session's role, and the statements that give it what it lacks; none if it lacks nothing.
async fn missing(connection: &mut PgConnection) -> Result<(String, Vec<String>), StoreError> {
    let (role, me, has_schema): (String, String, bool) = sqlx::query_as(
        "SELECT session_user::text, quote_ident(session_user), has_schema_privilege(session_user, oid, 'USAGE')
         FROM pg_namespace WHERE nspname = 'runspan'",
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(StoreError::NotAttached)?;
    let mut missing = if has_schema { Vec::new() } else { vec![SCHEMA.to_owned()] };
    for (privileges, kind, objects) in RIGHTS {
        let mut lacking: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for object in objects {
            let privileges = lacking_privileges(&mut *connection, privileges, kind, object).await?;
            if let Some(privileges) = privileges {
                lacking.entry(privileges).or_default().push(object);
            }
        }
        missing.extend(lacking.iter().map(|(privileges, objects)| grant(privileges, kind, objects)));
    }
    Ok((role, missing.into_iter().map(|grant| format!("{grant} TO {me};")).collect()))
}

/// Those of the privileges that the session's role has not on an object, if any. By the catalogue: a name would not be found
/// without the right to use the schema.
async fn lacking_privileges(
    executor: impl PgExecutor<'_>,
    privileges: &str,
    kind: &str,
    object: &str,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT string_agg(p, ', ' ORDER BY place)
         FROM pg_namespace n
         CROSS JOIN unnest(string_to_array($1, ', ')) WITH ORDINALITY AS wanted (p, place)
         LEFT JOIN pg_proc f ON f.pronamespace = n.oid AND f.proname = split_part($3, '(', 1) AND $2 = 'FUNCTION'
         LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = $3 AND $2 <> 'FUNCTION'
         WHERE n.nspname = 'runspan'
           AND NOT CASE $2 WHEN 'FUNCTION' THEN has_function_privilege(session_user, f.oid, p)
                           WHEN 'SEQUENCE' THEN has_sequence_privilege(session_user, c.oid, p)
                           ELSE has_table_privilege(session_user, c.oid, p) END",
    )
    .bind(privileges)
    .bind(kind)
    .bind(object)
    .fetch_one(executor)
    .await?)
}

fn grant(privileges: &str, kind: &str, objects: &[&str]) -> String {
    let names = objects.iter().map(|object| format!("runspan.{object}")).collect::<Vec<_>>().join(", ");
    match kind {
        "TABLE" => format!("GRANT {privileges} ON {names}"),
        kind => format!("GRANT {privileges} ON {kind} {names}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_same_grants() {
        let page = include_str!("../../../docs/table.md");
        let of_the_page: String = page
            .lines()
            .filter(|line| line.ends_with(" TO relay;"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(of_the_page, grants("relay"));
    }
}
