//! Installing and removing runspan in a PostgreSQL database.

use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Row as _};

use super::super::attach::{Attach, Attached, COLUMNS, Detached, Plan, PurgeLoss, lacks};
use super::super::stuck::PATIENCE;
use super::super::{CaptureProblem, SCHEMA_VERSION, Store, StoreError};
use super::PgStore;

/// runspan's schema, version by version. Append-only.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize] =
    [include_str!("schema.sql"), include_str!("schema_2.sql")];
const FUNCTIONS: &str = include_str!("functions.sql");
const TRIGGERS: &str = include_str!("triggers.sql");

/// What a status can be.
const STATUSES: [&str; 5] = ["queued", "running", "succeeded", "failed", "incomplete"];

/// SQLSTATE `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// SQLSTATE `invalid_name`, `syntax_error`, `feature_not_supported`: what a name with spaces or dots leads to.
const NO_NAME: [&str; 3] = ["42602", "42601", "0A000"];

/// While a trigger's creation waits for its table lock, writers queue behind it: so it waits briefly, often.
const LOCK_TABLE_BRIEFLY: &str = "SET LOCAL lock_timeout = '200ms'";

/// A table that can be attached to.
struct Table {
    /// Quoted, with its schema.
    name: String,
    /// Its owner's role, quoted.
    owner: String,
    /// Whether it has the triggers already.
    attached: bool,
    warnings: Vec<String>,
}

impl Table {
    /// The triggers, made as the table's owner.
    fn triggers(&self) -> String {
        format!("SET LOCAL ROLE {};\n{}", self.owner, TRIGGERS.replace("{table}", &self.name))
    }
}

#[async_trait]
impl Attach for PgStore {
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let table = inspect(&mut connection, plan).await?;
        let schema = schema_sql(&mut connection, &table).await?;
        let grants = grant_sql(&mut connection, plan).await?;
        Ok(format!(
            "BEGIN;\n{schema}{grants}COMMIT;\n\n\
             BEGIN;\n{LOCK_TABLE_BRIEFLY};\n{}COMMIT;\n\n\
             SELECT runspan.reconcile();\n",
            table.triggers()
        ))
    }

    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let table = inspect(&mut connection, plan).await?;
        let mut tx = sqlx::Connection::begin(&mut *connection).await?;
        // Two attaches at once would trip over each other's CREATE.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext('runspan attach'))").execute(&mut *tx).await?;
        let sql = schema_sql(&mut tx, &table).await? + &grant_sql(&mut tx, plan).await?;
        run(&mut tx, sql).await?;
        tx.commit().await?;
        drop(connection);

        self.locking_the_table(&table.triggers(), &table.name).await?;
        let adopted = match self.reconcile().await {
            Ok(reconciled) => Some(reconciled.entries),
            Err(error) => return Err(self.undo(&table, error).await),
        };
        Ok(Attached { table: table.name, adopted, warnings: table.warnings })
    }

    async fn attached_table(&self) -> Result<Option<String>, StoreError> {
        let triggers = installed_triggers(&self.pool).await?;
        Ok(triggers.into_iter().next().map(|(_, table)| table))
    }

    async fn capture(&self) -> Result<Vec<CaptureProblem>, StoreError> {
        Ok(Vec::new())
    }

    async fn purge_loss(&self) -> Result<Option<PurgeLoss>, StoreError> {
        Ok(None)
    }

    async fn detach(&self, purge: bool) -> Result<Detached, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let triggers = installed_triggers(&mut *connection).await?;
        let schema: bool = sqlx::query_scalar("SELECT to_regnamespace('runspan') IS NOT NULL")
            .fetch_one(&mut *connection)
            .await?;
        drop(connection);
        let drop =
            |(trigger, table): &(String, String)| format!("DROP TRIGGER IF EXISTS {trigger} ON {table};\n");
        let mut sql = triggers.iter().map(drop).collect::<Vec<_>>().concat();
        if purge && schema {
            sql += "DROP SCHEMA runspan CASCADE;\n";
        }
        if sql.is_empty() {
            return Ok(Detached::Nothing);
        }
        let table =
            triggers.first().map_or_else(|| "the schema runspan".to_owned(), |(_, table)| table.clone());
        self.locking_the_table(&sql, &table).await?;
        Ok(Detached::Removed { table })
    }
}

