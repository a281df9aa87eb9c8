//! The server's processes, and its settings.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::Failure;

/// As production has them; without autovacuum, which would come and go as it likes.
const SETTINGS: [(&str, &str); 3] = [("fsync", "on"), ("full_page_writes", "on"), ("autovacuum", "off")];

pub(super) struct Server {
    url: String,
    postmaster: u32,
}

/// The CPU that processes have used, in microseconds.
pub(super) struct Used {
    cpu: f64,
    processes: BTreeSet<u32>,
}

impl Server {
    pub(super) async fn of(url: &str) -> Result<Self, Failure> {
        let mut connection = PgConnection::connect(url).await?;
        let postmaster: i32 =
            sqlx::query_scalar("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::integer")
                .fetch_one(&mut connection)
                .await?;
        Ok(Self { url: url.to_owned(), postmaster: postmaster.try_into()? })
    }

    pub(super) async fn as_in_production(&self) -> Result<(), Failure> {
        for (name, value) in SETTINGS {
            self.execute(format!("ALTER SYSTEM SET {name} = {value}")).await?;
        }
        self.reload(|setting, value| setting == value).await
    }

    pub(super) async fn as_it_was(&self) -> Result<(), Failure> {
        for (name, _) in SETTINGS {
            self.execute(format!("ALTER SYSTEM RESET {name}")).await?;
        }
        self.execute("SELECT pg_reload_conf()".to_owned()).await
    }

    /// Until new connections see it.
    async fn reload(&self, done: impl Fn(&str, &str) -> bool) -> Result<(), Failure> {
        self.execute("SELECT pg_reload_conf()".to_owned()).await?;
        let late = Instant::now() + Duration::from_secs(10);
        loop {
            let mut connection = PgConnection::connect(&self.url).await?;
            let mut all = true;
            for (name, value) in SETTINGS {
                let setting: String = sqlx::query_scalar("SELECT current_setting($1)")
                    .bind(name)
                    .fetch_one(&mut connection)
                    .await?;
                all &= done(&setting, value);
            }
            if all {
                return Ok(());
            }
            if Instant::now() > late {
                return Err("the server does not take its settings".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn execute(&self, sql: String) -> Result<(), Failure> {
        let mut connection = PgConnection::connect(&self.url).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// The microseconds of CPU that the server has ever used, and by which processes.
    pub(super) fn cpu(&self) -> Result<Used, Failure> {
        let tree = self.tree()?;
        Ok(Used {
            cpu: tree.iter().map(|(_, cpu)| cpu).sum(),
            processes: tree.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// What the server has used since, once every process has ended that began since: the postmaster has to hear of
    /// an end to count it.
    pub(super) async fn cpu_since(&self, before: &Used) -> Result<f64, Failure> {
        let late = Instant::now() + Duration::from_secs(10);
        loop {
            let now = self.cpu()?;
            if now.processes.is_subset(&before.processes) {
                return Ok(now.cpu - before.cpu);
            }
            if Instant::now() > late {
                return Err("pgbench's connections do not end".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The CPU of the postmaster, with all of its children that have ended, and of each child.
    fn tree(&self) -> Result<Vec<(u32, f64)>, Failure> {
        let mut tree = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let stat = match fs::read_to_string(format!("/proc/{process}/stat")) {
                Ok(stat) => stat,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            let fields = fields(&stat);
            if process == self.postmaster {
                tree.push((process, micros(&fields[11..15])?));
            } else if fields[1].parse() == Ok(self.postmaster) {
                tree.push((process, micros(&fields[11..13])?));
            }
        }
        Ok(tree)
    }
}

/// The fields of a `/proc/…/stat` from the third on: the second, in brackets, may hold anything.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect()
}

/// The sum of times in ticks: of 10 ms, on every Linux.
fn micros(fields: &[&str]) -> Result<f64, Failure> {
    let mut ticks = 0.0;
    for field in fields {
        ticks += field.parse::<f64>()?;
    }
    Ok(ticks * 10_000.0)
}

/// The microseconds of CPU that this process has used.
pub(super) fn own_cpu() -> Result<f64, Failure> {
    micros(&fields(&fs::read_to_string("/proc/self/stat")?)[11..13])
}

/// Between the listing and the look, a process may end.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) // ESRCH
}
