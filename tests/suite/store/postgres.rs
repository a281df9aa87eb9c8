//! What is particular to PostgreSQL.

mod altered;
mod capture;
mod fail_open;
mod failover;
mod grants;
mod harm;
mod order;
mod rights;
mod roles;
mod stuck;
mod tls;
mod volume;

use sqlx::AssertSqlSafe;

use crate::database::{Database, Session, connect};

/// A URL of the test's database for another role, which is made first.
async fn role(database: &Database, suffix: &str) -> (String, String) {
    let role = format!("{}_{suffix}", database.name());
    let mut admin = database.connect().await;
    admin.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'test'")).await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("test")).unwrap();
    (role, url.into())
}

/// Hands the table to a role that is no superuser; a URL for it.
async fn owner(database: &Database) -> (String, String) {
    let (role, url) = role(database, "owner").await;
    let name = database.name();
    database
        .connect()
        .await
        .execute(&format!(
            "ALTER TABLE workflow_runs OWNER TO {role};
             GRANT CREATE ON DATABASE {name} TO {role}"
        ))
        .await;
    (role, url)
}

/// SQLSTATE of a statement that has to fail.
async fn refused(session: &mut Session, sql: &str) -> String {
    let error = session.try_execute(sql).await.expect_err(sql);
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(String::from).unwrap_or_default()
}

/// Whether a backend of this database waits for a lock.
async fn someone_waits(database: &Database) -> bool {
    waiters(database).await > 0
}

/// How many backends of this database wait for a lock.
async fn waiters(database: &Database) -> i64 {
    let mut session = connect(&database.url).await;
    let Session::Postgres(connection) = &mut session else { unreachable!("PostgreSQL only") };
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}