impl PgStore {
    /// Takes the triggers of a new attach away again, whose runs in flight could not be taken in.
    async fn undo(&self, table: &Table, error: StoreError) -> StoreError {
        let now = if !table.attached && self.detach(false).await.is_ok() {
            "the triggers were removed again"
        } else {
            "the triggers are installed"
        };
        StoreError::Unfit(format!("the runs in flight of {} cannot be taken in ({error}); {now}", table.name))
    }

    /// Runs `sql` in one transaction that never makes the table's writers wait for long.
    async fn locking_the_table(&self, sql: &str, table: &str) -> Result<(), StoreError> {
        let attempt = || async {
            let mut connection = self.pool.acquire().await?;
            let mut tx = sqlx::Connection::begin(&mut *connection).await?;
            sqlx::query(LOCK_TABLE_BRIEFLY).execute(&mut *tx).await?;
            run(&mut tx, sql.to_owned()).await?;
            tx.commit().await.map_err(StoreError::from)
        };
        let patience = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(1))
            .with_max_times(30);
        attempt
            .retry(patience)
            .sleep(tokio::time::sleep)
            .when(is_locked)
            .notify(|_, wait| {
                tracing::info!(table, wait_ms = wait.as_millis(), "the table is locked; trying again");
            })
            .await
            .map_err(|error| {
                if is_locked(&error) {
                    StoreError::Unfit(format!(
                        "{table} stays locked by another session: end its long transactions \
                         (pg_stat_activity) and try again; nothing was changed on the table"
                    ))
                } else {
                    error
                }
            })
    }
}

fn is_locked(error: &StoreError) -> bool {
    let StoreError::Database(sqlx::Error::Database(error)) = error else { return false };
    error.code().as_deref() == Some(LOCK_NOT_AVAILABLE)
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), StoreError> {
    // Safe: built from this crate's own text and from names that the database has quoted.
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// What is missing of schema and functions.
///
/// All of it belongs to the table's owner, and so the functions run as that role: were they the attaching role's
/// (a superuser's, say), the owner could put a view in the table's place and have them run whatever it calls.
async fn schema_sql(connection: &mut PgConnection, table: &Table) -> Result<String, StoreError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regnamespace('runspan') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    let owned = if exists {
        hand_over_sql(connection, table).await?
    } else {
        format!("CREATE SCHEMA runspan AUTHORIZATION {};\n", table.owner)
    };
    let known = usize::try_from(installed_version(connection).await?).unwrap_or_default();
    let version = if known < MIGRATIONS.len() {
        format!("UPDATE runspan.meta SET version = {SCHEMA_VERSION};\n")
    } else {
        String::new()
    };
    Ok(format!(
        "{owned}SET LOCAL ROLE {};\n{}{version}{}",
        table.owner,
        MIGRATIONS[known.min(MIGRATIONS.len())..].concat(),
        FUNCTIONS
            .replace("{table}", &table.name)
            .replace("{literal}", &format!("'{}'", table.name.replace('\'', "''")))
            .replace("{patience}", PATIENCE)
    ))
}

/// What hands to the table's owner whatever is in an existing schema and belongs to another; refused if that
/// may be someone's trap.
async fn hand_over_sql(connection: &mut PgConnection, table: &Table) -> Result<String, StoreError> {
    let strangers: Vec<(String, String, bool, String)> = sqlx::query_as(
        "WITH things (place, what, owner, change) AS (
             SELECT 0, 'the schema runspan', nspowner, 'SCHEMA runspan'
             FROM pg_namespace WHERE nspname = 'runspan'
             UNION ALL
             SELECT 1, format('runspan.%I', relname), relowner, format('TABLE runspan.%I', relname)
             FROM pg_class c WHERE relnamespace = to_regnamespace('runspan') AND relkind IN ('r','p','S','v','m','f')
               -- A column's own sequence goes with its table.
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND relkind = 'S')
             UNION ALL
             SELECT 2, format('runspan.%I()', proname), proowner,
                 format('ROUTINE runspan.%I(%s)', proname, pg_get_function_identity_arguments(oid))
             FROM pg_proc WHERE pronamespace = to_regnamespace('runspan'))
         SELECT what, rolname::text, (r.rolsuper OR rolname = current_user) AND pg_has_role(r.oid, 'USAGE'),
             format('ALTER %s OWNER TO %s;', change, $1)
         FROM things JOIN pg_roles r ON r.oid = owner
         WHERE quote_ident(rolname) <> $1
         ORDER BY place, what",
    )
    .bind(&table.owner)
    .fetch_all(connection)
    .await?;
    if let Some((what, other, ..)) = strangers.iter().find(|(_, _, trusted, _)| !trusted) {
        return Err(StoreError::Unfit(format!(
            "{what} belongs to role {other:?}, and not to {}, who owns {}: hand it over (ALTER … OWNER TO) if it is \
             runspan's, drop it if not",
            table.owner, table.name
        )));
    }
    Ok(strangers.into_iter().map(|(.., change)| change + "\n").collect())
}

