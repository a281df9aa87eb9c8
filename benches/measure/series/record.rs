//! What an export costs the database.

use std::time::Instant;

use runspan::run::Outcome;
use runspan::runtime::Database;
use runspan::series::{Buckets, Key, Ledger, MAX_WORKFLOWS};
use runspan::store::Commit;

use super::made::{all_of, observe, workflow};
use super::{Bench, Failure, INTERVAL, ROUNDS, START};
use crate::shown::{Spread, millis, table};

impl Bench {
    /// What an export costs the database.
    pub(crate) async fn records(&self) -> Result<(), Failure> {
        let names = ["first export", "nothing is new", "one run", "every series is new"];
        let mut millis_of: [[Vec<f64>; 3]; 4] = Default::default();
        let mut logged: [Vec<f64>; 4] = Default::default();
        for round in 0..=ROUNDS {
            self.clear().await?;
            let (mut ledger, _) = Ledger::open(self.store.recorded().await?, &self.instance);
            for (kind, fresh) in [MAX_WORKFLOWS, 0, 1, MAX_WORKFLOWS].into_iter().enumerate() {
                self.append(kind, fresh).await?;
                let mut took = [0.0; 3];
                let log = self.logged().await?;
                let began = Instant::now();
                let fresh = self.store.pending_totals(&self.lease, ledger.last(), 100).await?;
                took[0] = millis(began.elapsed());
                ledger.receive(fresh.totals);
                ledger.begin(fresh.now, INTERVAL, 0);
                let began = Instant::now();
                self.store.record(&self.lease, &ledger.change()).await?;
                took[1] = millis(began.elapsed());
                ledger.acknowledged();
                let began = Instant::now();
                self.store.record(&self.lease, &ledger.change()).await?;
                took[2] = millis(began.elapsed());
                if round > 0 {
                    for (step, took) in took.into_iter().enumerate() {
                        millis_of[kind][step].push(took);
                    }
                    logged[kind].push(self.logged().await? - log);
                }
            }
        }
        let title = format!("{}: {MAX_WORKFLOWS} workflows", self.name);
        let mut table =
            table(&[&title, "read, ms", "written before, ms", "written after, ms", "write-ahead log, KiB"]);
        for (kind, name) in names.into_iter().enumerate() {
            let [read, before, after] = millis_of[kind].each_ref().map(|millis| Spread::of(millis));
            let log = match self.database {
                Database::Postgres(_) => Spread::of(&logged[kind]).to_string(),
                Database::Sqlite(_) => "·".to_owned(),
            };
            table.add_row([name.to_owned(), read.to_string(), before.to_string(), after.to_string(), log]);
        }
        println!("{table}\n");
        Ok(())
    }

    /// Appends totals as the projector does: of no workflow, of one run of one, or of everything there is.
    async fn append(&self, kind: usize, workflows: usize) -> Result<(), Failure> {
        let mut commit = Commit::default();
        match workflows {
            0 => return Ok(()),
            1 => observe(
                &mut commit.totals,
                Key::duration(&workflow(0), Outcome::Succeeded, None),
                kind,
                START,
            ),
            _ => (0..workflows)
                .for_each(|number| all_of(&mut commit.totals, number, 0..Buckets::default().len(), START)),
        }
        Ok(self.store.commit(&self.lease, &self.instance, &commit).await?)
    }
}
