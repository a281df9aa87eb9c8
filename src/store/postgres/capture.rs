//! Whether the application's table still has the trigger, and the trigger the table.

use sqlx::{PgExecutor, Row as _};

use super::super::{CaptureProblem, StoreError};
use super::PgStore;
use super::pool::Pool;

/// The comment on the trigger's function while runspan is attached, before the table's name. A comment can be
/// read by every role, and outlives the table.
pub(super) const MARK: &str = "attached to ";

/// The events that the triggers have to cover, with their bits in `pg_trigger.tgtype`.
const EVENTS: [(i16, &str); 3] = [(4, "INSERT"), (16, "UPDATE"), (8, "DELETE")];

/// A trigger that calls runspan, on the application's table or, if it is disabled there, on a partition of it.
pub(super) struct Trigger {
    /// Its name, quoted.
    pub(super) name: String,
    /// Its table, quoted.
    pub(super) table: String,
    /// The table's oid.
    pub(super) relation: i64,
    /// Whether it is disabled.
    pub(super) is_disabled: bool,
    /// Whether it is a partition's copy.
    pub(super) is_of_partition: bool,
    /// The table that has the original, if it is a copy.
    parent: Option<i64>,
    /// `pg_trigger.tgtype`.
    events: i16,
}

impl Trigger {
    /// Whether it is on this table or on a partition of it.
    pub(super) fn is_on(&self, relation: i64) -> bool {
        self.parent.unwrap_or(self.relation) == relation
    }
}

/// The triggers that call runspan.
pub(super) async fn triggers(executor: impl PgExecutor<'_>) -> Result<Vec<Trigger>, StoreError> {
    sqlx::query(
        "SELECT quote_ident(t.tgname), format('%I.%I', n.nspname, c.relname), c.oid::bigint,
                t.tgenabled IN ('D', 'R'), t.tgparentid <> 0,
                CASE WHEN t.tgparentid <> 0 THEN pg_partition_root(c.oid)::oid::bigint END,
                -- One that was narrowed covers nothing. (Those of older versions have a WHEN.)
                CASE WHEN t.tgattr::text <> '' OR t.tgqual IS NOT NULL AND t.tgname = '!runspan'
                     THEN 0::smallint ELSE t.tgtype END
         FROM pg_trigger t
         JOIN pg_proc p ON p.oid = t.tgfoid
         JOIN pg_class c ON c.oid = t.tgrelid
         JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE p.pronamespace = to_regnamespace('runspan') AND (t.tgparentid = 0 OR t.tgenabled IN ('D', 'R'))
         ORDER BY t.tgparentid <> 0, 2, 1",
    )
    .fetch_all(executor)
    .await?
    .iter()
    .map(|row| {
        Ok(Trigger {
            name: row.try_get(0)?,
            table: row.try_get(1)?,
            relation: row.try_get(2)?,
            is_disabled: row.try_get(3)?,
            is_of_partition: row.try_get(4)?,
            parent: row.try_get(5)?,
            events: row.try_get(6)?,
        })
    })
    .collect()
}

/// The name under which a table was attached; none after a detach, or an attach by an older runspan.
pub(super) async fn recorded_table(executor: impl PgExecutor<'_>) -> Result<Option<String>, StoreError> {
    let comment: Option<String> =
        sqlx::query_scalar("SELECT obj_description(to_regprocedure('runspan.journal_run()'), 'pg_proc')")
            .fetch_one(executor)
            .await?;
    Ok(comment.and_then(|comment| comment.strip_prefix(MARK).map(str::to_owned)))
}

/// Why transitions of the attached table do not reach the journal, or cannot be reconciled.
pub(super) async fn capture(store: &PgStore) -> Result<Vec<CaptureProblem>, StoreError> {
    let catalogue = store.pool.for_catalogue();
    let triggers = triggers(&catalogue).await?;
    let recorded = recorded_table(&catalogue).await?;
    let named = match &recorded {
        Some(table) => relation(&catalogue, table).await?,
        None => None,
    };
    let Some(trigger) = triggers.iter().find(|trigger| !trigger.is_of_partition) else {
        return Ok(vec![match recorded {
            None => CaptureProblem::Detached,
            Some(table) if named.is_none() => CaptureProblem::TableMissing { table },
            Some(table) => CaptureProblem::TriggersMissing { table, triggers: missing_events(&[]) },
        }]);
    };
    let mut problems = Vec::new();
    if let Some(table) = recorded.filter(|_| named.is_some_and(|named| named != trigger.relation)) {
        problems.push(CaptureProblem::TableReplaced { table, attached: trigger.table.clone() });
    }
    let missing = missing_events(&triggers);
    if !missing.is_empty() {
        problems.push(CaptureProblem::TriggersMissing { table: trigger.table.clone(), triggers: missing });
    }
    let disabled: Vec<String> =
        triggers.iter().filter(|trigger| trigger.is_disabled).map(described).collect();
    if !disabled.is_empty() {
        problems.push(CaptureProblem::TriggersDisabled {
            table: trigger.table.clone(),
            triggers: disabled.join(", "),
        });
    }
    problems.extend(rights(&catalogue, trigger).await?);
    Ok(problems)
}

