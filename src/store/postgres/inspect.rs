//! Finding the application's table, and what attaching to it would come to.

use sqlx::error::DatabaseError;
use sqlx::{Connection as _, PgConnection, Row as _};

use super::super::admin::{Plan, missing_columns, shell_quoted};
use super::super::{StoreError, columns, error, own_statuses};
use super::capture::triggers;
use crate::run::Status;

/// A table that can be attached to.
pub(super) struct Table {
    /// Its oid.
    pub(super) oid: i64,
    /// Quoted, with its schema.
    pub(super) name: String,
    /// Its owner's role, quoted.
    pub(super) owner: String,
    /// Whether the session's role is the owner.
    pub(super) is_mine: bool,
    /// Whether it has the trigger already.
    pub(super) is_attached: bool,
    /// What is worth knowing, one line each.
    pub(super) warnings: Vec<String>,
}

/// Finds the table and checks that it can be attached to. An index of runs that ended in some way finds none in
/// flight.
pub(super) async fn inspect(connection: &mut PgConnection, plan: &Plan) -> Result<Table, StoreError> {
    let unfit = |why: String| Err(StoreError::Unfit(why));
    let oid = resolve(connection, &plan.table).await?;
    let found = sqlx::query(
        "SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname), c.relkind::text,
                c.relrowsecurity AND c.relforcerowsecurity AND NOT (r.rolsuper OR r.rolbypassrls),
                EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'status'
                        WHERE i.indrelid = c.oid AND i.indisvalid
                          AND (i.indpred IS NULL AND i.indkey[0] = a.attnum
                               OR pg_get_expr(i.indpred, c.oid) ~ '\\mstatus\\M.*(queued.*running|running.*queued|<>)')),
                quote_ident(r.rolname), current_user::text,
                pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000
                                        THEN 'SET' ELSE 'MEMBER' END),
                r.rolname = session_user,
                EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id'
                        JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = a.attnum
                          AND m.amname IN ('btree', 'hash'))
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.oid = $1::oid",
    )
    .bind(oid)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(found) = found else { return unfit(not_found(connection, &plan.table).await?) };
    let (oid, name): (i64, String) = (found.try_get(0)?, found.try_get(1)?);
    let kind: String = found.try_get(2)?;
    // It could end the functions' text.
    if name.contains("$function$") {
        return unfit(format!("{name} cannot be attached to: rename it"));
    }
    if !matches!(kind.as_str(), "r" | "p") {
        return unfit(format!("{name} is not a table: triggers need the table itself"));
    }
    let (owner, me): (String, String) = (found.try_get(5)?, found.try_get(6)?);
    if !found.try_get(7)? {
        return unfit(format!(
            "{name} belongs to role {owner}, as which {me:?} cannot act: attach as {owner}, as a member of it or as \
             a superuser"
        ));
    }
    if found.try_get(3)? {
        return unfit(format!(
            "{name} has row security that its owner {owner} does not bypass, so the triggers could not see every \
             run: ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY, or give {owner} BYPASSRLS"
        ));
    }
    let mut warnings = inspect_columns(connection, oid, &name).await?;
    // A partitioned table's index cannot be made concurrently.
    let concurrently = if kind == "p" { "" } else { "CONCURRENTLY " };
    if !found.try_get::<bool, _>(9)? {
        return unfit(format!(
            "no index of {name} begins with id, so finding a run's parent would read the whole table inside the \
             writer's statement: CREATE INDEX {concurrently}ON {name} (id);"
        ));
    }
    let indexed: bool = found.try_get(4)?;
    if !indexed {
        warnings.push(format!(
            "no index of {name} finds the runs in flight; the relay searches for them once a minute: \
             CREATE INDEX {concurrently}ON {name} (id) WHERE status IN ({});",
            columns::in_flight()
        ));
    }
    if let Some(child) = inherited(connection, oid).await? {
        warnings.push(format!(
            "rows of {child}, which inherits from {name}, are not journalled: a trigger is not inherited; make it a \
             partition"
        ));
    }
    if !plan.published
        && let Some(publication) = publication(connection).await?
    {
        return unfit(format!(
            "publication {publication} is FOR ALL TABLES, so it would publish runspan's tables, and subscribers without them \
             stop (relation \"runspan.journal\" does not exist): list the tables in the publication, or create runspan's tables \
             on the subscribers first and attach with --published, see docs/operate/databases.md"
        ));
    }
    warnings.extend(subscription(connection, oid).await?.map(|subscription| {
        format!(
            "rows that subscription {subscription} writes to {name} are not journalled, since its triggers do not fire: \
             attach in the publisher's database"
        )
    }));
    let is_attached = triggers(connection).await?.iter().any(|trigger| trigger.is_on(oid));
    Ok(Table { oid, name, owner, is_mine: found.try_get(8)?, is_attached, warnings })
}