/// The version that is installed; 0 for none.
async fn installed_version(connection: &mut PgConnection) -> Result<i32, StoreError> {
    let kind: Option<String> =
        sqlx::query_scalar("SELECT relkind::text FROM pg_class WHERE oid = to_regclass('runspan.meta')")
            .fetch_optional(&mut *connection)
            .await?;
    match kind.as_deref() {
        None => return Ok(0),
        Some("r") => {}
        // To read a view is to run what its owner likes.
        Some(_) => {
            return Err(StoreError::Unfit("runspan.meta is no table: drop the schema runspan".to_owned()));
        }
    }
    let version = sqlx::query_scalar("SELECT version FROM runspan.meta").fetch_one(connection).await?;
    if version > SCHEMA_VERSION { Err(StoreError::SchemaNewer { found: version }) } else { Ok(version) }
}

/// The triggers that call runspan, with their tables, both quoted.
async fn installed_triggers(executor: impl PgExecutor<'_>) -> Result<Vec<(String, String)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT quote_ident(t.tgname), format('%I.%I', n.nspname, c.relname)
         FROM pg_trigger t
         JOIN pg_proc p ON p.oid = t.tgfoid
         JOIN pg_class c ON c.oid = t.tgrelid
         JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE p.pronamespace = to_regnamespace('runspan') AND t.tgparentid = 0
         ORDER BY 2, 1",
    )
    .fetch_all(executor)
    .await?)
}

/// What `dispatch_refused` needs, and nothing else.
async fn grant_sql(connection: &mut PgConnection, plan: &Plan) -> Result<String, StoreError> {
    let Some(role) = &plan.grant else { return Ok(String::new()) };
    let quoted: Option<String> =
        sqlx::query_scalar("SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = $1")
            .bind(role)
            .fetch_optional(connection)
            .await?;
    let quoted = quoted.ok_or_else(|| {
        StoreError::Unfit(format!("there is no role {role:?}: create it, or name another with --grant"))
    })?;
    Ok(format!(
        "GRANT USAGE ON SCHEMA runspan TO {quoted};\n\
         GRANT EXECUTE ON FUNCTION runspan.dispatch_refused TO {quoted};\n"
    ))
}