/// The table of this name, if there is one.
async fn relation(catalogue: &Pool, name: &str) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT oid::bigint FROM pg_class WHERE oid = to_regclass($1) AND relkind IN ('r', 'p')";
    Ok(sqlx::query_scalar(sql).bind(name).fetch_optional(catalogue).await?)
}

/// The events that no trigger covers.
fn missing_events(triggers: &[Trigger]) -> String {
    let covered = triggers.iter().fold(0, |covered, trigger| covered | trigger.events);
    let missing: Vec<&str> =
        EVENTS.into_iter().filter(|(bit, _)| covered & bit == 0).map(|(_, event)| event).collect();
    missing.join(", ")
}

fn described(trigger: &Trigger) -> String {
    if trigger.is_of_partition {
        format!("{} on {}", trigger.name, trigger.table)
    } else {
        trigger.name.clone()
    }
}

/// What else is needed, by the catalogue: that the trigger's function is ours and can write the journal, that the table has
/// what it reads, and that the role which reconciles sees all of it.
async fn rights(catalogue: &Pool, trigger: &Trigger) -> Result<Vec<CaptureProblem>, StoreError> {
    let row = sqlx::query(
        "SELECT quote_ident(r.rolname), quote_ident(s.rolname), c.relowner <> n.nspowner,
                c.relrowsecurity AND c.relforcerowsecurity AND NOT (r.rolsuper OR r.rolbypassrls),
                coalesce((SELECT NOT p.prosecdef OR p.proowner <> n.nspowner
                              OR strpos(p.prosrc, 'INSERT INTO runspan.journal') = 0
                          FROM pg_proc p WHERE p.oid = to_regprocedure('runspan.journal_run()')), true),
                NOT (has_schema_privilege(s.oid, n.oid, 'USAGE')
                     AND coalesce(has_table_privilege(s.oid, to_regclass('runspan.journal')::oid, 'INSERT'), false)
                     AND coalesce(has_sequence_privilege(s.oid, to_regclass('runspan.journal_seq')::oid, 'USAGE'), false)),
                (SELECT string_agg(wanted, ', ') FROM unnest(ARRAY['id', 'workflow_name', 'status']) wanted
                 WHERE NOT EXISTS (SELECT FROM pg_attribute a
                                   WHERE a.attrelid = c.oid AND a.attname = wanted AND NOT a.attisdropped))
         FROM pg_class c
         JOIN pg_roles r ON r.oid = c.relowner
         JOIN pg_namespace n ON n.nspname = 'runspan'
         JOIN pg_roles s ON s.oid = n.nspowner
         WHERE c.oid = $1::oid",
    )
    .bind(trigger.relation)
    .fetch_optional(catalogue)
    .await?;
    // Dropped meanwhile: the next check reports it.
    let Some(row) = row else { return Ok(Vec::new()) };
    let (table, owner, schema_owner): (String, String, String) =
        (trigger.table.clone(), row.try_get(0)?, row.try_get(1)?);
    let mut problems = asleep(catalogue).await?;
    if let Some(columns) = row.try_get(6)? {
        problems.push(CaptureProblem::ColumnsMissing { table: table.clone(), columns });
    }
    if row.try_get(5)? {
        let (table, schema_owner) = (table.clone(), schema_owner.clone());
        problems.push(CaptureProblem::JournalClosed { table, schema_owner });
    } else if row.try_get(4)? {
        let (table, schema_owner) = (table.clone(), schema_owner.clone());
        problems.push(CaptureProblem::FunctionChanged { table, schema_owner });
    }
    if row.try_get(2)? {
        problems.push(CaptureProblem::OwnerChanged { table, owner, schema_owner });
    } else if row.try_get(3)? {
        problems.push(CaptureProblem::RowSecurity { table, owner });
    }
    Ok(problems)
}

/// Where the default of `session_replication_role` keeps triggers from firing: of the database, of a role, or of a role in
/// the database.
async fn asleep(catalogue: &Pool) -> Result<Vec<CaptureProblem>, StoreError> {
    let settings: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT quote_ident(r.rolname), quote_ident(d.datname)
         FROM pg_db_role_setting s
         LEFT JOIN pg_roles r ON r.oid = s.setrole
         LEFT JOIN pg_database d ON d.oid = s.setdatabase
         WHERE (s.setdatabase = 0 OR d.datname = current_database())
           AND 'session_replication_role=replica' = ANY (s.setconfig)
         ORDER BY 1, 2",
    )
    .fetch_all(catalogue)
    .await?;
    let asleep = |(role, database): (Option<String>, Option<String>)| {
        let (whom, which) = match (role, database) {
            (Some(role), None) => (format!("role {role}"), format!("ROLE {role}")),
            (None, Some(database)) => (format!("database {database}"), format!("DATABASE {database}")),
            (Some(role), Some(database)) => {
                (format!("role {role}"), format!("ROLE {role} IN DATABASE {database}"))
            }
            (None, None) => ("all roles".to_owned(), "ROLE ALL".to_owned()),
        };
        CaptureProblem::TriggersAsleep {
            whom,
            reset: format!("ALTER {which} RESET session_replication_role"),
        }
    };
    Ok(settings.into_iter().map(asleep).collect())
}