/// Checks that the columns are there and can be read; what to warn of.
async fn inspect_columns(
    connection: &mut PgConnection,
    oid: i64,
    name: &str,
) -> Result<Vec<String>, StoreError> {
    let columns: Vec<(String, String, bool)> = sqlx::query_as(
        "WITH RECURSIVE types(name, generated, oid, type) AS (
             SELECT attname, attgenerated, atttypid, typtype
             FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
             WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped
             UNION ALL
             SELECT name, generated, base.oid, base.typtype
             FROM types
             JOIN pg_type domain ON domain.oid = types.oid
             JOIN pg_type base ON base.oid = domain.typbasetype
             WHERE type = 'd'
         )
         SELECT name::text, format_type(oid, NULL), generated = 'v' FROM types WHERE type <> 'd'",
    )
    .bind(oid)
    .fetch_all(&mut *connection)
    .await?;
    let type_of =
        |wanted: &str| columns.iter().find(|(column, ..)| column == wanted).map(|(_, kind, _)| kind.as_str());
    // All that is wrong, so that one migration fixes it.
    let mut problems = Vec::new();
    let missing: Vec<&str> = columns::required().filter(|column| type_of(column).is_none()).collect();
    if !missing.is_empty() {
        problems.push(missing_columns(name, &missing));
    }
    problems.extend(columns.iter().filter(|column| is_unseen(column)).map(|(column, ..)| {
        format!("{name}.{column} is a virtual generated column, which a trigger sees as NULL: make it STORED")
    }));
    for (column, wanted) in [
        ("id", &["uuid"][..]),
        ("parent_run_id", &["uuid"]),
        ("state", &["jsonb", "json"]),
        ("created_at", &["timestamp with time zone"]),
        ("updated_at", &["timestamp with time zone"]),
        ("target_number", &["integer", "bigint", "smallint", "numeric"]),
    ] {
        if let Some(is) = type_of(column).filter(|is| !wanted.contains(is)) {
            problems
                .push(format!("{name}.{column} has the type {is}, and has to be {}", wanted.join(" or ")));
        }
    }
    let statuses = match type_of("status") {
        None => Vec::new(),
        Some("text" | "character varying" | "character") => statuses_in_checks(connection, oid).await?,
        Some(_) => match inspect_enum(connection, oid, name).await? {
            Ok(labels) => labels,
            Err(problem) => {
                problems.push(problem);
                Vec::new()
            }
        },
    };
    if !problems.is_empty() {
        return Err(StoreError::Unfit(problems.join("; ")));
    }
    Ok(own_statuses::warning(statuses.iter().map(String::as_str)).into_iter().collect())
}

/// The statuses that constraints of the column, or of the domains of its type, list.
async fn statuses_in_checks(connection: &mut PgConnection, oid: i64) -> Result<Vec<String>, StoreError> {
    let checks: Vec<(String, String)> = sqlx::query_as(
        "WITH RECURSIVE types(oid) AS (
             SELECT atttypid FROM pg_attribute WHERE attrelid = $1::oid AND attname = 'status'
             UNION ALL
             SELECT typbasetype FROM pg_type JOIN types USING (oid) WHERE typtype = 'd'
         )
         SELECT CASE contypid WHEN 0 THEN 'status' ELSE 'value' END, pg_get_constraintdef(c.oid)
         FROM pg_constraint c
         WHERE contype = 'c'
           AND (contypid IN (SELECT oid FROM types)
                OR conrelid = $1::oid AND conkey = ARRAY(
                    SELECT attnum FROM pg_attribute WHERE attrelid = $1::oid AND attname = 'status'))
         ORDER BY conname",
    )
    .bind(oid)
    .fetch_all(connection)
    .await?;
    Ok(checks.iter().flat_map(|(column, check)| own_statuses::in_checks(check, column, &[])).collect())
}

/// A table that inherits from this one without being a partition of it.
async fn inherited(connection: &mut PgConnection, oid: i64) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT format('%I.%I', n.nspname, c.relname)
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE i.inhparent = $1::oid AND NOT c.relispartition ORDER BY 1 LIMIT 1",
    )
    .bind(oid)
    .fetch_optional(connection)
    .await?)
}

/// A publication of all tables, also of those to come; none where runspan's schema is there already.
async fn publication(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT quote_ident(pubname) FROM pg_publication
         WHERE puballtables AND to_regnamespace('runspan') IS NULL ORDER BY 1 LIMIT 1",
    )
    .fetch_optional(connection)
    .await?)
}

/// A subscription that writes to the table.
async fn subscription(connection: &mut PgConnection, oid: i64) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT quote_ident(s.subname) FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
         WHERE r.srrelid = $1::oid ORDER BY 1 LIMIT 1",
    )
    .bind(oid)
    .fetch_optional(connection)
    .await?)
}

