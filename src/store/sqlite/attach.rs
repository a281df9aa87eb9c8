//! Installing and removing runspan in a SQLite file.

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use tokio::time::Instant;

use super::super::admin::{
    Admin, Attached, Detached, Plan, PurgeLoss, attached_elsewhere, missing_columns, shell_quoted,
};
use super::super::columns::{self, required};
use super::super::error::is_busy;
use super::super::{SCHEMA_VERSION, StoreError, own_statuses};
use super::capture::{MARK, Placed, TRIGGERS, same};
use super::sql::quoted;
use super::{BUSY_TIMEOUT, SqliteStore, reconcile, sql};

/// A table that can be attached to.
struct Table {
    /// As the database spells it.
    name: String,
    warnings: Vec<String>,
}

#[async_trait]
impl Admin for SqliteStore {
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError> {
        self.file()?;
        let mut connection = self.pool.acquire().await?;
        let table = inspect(&mut connection, plan).await?;
        let installed = installed_version(&mut connection).await?;
        Ok(format!(
            "PRAGMA journal_mode = WAL;\nBEGIN IMMEDIATE;\n{}COMMIT;\n\n\
             -- Adopts runs in flight. This transaction is as long as the table is large; `runspan attach` uses\n\
             -- short ones, and so does the relay if this part is omitted.\nBEGIN IMMEDIATE;\n{}COMMIT;\n",
            install_sql(installed, &table.name, plan),
            sql::reconcile(&quoted(&table.name))
        ))
    }

    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError> {
        self.file()?;
        let mut connection = self.pool.acquire().await?;
        let Table { name, mut warnings } = inspect(&mut connection, plan).await?;
        let mode = write_ahead(&mut connection).await?;
        if mode != "wal" {
            warnings.push(format!(
                "the journal mode stays {mode:?}, so the relay's reads and your writes wait for each other"
            ));
        }
        drop(connection);
        let mut tx = self.writing().await?;
        let installed = installed_version(&mut tx).await?;
        run(&mut tx, install_sql(installed, &name, plan)).await?;
        tx.commit().await?;
        let adopted = reconcile::reconcile(self).await?.entries;
        Ok(Attached { table: quoted(&name), adopted: Some(adopted), warnings })
    }

    async fn purge_loss(&self) -> Result<Option<PurgeLoss>, StoreError> {
        self.file()?;
        let mut snapshot = self.pool.begin().await?;
        let ours: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE name GLOB 'runspan_*'")
                .fetch_all(&mut *snapshot)
                .await?;
        if ours.is_empty() {
            return Ok(None);
        }
        let mut counts = [0; 5];
        for (count, (table, which)) in counts.iter_mut().zip([
            ("runspan_journal", "true"),
            ("runspan_outbox", "dead IS NULL"),
            ("runspan_outbox", "dead IS NOT NULL"),
            ("runspan_set_aside", "true"),
            ("runspan_open_runs", "true"),
        ]) {
            // One that was dropped by hand has nothing to lose.
            if ours.iter().any(|name| name == table) {
                // Safe: this function's own text.
                let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE {which}"));
                *count = sqlx::query_scalar(sql).fetch_one(&mut *snapshot).await?;
            }
        }
        let [entries, waiting, dead, set_aside, open_runs] = counts;
        Ok(Some(PurgeLoss { entries, waiting, dead, set_aside, open_runs, roles: Vec::new(), callers: None }))
    }

    async fn detach(&self, purge: bool) -> Result<Detached, StoreError> {
        self.file()?;
        let mut tx = self.writing().await?;
        let placed = Placed::read(&mut tx).await?;
        // Triggers before the tables that they name.
        let ours: Vec<(String, String)> = sqlx::query_as(
            "SELECT type, name FROM sqlite_schema
             WHERE name GLOB 'runspan_*' AND type IN ('trigger', 'view', 'table')
             ORDER BY CASE type WHEN 'trigger' THEN 0 WHEN 'view' THEN 1 ELSE 2 END",
        )
        .fetch_all(&mut *tx)
        .await?;
        let sql = ours
            .iter()
            .filter(|(_, name)| purge || name == MARK || TRIGGERS.contains(&name.as_str()))
            .map(|(kind, name)| format!("DROP {kind} {};\n", quoted(name)))
            .collect::<Vec<_>>()
            .concat();
        if sql.is_empty() {
            return Ok(Detached::Nothing);
        }
        run(&mut tx, sql).await?;
        tx.commit().await?;
        Ok(Detached::Removed {
            table: placed.table().map_or_else(|| "runspan's own tables".to_owned(), quoted),
        })
    }
}

/// Turns the write-ahead log on; the mode that came of it. SQLite does not wait for a writer here.
async fn write_ahead(connection: &mut SqliteConnection) -> Result<String, StoreError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await {
            Err(sqlx::Error::Database(error)) if is_busy(error.as_ref()) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => return Ok(other?),
        }
    }
}

