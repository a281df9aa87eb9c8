//! Alternatives, measured in rounds: a table for people, JSON for whoever compares.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::Failure;
use crate::shown::{Spread, table};

/// Figures of several variants. The first variant is what the others are compared with.
#[derive(Serialize)]
pub(crate) struct Report {
    title: String,
    variants: Vec<String>,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Figure {
    name: String,
    /// What each round came to, by variant.
    rounds: Vec<Vec<f64>>,
}

impl Report {
    pub(crate) fn new(title: impl Into<String>, variants: &[&str]) -> Self {
        let variants = variants.iter().map(ToString::to_string).collect();
        Self { title: title.into(), variants, figures: Vec::new() }
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

    /// Prints the table and writes the JSON. A cell: the median (least to most), and its ratio to the first variant's.
    pub(crate) fn show(&self) -> Result<(), Failure> {
        let mut header = vec![self.title.as_str()];
        header.extend(self.variants.iter().map(String::as_str));
        let mut table = table(&header);
        for figure in &self.figures {
            let mut row = vec![figure.name.clone()];
            let first = figure.rounds[0].first().map(|_| Spread::of(&figure.rounds[0]).median);
            for (variant, rounds) in figure.rounds.iter().enumerate() {
                row.push(match (rounds.is_empty(), first) {
                    (true, _) => "·".to_owned(),
                    (false, Some(first)) if variant > 0 && first != 0.0 => {
                        let spread = Spread::of(rounds);
                        format!("{spread}  ×{:.2}", spread.median / first)
                    }
                    (false, _) => Spread::of(rounds).to_string(),
                });
            }
            table.add_row(row);
        }
        println!("{table}\n");
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
}