/// Whether a trigger would not see what the column holds: its name, its type, and whether it is computed when read.
fn is_unseen((column, _, is_virtual): &(String, String, bool)) -> bool {
    *is_virtual && columns::required().any(|required| required == column)
}

/// Finds a table by its name, by the search path that the role, the database or the URL gives: nothing else is looked
/// for there.
async fn resolve(connection: &mut PgConnection, table: &str) -> Result<Option<i64>, StoreError> {
    let mut tx = connection.begin().await?;
    sqlx::query("SET LOCAL search_path TO DEFAULT").execute(&mut *tx).await?;
    let found: Result<Option<i64>, sqlx::Error> =
        sqlx::query_scalar("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.int8")
            .bind(table)
            .fetch_one(&mut *tx)
            .await;
    tx.rollback().await?;
    match found {
        // Spaces and dots, for example.
        Err(error) if error::is_not_a_name(&error) => Err(StoreError::Unfit(format!(
            "{table} names no table ({}): quote what is no plain word, as in --table '\"My Schema\".\"Workflow Runs\"'",
            error.as_database_error().map(DatabaseError::message).unwrap_or_default()
        ))),
        Err(error) if error::is_denied(&error) => {
            let schema = table.rsplit_once('.').map_or("SCHEMA", |(schema, _)| schema);
            let me: String =
                sqlx::query_scalar("SELECT quote_ident(current_user)").fetch_one(connection).await?;
            Err(StoreError::Unfit(format!(
                "{me} may not look for {table} ({}): GRANT USAGE ON SCHEMA {schema} TO {me}; or attach as the table's \
                 owner",
                error.as_database_error().map(DatabaseError::message).unwrap_or_default()
            )))
        }
        found => Ok(found?),
    }
}

/// Says that there is no such table, and which there is: the one that has the triggers, or those with the name in any
/// schema.
async fn not_found(connection: &mut PgConnection, table: &str) -> Result<String, StoreError> {
    let last = table.rsplit('.').next().unwrap_or_default().trim_matches('"');
    let (database, similar): (String, Vec<String>) = sqlx::query_as(
        "SELECT current_database()::text, ARRAY(
             SELECT format('%I.%I', n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE lower(c.relname) = lower($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
               AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
             ORDER BY 1 LIMIT 3)",
    )
    .bind(last)
    .fetch_one(&mut *connection)
    .await?;
    let none = format!("there is no table {table} in database {database:?}");
    let option = |name: &String| format!("--table {}", shell_quoted(name));
    if let Some(attached) = triggers(connection).await?.first().map(|trigger| &trigger.table) {
        return Ok(format!("{none}, but runspan is attached to {attached}: write {}", option(attached)));
    }
    if similar.is_empty() {
        return Ok(format!("{none}: create it, or name yours with --table SCHEMA.TABLE"));
    }
    let options: Vec<String> = similar.iter().map(option).collect();
    Ok(format!("{none}, but {}: write {}", similar.join(" and "), options.join(" or ")))
}

/// Checks that the type of a status that is no text can hold what runspan looks for: its labels, or what is wrong.
async fn inspect_enum(
    connection: &mut PgConnection,
    oid: i64,
    table: &str,
) -> Result<Result<Vec<String>, String>, StoreError> {
    let (kind, labels): (String, Vec<String>) = sqlx::query_as(
        "WITH RECURSIVE types(oid) AS (
             SELECT atttypid FROM pg_attribute WHERE attrelid = $1::oid AND attname = 'status'
             UNION ALL
             SELECT typbasetype FROM pg_type JOIN types USING (oid) WHERE typtype = 'd'
         )
         SELECT format_type(t.oid, NULL),
                ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder)
         FROM types JOIN pg_type t USING (oid)
         WHERE typtype <> 'd'",
    )
    .bind(oid)
    .fetch_one(connection)
    .await?;
    if labels.is_empty() {
        return Ok(Err(format!(
            "{table}.status has the type {kind}, and has to be text, varchar or an enum"
        )));
    }
    let missing: Vec<&str> = Status::REQUIRED
        .map(Status::as_str)
        .into_iter()
        .filter(|status| !labels.iter().any(|label| label == status))
        .collect();
    if !missing.is_empty() {
        return Ok(Err(format!(
            "{table}.status has the type {kind}, which lacks {}: ALTER TYPE {kind} ADD VALUE …",
            missing.join(", ")
        )));
    }
    Ok(Ok(labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No PostgreSQL before 18 has such columns.
    #[test]
    fn a_virtual_column_is_refused_where_a_trigger_would_read_it() {
        let column = |name: &str, is_virtual| (name.to_owned(), "text".to_owned(), is_virtual);
        assert!(is_unseen(&column("workflow_name", true)));
        assert!(!is_unseen(&column("workflow_name", false)));
        assert!(!is_unseen(&column("of_the_applications_own", true)));
    }
}