async fn run(connection: &mut SqliteConnection, sql: String) -> Result<(), StoreError> {
    // Safe: built from this crate's own text and quoted names.
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// What is missing of the tables, and the triggers.
fn install_sql(installed: i32, table: &str, plan: &Plan) -> String {
    let known = usize::try_from(installed).unwrap_or_default();
    let version = if known < sql::MIGRATIONS.len() {
        format!("UPDATE runspan_meta SET version = {SCHEMA_VERSION};\n")
    } else {
        String::new()
    };
    let bound = plan
        .max_journal_entries
        .map(|entries| format!("UPDATE runspan_meta SET max_journal_entries = {entries};\n"))
        .unwrap_or_default();
    sql::schema(known) + &version + &bound + &sql::triggers(&quoted(table)) + &mark_sql(table)
}

/// Notes which table was attached to, as a view that names no table: SQLite drops the triggers with the table, and takes
/// them along when it is renamed.
fn mark_sql(table: &str) -> String {
    let table = table.replace('\'', "''");
    format!("DROP VIEW IF EXISTS {MARK};\nCREATE VIEW {MARK} (table_name) AS SELECT '{table}';\n")
}

/// The version that is installed; 0 for none.
pub(super) async fn installed_version(connection: &mut SqliteConnection) -> Result<i32, StoreError> {
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'runspan_meta')")
            .fetch_one(&mut *connection)
            .await?;
    if !exists {
        return Ok(0);
    }
    let version = sqlx::query_scalar("SELECT version FROM runspan_meta").fetch_one(connection).await?;
    if version > SCHEMA_VERSION { Err(StoreError::SchemaNewer { found: version }) } else { Ok(version) }
}

/// Finds the table and checks that it can be attached to.
async fn inspect(connection: &mut SqliteConnection, plan: &Plan) -> Result<Table, StoreError> {
    let unfit = |why: String| Err(StoreError::Unfit(why));
    if plan.grant.is_some() {
        return unfit(
            "SQLite has no roles: omit --grant; every process that can write the file can record refusals"
                .to_owned(),
        );
    }
    let wanted = plan.table.strip_prefix("main.").unwrap_or(&plan.table);
    let found: Option<(String, String)> = sqlx::query_as(
        "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = lower(?1)",
    )
    .bind(wanted)
    .fetch_optional(&mut *connection)
    .await?;
    let placed = Placed::read(connection).await?;
    let Some((name, kind)) = found else {
        let none = format!("there is no table {} in this database file", plan.table);
        return unfit(match placed.on() {
            Some(attached) => {
                format!(
                    "{none}, but runspan is attached to {attached}: write --table {}",
                    shell_quoted(attached)
                )
            }
            None => format!("{none}: create it, or name yours with --table TABLE"),
        });
    };
    let shown = quoted(&name);
    if kind != "table" {
        return unfit(format!("{shown} is not a table: triggers need the table itself"));
    }
    let columns: Vec<String> = sqlx::query_scalar("SELECT lower(name) FROM pragma_table_xinfo(?1)")
        .bind(&name)
        .fetch_all(&mut *connection)
        .await?;
    let missing: Vec<&str> =
        required().filter(|wanted| !columns.iter().any(|column| column == wanted)).collect();
    if !missing.is_empty() {
        let mut problems = vec![missing_columns(&shown, &missing)];
        if !missing.contains(&"id") {
            problems.extend(wrong_id(connection, &shown).await?);
        }
        return unfit(problems.join("; "));
    }
    let mut warnings = Vec::new();
    match placed.on() {
        Some(other) if !same(other, &name) => {
            if !placed.expected().is_some_and(|expected| same(expected, &name)) {
                return Err(attached_elsewhere(&quoted(other), &name));
            }
            warnings.push(format!("moved the triggers from {}", quoted(other)));
        }
        _ => {
            let missing = placed.missing(&name);
            let were_there = placed.table().is_some_and(|table| same(table, &name));
            if were_there && !missing.is_empty() {
                warnings.push(format!("{shown} had lost triggers: created {} again", missing.join(", ")));
            }
        }
    }
    if !finds_by_id(connection, &name).await? {
        return unfit(format!(
            "{shown}.id has no index, and the triggers look for parents by it: \
             CREATE UNIQUE INDEX {} ON {shown} (id);",
            quoted(&format!("idx_{name}_id"))
        ));
    }
    warnings.extend(statuses_in_checks(connection, &name).await?);
    warnings.extend(inspect_values(connection, &shown).await?);
    let indexed: bool = sqlx::query_scalar(
        // Not one of runs that ended so or so.
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema
             WHERE type = 'index' AND tbl_name = ?1 AND sql LIKE '%status%'
               AND (sql NOT LIKE '% WHERE %' OR sql LIKE '%queued%' AND sql LIKE '%running%'
                    OR sql LIKE '%NOT IN%' OR sql LIKE '%<>%' OR sql LIKE '%!=%'))",
    )
    .bind(&name)
    .fetch_one(&mut *connection)
    .await?;
    if !indexed {
        warnings.push(format!(
            "no index of {shown} finds the runs in flight; the relay searches for them once a minute: \
             CREATE INDEX {} ON {shown} (id) WHERE status IN ({});",
            quoted(&format!("idx_{name}_inflight_ids")),
            columns::in_flight()
        ));
    }
    Ok(Table { name, warnings })
}

