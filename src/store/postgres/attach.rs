//! Installing and removing runspan in a PostgreSQL database.

use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use sqlx::{AssertSqlSafe, PgConnection};

use super::super::admin::{Admin, Attached, Detached, Plan, PurgeLoss, attached_elsewhere};
use super::super::{SCHEMA_VERSION, StoreError, error};
use super::as_owner::{Roles, read_as_owner};
use super::capture::{self, MARK, Trigger, triggers};
use super::functions::{functions, literal};
use super::grants::{self, Grants};
use super::inspect::{Table, inspect};
use super::{PgStore, purge, reconcile, relay_rights};

/// runspan's schema, version by version. Append-only.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize] =
    [include_str!("schema.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];
const CREATE_TRIGGER: &str = include_str!("trigger.sql");

/// Its name, quoted. It sorts before those of the application's triggers, which fire after it.
const TRIGGER: &str = "\"!runspan\"";

/// The tables, sequences and views of the schema.
const RELATIONS: [&str; 13] = [
    "meta",
    "journal",
    "journal_seq",
    "journal_room",
    "journal_skipped",
    "set_aside",
    "open_runs",
    "commits",
    "outbox",
    "lease",
    "series",
    "deltas",
    "stuck",
];

/// While a trigger's creation waits for its table lock, writers queue behind it: so it waits briefly, often. Less than
/// an application's own `lock_timeout` of 50 ms.
const LOCK_TABLE_BRIEFLY: &str = "SET LOCAL lock_timeout = '20ms'";

/// What an attach runs, in two transactions.
struct Install {
    table: Table,
    schema: String,
    trigger: String,
    warnings: Vec<String>,
}

#[async_trait]
impl Admin for PgStore {
    async fn attach_sql(&self, plan: &Plan) -> Result<String, StoreError> {
        let mut tx = self.pool.begin_admin().await?;
        let Install { schema, trigger, .. } = self.install(&mut tx, plan).await?;
        Ok(format!(
            "SET client_encoding = 'UTF8';\n\nBEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\n{schema}COMMIT;\n\nBEGIN;\n{LOCK_TABLE_BRIEFLY};\n{trigger}COMMIT;\n\n\
             -- The runs in flight are adopted when a relay starts.\n"
        ))
    }

    async fn attach(&self, plan: &Plan) -> Result<Attached, StoreError> {
        let mut tx = self.pool.begin_admin().await?;
        // Two attaches at once would trip over each other's CREATE.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext('runspan attach'))").execute(&mut *tx).await?;
        let Install { table, schema, trigger, warnings } = self.install(&mut tx, plan).await?;
        run(&mut tx, schema).await?;
        tx.commit().await?;

        self.locking_the_table(&trigger, &table.name).await?;
        // Reconciling runs functions that are the owner's: with the owner's rights, or not at all.
        let adopted = if table.is_mine {
            match reconcile::reconcile(&self.pool).await {
                Ok(reconciled) => Some(reconciled.entries),
                Err(error) => return Err(self.undo(&table, error).await),
            }
        } else {
            None
        };
        Ok(Attached { table: table.name, adopted, warnings })
    }

    async fn relay_grants(&self, role: &str) -> Result<String, StoreError> {
        let mut tx = self.pool.begin_admin().await?;
        Ok(relay_rights::grants(&grants::role(&mut tx, role, "--relay-role").await?))
    }

    async fn grant_relay(&self, role: &str) -> Result<(), StoreError> {
        let mut tx = self.pool.begin_admin().await?;
        let role = grants::role(&mut tx, role, "--relay-role").await?;
        let owner = Roles::of(&mut *tx).await?.owner.ok_or(StoreError::NotAttached)?;
        run(&mut tx, format!("SET LOCAL ROLE {owner};\n{}", relay_rights::grants(&role))).await?;
        Ok(tx.commit().await?)
    }

    async fn explain_denial(&self, error: StoreError) -> StoreError {
        self.name_missing_rights(error).await
    }

    async fn purge_loss(&self) -> Result<Option<PurgeLoss>, StoreError> {
        purge::loss(self).await
    }

    async fn detach(&self, purge: bool) -> Result<Detached, StoreError> {
        let catalogue = self.pool.for_catalogue();
        let triggers = triggers(&catalogue).await?;
        let recorded = capture::recorded_table(&catalogue).await?;
        let schema: bool =
            sqlx::query_scalar("SELECT to_regnamespace('runspan') IS NOT NULL").fetch_one(&catalogue).await?;
        let mut sql = drop_triggers(triggers.iter());
        if purge && schema {
            sql += "DROP SCHEMA runspan CASCADE;\n";
        } else if recorded.is_some() {
            sql += "COMMENT ON FUNCTION runspan.journal_run() IS NULL;\n";
        }
        if sql.is_empty() {
            return Ok(Detached::Nothing);
        }
        let table =
            triggers.first().map_or_else(|| "the schema runspan".to_owned(), |trigger| trigger.table.clone());
        self.locking_the_table(&sql, &table).await?;
        Ok(Detached::Removed { table })
    }
}

impl PgStore {
    /// What has to be run to attach.
    async fn install(&self, connection: &mut PgConnection, plan: &Plan) -> Result<Install, StoreError> {
        let mut table = inspect(connection, plan).await?;
        let mut warnings = std::mem::take(&mut table.warnings);
        let triggers = triggers(&mut *connection).await?;
        let trigger = trigger_sql(connection, &table, &triggers, &mut warnings).await?;
        let schema = self.schema_sql(connection, &table).await? + &bound_sql(plan);
        let grants = Grants::of(connection, plan, &table.owner).await?;
        warnings.extend(grants.warning);
        Ok(Install { table, schema: schema + &grants.sql, trigger, warnings })
    }

    /// Takes the triggers of a new attach away again, whose runs in flight could not be adopted.
    async fn undo(&self, table: &Table, error: StoreError) -> StoreError {
        let now = if !table.is_attached && self.detach(false).await.is_ok() {
            "the triggers were removed again"
        } else {
            "the triggers are installed"
        };
        StoreError::Unfit(format!("the runs in flight of {} cannot be adopted ({error}); {now}", table.name))
    }

    /// What is missing of schema and functions.
    ///
    /// All of it belongs to the table's owner, and so the functions run as that role: were they the attaching role's
    /// (a superuser's, say), the owner could put a view in the table's place and have them run whatever it calls.
    async fn schema_sql(&self, connection: &mut PgConnection, table: &Table) -> Result<String, StoreError> {
        let exists: bool = sqlx::query_scalar("SELECT to_regnamespace('runspan') IS NOT NULL")
            .fetch_one(&mut *connection)
            .await?;
        let owned = if exists {
            hand_over_sql(connection, table).await?
        } else {
            may_create_schema(connection).await?;
            format!("CREATE SCHEMA runspan AUTHORIZATION {};\n", table.owner)
        };
        let known = usize::try_from(self.installed_version(connection, table).await?).unwrap_or_default();
        let version = if known < MIGRATIONS.len() {
            format!("UPDATE runspan.meta SET version = {SCHEMA_VERSION};\n")
        } else {
            String::new()
        };
        Ok(format!(
            "{owned}SET LOCAL ROLE {};\n{}{version}{}",
            table.owner,
            MIGRATIONS[known.min(MIGRATIONS.len())..].concat(),
            functions(&table.name)
        ))
    }

    /// The version that is installed; 0 for none.
    async fn installed_version(
        &self,
        connection: &mut PgConnection,
        table: &Table,
    ) -> Result<i32, StoreError> {
        // Both are the session's role's or a superuser's, who could do as they like anyway, or else someone else's.
        let found: Option<(String, bool)> = sqlx::query_as(
            "SELECT c.relkind::text, bool_and(o.rolname = session_user OR o.rolsuper)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_roles o ON o.oid IN (c.relowner, n.nspowner)
             WHERE c.oid = to_regclass('runspan.meta') GROUP BY 1",
        )
        .fetch_optional(&mut *connection)
        .await?;
        let is_trusted = match found {
            None => return Ok(0),
            Some((kind, is_trusted)) if kind == "r" => is_trusted,
            // To read a view is to run what its owner likes.
            Some(_) => {
                return Err(StoreError::Unfit(
                    "runspan.meta is no table: drop the schema runspan".to_owned(),
                ));
            }
        };
        let version = if is_trusted {
            sqlx::query_scalar("SELECT version FROM runspan.meta").fetch_one(connection).await?
        } else {
            let reader = self.pool.detached().await?;
            let query = "(SELECT version::text FROM runspan.meta)";
            let version = read_as_owner(reader, &table.owner, query).await?;
            version.and_then(|version| version.parse().ok()).ok_or_else(|| StoreError::Corrupt {
                what: "runspan.meta".to_owned(),
                cause: "it holds no version".to_owned(),
            })?
        };
        if version > SCHEMA_VERSION {
            return Err(StoreError::SchemaNewer { found: version });
        }
        if version < SCHEMA_VERSION && !is_trusted {
            // A trigger of the owner's on the table would run with this session's rights.
            return Err(StoreError::Unfit(format!(
                "the schema runspan has version {version} and belongs to {owner}: only {owner} can bring it to \
                 {SCHEMA_VERSION}: attach as {owner}",
                owner = table.owner
            )));
        }
        Ok(version)
    }

    /// Runs `sql` in one transaction that never makes the table's writers wait for long.
    async fn locking_the_table(&self, sql: &str, table: &str) -> Result<(), StoreError> {
        let attempt = || async {
            let mut tx = self.pool.begin_admin().await?;
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

/// The bound of the journal: what the plan says, or what is there.
fn bound_sql(plan: &Plan) -> String {
    let change = plan
        .max_journal_entries
        .map(|entries| format!("UPDATE runspan.meta SET max_journal_entries = {entries};\n"))
        .unwrap_or_default();
    change + "SELECT runspan.make_room();\n"
}

/// Checks that the session's role may create the schema.
async fn may_create_schema(connection: &mut PgConnection) -> Result<(), StoreError> {
    let denied: Option<(String, String)> = sqlx::query_as(
        "SELECT quote_ident(current_user), quote_ident(current_database())
         WHERE NOT has_database_privilege(current_database(), 'CREATE')",
    )
    .fetch_optional(connection)
    .await?;
    denied.map_or(Ok(()), |(me, database)| {
        Err(StoreError::Unfit(format!(
            "{me} may not create the schema runspan: GRANT CREATE ON DATABASE {database} TO {me};"
        )))
    })
}

fn is_locked(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(error) if error::is_locked(error))
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), StoreError> {
    // Safe: built from this crate's own text and from names that the database has quoted.
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// What hands runspan's own things to the table's owner where an older attach left them to the role that ran it. Refused
/// if the schema is not that role's as well, or holds anything else: it may be someone's trap.
async fn hand_over_sql(connection: &mut PgConnection, table: &Table) -> Result<String, StoreError> {
    let strangers: Vec<(String, String, bool, String)> = sqlx::query_as(
        "WITH things (place, what, owner, is_own, change) AS (
             SELECT 0, 'the schema runspan', nspowner, true, 'SCHEMA runspan'
             FROM pg_namespace WHERE nspname = 'runspan'
             UNION ALL
             SELECT 1, format('runspan.%I', relname), relowner, relname = ANY ($2), format('TABLE runspan.%I', relname)
             FROM pg_class c WHERE relnamespace = to_regnamespace('runspan') AND relkind IN ('r','p','S','v','m','f')
               -- A column's own sequence goes with its table.
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND relkind = 'S')
             UNION ALL
             SELECT 2, format('runspan.%I()', proname), proowner, prolang <> ALL (
                     SELECT l.oid FROM pg_language l WHERE l.lanname IN ('c', 'internal')),
                 format('ROUTINE runspan.%I(%s)', proname, pg_get_function_identity_arguments(oid))
             FROM pg_proc WHERE pronamespace = to_regnamespace('runspan'))
         SELECT what, rolname::text,
             (r.rolsuper OR rolname = current_user) AND pg_has_role(r.oid, 'USAGE') AND is_own
                 AND (SELECT s.nspowner = r.oid FROM pg_namespace s WHERE s.nspname = 'runspan'),
             format('ALTER %s OWNER TO %s;', change, $1)
         FROM things JOIN pg_roles r ON r.oid = owner
         WHERE quote_ident(rolname) <> $1
         ORDER BY place, what",
    )
    .bind(&table.owner)
    .bind(&RELATIONS[..])
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

/// What puts the trigger on the table, in place of those that an older runspan made; refused if runspan is on another
/// table than the one that had this name.
async fn trigger_sql(
    connection: &mut PgConnection,
    table: &Table,
    triggers: &[Trigger],
    warnings: &mut Vec<String>,
) -> Result<String, StoreError> {
    let (here, elsewhere): (Vec<&Trigger>, Vec<&Trigger>) =
        triggers.iter().partition(|trigger| trigger.is_on(table.oid));
    if let Some(other) = elsewhere.first() {
        if capture::recorded_table(connection).await?.as_ref() != Some(&table.name) {
            return Err(attached_elsewhere(&other.table, &table.name));
        }
        warnings.push(format!(
            "{} is another table than before: the trigger was moved from {}, and what changed meanwhile was not \
             journalled; reconciliation adopts the runs in flight",
            table.name, other.table
        ));
    }
    let disabled: Vec<&&Trigger> = here.iter().filter(|trigger| trigger.is_disabled).collect();
    if !disabled.is_empty() {
        warnings.push(format!(
            "runspan's triggers on {} were disabled: enabled again; what changed meanwhile was not journalled, and \
             reconciliation finds what is still in flight",
            table.name
        ));
    }
    let enabled: Vec<String> = disabled
        .iter()
        .filter(|trigger| trigger.name == TRIGGER)
        .map(|trigger| format!("ALTER TABLE {} ENABLE TRIGGER {TRIGGER};\n", trigger.table))
        .collect();
    let old = here.into_iter().filter(|trigger| trigger.name != TRIGGER && !trigger.is_of_partition);
    Ok(format!(
        "{}SET LOCAL ROLE {};\n{}{}COMMENT ON FUNCTION runspan.journal_run() IS {};\n",
        drop_triggers(elsewhere.into_iter().chain(old)),
        table.owner,
        CREATE_TRIGGER.replace("{table}", &table.name),
        enabled.concat(),
        literal(&format!("{MARK}{}", table.name))
    ))
}

fn drop_triggers<'a>(triggers: impl Iterator<Item = &'a Trigger>) -> String {
    let drop = |Trigger { name, table, .. }: &Trigger| format!("DROP TRIGGER IF EXISTS {name} ON {table};\n");
    triggers.filter(|trigger| !trigger.is_of_partition).map(drop).collect()
}