/// Finds the table and checks that it can be attached to. An index of runs that ended in some way finds none in
/// flight.
async fn inspect(connection: &mut PgConnection, plan: &Plan) -> Result<Table, StoreError> {
    let unfit = |why: String| Err(StoreError::Unfit(why));
    let found = sqlx::query(
        "SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname), c.relkind::text,
                c.relrowsecurity AND c.relforcerowsecurity AND NOT (r.rolsuper OR r.rolbypassrls),
                EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'status'
                        WHERE i.indrelid = c.oid AND i.indisvalid
                          AND (i.indpred IS NULL AND i.indkey[0] = a.attnum
                               OR pg_get_expr(i.indpred, c.oid) ~ '\\mstatus\\M.*(queued.*running|running.*queued|<>)')),
                quote_ident(r.rolname), current_user::text,
                pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000
                                        THEN 'SET' ELSE 'MEMBER' END)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.oid = to_regclass($1)",
    )
    .bind(&plan.table)
    .fetch_optional(&mut *connection)
    .await;
    let found = match found {
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| NO_NAME.contains(&code.as_ref())) =>
        {
            return unfit(format!(
                "{} names no table ({}): quote what is no plain word, as in --table '\"My Schema\".\"Workflow Runs\"'",
                plan.table,
                error.message()
            ));
        }
        found => found?,
    };
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
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT attname::text, format_type(CASE typtype WHEN 'd' THEN typbasetype ELSE atttypid END, NULL)
         FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
         WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped",
    )
    .bind(oid)
    .fetch_all(&mut *connection)
    .await?;
    let type_of =
        |wanted: &str| columns.iter().find(|(column, _)| column == wanted).map(|(_, kind)| kind.as_str());
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| type_of(column).is_none()).collect();
    if !missing.is_empty() {
        return unfit(lacks(&name, &missing));
    }
    for (column, wanted) in [
        ("id", &["uuid"][..]),
        ("parent_run_id", &["uuid"]),
        ("state", &["jsonb", "json"]),
        ("created_at", &["timestamp with time zone"]),
        ("updated_at", &["timestamp with time zone"]),
        ("target_number", &["integer", "bigint", "smallint", "numeric"]),
    ] {
        let is = type_of(column).unwrap_or_default();
        if !wanted.contains(&is) {
            return unfit(format!(
                "{name}.{column} has the type {is}, and has to be {}",
                wanted.join(" or ")
            ));
        }
    }
    let mut warnings = Vec::new();
    if !matches!(type_of("status").unwrap_or_default(), "text" | "character varying" | "character") {
        warnings.extend(inspect_enum(connection, oid, &name).await?);
    }
    let others = installed_triggers(connection).await?;
    if let Some((_, other)) = others.iter().find(|(_, table)| *table != name) {
        return unfit(format!("runspan is attached to {other} in this database: `runspan detach` first"));
    }
    let indexed: bool = found.try_get(4)?;
    if !indexed {
        // A partitioned table's index cannot be made so.
        let concurrently = if kind == "p" { "" } else { "CONCURRENTLY " };
        warnings.push(format!(
            "no index of {name} finds the runs in flight; the relay looks for them once a minute: \
             CREATE INDEX {concurrently}ON {name} (id) WHERE status IN ('queued', 'running');"
        ));
    }
    Ok(Table { name, owner, attached: !others.is_empty(), warnings })
}

/// Says that there is no such table, and which there is.
async fn not_found(connection: &mut PgConnection, table: &str) -> Result<String, StoreError> {
    let last = table.rsplit('.').next().unwrap_or_default().trim_matches('"');
    let (database, similar): (String, Option<String>) = sqlx::query_as(
        "SELECT current_database()::text, (
             SELECT format('%I.%I', n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE lower(c.relname) = lower($1) AND c.relname <> lower($1) AND c.relkind IN ('r', 'p')
             ORDER BY 1 LIMIT 1)",
    )
    .bind(last)
    .fetch_one(connection)
    .await?;
    Ok(similar.map_or_else(
        || {
            format!(
                "there is no table {table} in database {database:?}: create it, or name yours with --table SCHEMA.TABLE"
            )
        },
        |similar| format!("there is no table {table} in database {database:?}, but {similar}: write --table '{similar}'"),
    ))
}

/// Checks that the type of a status that is no text can hold what runspan looks for; what to warn of.
async fn inspect_enum(
    connection: &mut PgConnection,
    oid: i64,
    table: &str,
) -> Result<Option<String>, StoreError> {
    let (kind, labels): (String, Vec<String>) = sqlx::query_as(
        "SELECT format_type(t.oid, NULL),
                ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder)
         FROM pg_attribute a
         JOIN pg_type d ON d.oid = a.atttypid
         JOIN pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
         WHERE a.attrelid = $1::oid AND a.attname = 'status'",
    )
    .bind(oid)
    .fetch_one(connection)
    .await?;
    if labels.is_empty() {
        return Err(StoreError::Unfit(format!(
            "{table}.status has the type {kind}, and has to be text, varchar or an enum"
        )));
    }
    let missing: Vec<&str> =
        STATUSES.into_iter().filter(|status| !labels.iter().any(|label| label == status)).collect();
    if !missing.is_empty() {
        return Err(StoreError::Unfit(format!(
            "{table}.status has the type {kind}, which lacks {}: ALTER TYPE {kind} ADD VALUE …",
            missing.join(", ")
        )));
    }
    let own: Vec<&str> =
        labels.iter().map(String::as_str).filter(|label| !STATUSES.contains(label)).collect();
    Ok((!own.is_empty()).then(|| {
        format!(
            "runs that end in a status of your own ({}) are not understood: their spans stay open, see docs/table.md",
            own.join(", ")
        )
    }))
}