/// Whether a run is found by its id without a scan. An index of the id's is enough, whatever SQLite would choose now; a
/// column with a collation of its own needs one with the same, which only SQLite can tell.
async fn finds_by_id(connection: &mut SqliteConnection, table: &str) -> Result<bool, StoreError> {
    let is_indexed: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) i JOIN pragma_index_xinfo(i.name) x ON x.seqno = 0
             WHERE i.partial = 0 AND lower(x.name) = 'id' AND upper(x.coll) = 'BINARY')",
    )
    .bind(table)
    .fetch_one(&mut *connection)
    .await?;
    if is_indexed {
        return Ok(true);
    }
    // Safe: this crate's own text and a quoted name.
    let plan = AssertSqlSafe(format!("EXPLAIN QUERY PLAN SELECT 1 FROM {} WHERE id = ?1", quoted(table)));
    let steps = sqlx::query(plan).bind("").fetch_all(connection).await?;
    let steps = steps.iter().map(|step| step.try_get(3)).collect::<Result<Vec<String>, _>>()?;
    // ANY: SQLite would look at each value of the columns before the id.
    Ok(steps.iter().any(|step| step.starts_with("SEARCH ") && !step.contains("ANY(")))
}

/// Warns of statuses of the application's own that a CHECK constraint lists.
async fn statuses_in_checks(
    connection: &mut SqliteConnection,
    table: &str,
) -> Result<Option<String>, StoreError> {
    let definition: String =
        sqlx::query_scalar("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1")
            .bind(table)
            .fetch_one(&mut *connection)
            .await?;
    let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_xinfo(?1)")
        .bind(table)
        .fetch_all(connection)
        .await?;
    let listed = own_statuses::in_checks(&definition, "status", &columns);
    Ok(own_statuses::warning(listed.iter().map(String::as_str)))
}

/// Refuses values that nothing can be made of, and warns of those that make less of a run, as far as the first rows show
/// them: any type may be in any column.
async fn inspect_values(connection: &mut SqliteConnection, table: &str) -> Result<Vec<String>, StoreError> {
    if let Some(problem) = wrong_id(connection, table).await? {
        return Err(StoreError::Unfit(problem));
    }
    let kind = format!("SELECT typeof(created_at) FROM {table} LIMIT 1");
    // Safe: this crate's own text and a quoted name.
    let kind: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(kind)).fetch_optional(&mut *connection).await?;
    let mut warnings = Vec::new();
    if let Some(created_at) = kind.filter(|kind| kind != "text") {
        warnings.push(format!(
            "{table}.created_at holds values of type {created_at}, not ISO 8601 text: \
             runs begin when the journal first hears of them"
        ));
    }
    for (shown, wrong, consequence) in VALUES.iter() {
        let found = find_value(connection, table, shown, wrong).await?;
        warnings.extend(found.map(|found| format!("{table}.{}", consequence.replace("{}", &found))));
    }
    Ok(warnings)
}

/// An id that is no UUID.
async fn wrong_id(connection: &mut SqliteConnection, table: &str) -> Result<Option<String>, StoreError> {
    let id = find_value(connection, table, "quote(w.id)", &format!("NOT ({})", sql::IS_RUN)).await?;
    Ok(id.map(|id| {
        format!("{table}.id holds {id}, and has to hold UUIDs as text, in one case, with all hyphens or none")
    }))
}

/// What to show of the first row `w` that has a wrong value, among the first 1,000.
async fn find_value(
    connection: &mut SqliteConnection,
    table: &str,
    shown: &str,
    wrong: &str,
) -> Result<Option<String>, StoreError> {
    let sql = format!(
        "SELECT CAST(substr({shown}, 1, 64) AS BLOB) FROM (SELECT * FROM {table} LIMIT 1000) w WHERE {wrong} LIMIT 1"
    );
    // Safe: this crate's own text and a quoted name.
    let found: Option<Vec<u8>> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(connection).await?;
    Ok(found.map(|found| String::from_utf8_lossy(&found).into_owned()))
}

/// What to show of a row `w`, which rows have it, and what comes of that.
static VALUES: LazyLock<[(&str, String, &str); 3]> = LazyLock::new(|| {
    [
        (
            "quote(w.status)",
            format!("w.status NOT IN ({})", columns::statuses()),
            "status holds {}, which is not a known status: spans of runs that end so stay open, see docs/table.md",
        ),
        (
            "quote(w.target_number)",
            "w.target_number IS NOT CAST(w.target_number AS INTEGER)".to_owned(),
            "target_number holds {}, which is not an integer: such runs have no target",
        ),
        (
            "typeof(w.state)",
            "typeof(w.state) NOT IN ('text', 'null')".to_owned(),
            "state holds values of type {}, not JSON text: no reason and no traceparent is read from them",
        ),
    ]
});
