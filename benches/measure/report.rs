//! Alternatives, measured in rounds: a table for people, JSON for whoever compares.

use std::fs;
use std::path::Path;

use comfy_table::Table;
use serde::Serialize;

use crate::Failure;
use crate::shown::{Spread, table};

/// Figures of several variants. The first variant is what the others are compared with.
#[derive(Serialize)]
pub(crate) struct Report {
    title: String,
    variants: Vec<String>,
    figures: Vec<Figure>,
    goals: Vec<Goal>,
}

#[derive(Serialize)]
struct Figure {
    name: String,
    /// What each round came to, by variant.
    rounds: Vec<Vec<f64>>,
}

/// What a figure has to be.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Serialize)]
struct Goal {
    name: String,
    bound: Bound,
    /// What each round came to.
    rounds: Vec<f64>,
}

impl Report {
    pub(crate) fn new(title: impl Into<String>, variants: &[&str]) -> Self {
        let variants = variants.iter().map(ToString::to_string).collect();
        Self { title: title.into(), variants, figures: Vec::new(), goals: Vec::new() }
    }

    /// Adds what one round of a variant came to. `name` includes the unit: `"CPU, µs a run"`.
    pub(crate) fn add(&mut self, variant: usize, name: &str, value: f64) {
        let index = self.figures.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            let rounds = vec![Vec::new(); self.variants.len()];
            self.figures.push(Figure { name: name.to_owned(), rounds });
            self.figures.len() - 1
        });
        self.figures[index].rounds[variant].push(value);
    }

    /// The median of a figure.
    pub(crate) fn median(&self, variant: usize, name: &str) -> Option<f64> {
        let rounds = self.rounds(variant, name);
        (!rounds.is_empty()).then(|| Spread::of(rounds).median)
    }

    /// What each round of a variant came to.
    pub(crate) fn rounds(&self, variant: usize, name: &str) -> &[f64] {
        self.figures.iter().find(|figure| figure.name == name).map_or(&[], |figure| &figure.rounds[variant])
    }

    /// Adds what something came to in each round, and what it has to be.
    pub(crate) fn goal(&mut self, name: impl Into<String>, bound: Bound, rounds: Vec<f64>) {
        self.goals.push(Goal { name: name.into(), bound, rounds });
    }

    /// Prints the tables and writes the JSON. A cell: the median (least to most), and its ratio to the first variant's,
    /// with a `~` if the two ranges overlap.
    pub(crate) fn show(&self) -> Result<(), Failure> {
        let mut header = vec![self.title.as_str()];
        header.extend(self.variants.iter().map(String::as_str));
        let mut table = table(&header);
        for figure in &self.figures {
            let mut row = vec![figure.name.clone()];
            let first = self.median(0, &figure.name);
            for (variant, rounds) in figure.rounds.iter().enumerate() {
                row.push(match (rounds.is_empty(), first) {
                    (true, _) => "·".to_owned(),
                    (false, Some(first)) if variant > 0 && first != 0.0 => {
                        let spread = Spread::of(rounds);
                        let overlap = if spread.overlaps(&Spread::of(&figure.rounds[0])) { " ~" } else { "" };
                        format!("{spread}  ×{:.2}{overlap}", spread.median / first)
                    }
                    (false, _) => Spread::of(rounds).to_string(),
                });
            }
            table.add_row(row);
        }
        println!("{table}\n");
        if !self.goals.is_empty() {
            println!("{}\n", self.goals_table());
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&directory)?;
        let name: String = self
            .title
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        fs::write(directory.join(format!("{name}.json")), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    fn goals_table(&self) -> Table {
        let mut table = table(&["goal", "it came to", "it has to be", ""]);
        for goal in &self.goals {
            let within = |value: f64| match goal.bound {
                Bound::AtMost(bound) => value <= bound,
                Bound::AtLeast(bound) => value >= bound,
            };
            let spread = Spread::of(&goal.rounds);
            let verdict =
                match (within(spread.median), goal.rounds.iter().filter(|round| within(**round)).count()) {
                    (true, all) if all == goal.rounds.len() => "met".to_owned(),
                    (true, some) => format!("met, in {some} of {} rounds", goal.rounds.len()),
                    (false, 0) => "missed".to_owned(),
                    (false, some) => format!("missed, but for {some} of {} rounds", goal.rounds.len()),
                };
            let bound = match goal.bound {
                Bound::AtMost(bound) => format!("at most {bound}"),
                Bound::AtLeast(bound) => format!("at least {bound}"),
            };
            table.add_row([goal.name.clone(), format!("{spread:.2}"), bound, verdict]);
        }
        table
    }
}
