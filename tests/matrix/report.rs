//! The table: kernels by suites, and kernels by kernels.

use std::fmt::Write as _;

use serde::Serialize;

/// What one cell of the table says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Passed {
        seconds: f64,
    },
    /// The reason in a line, and the file with the rest.
    Failed {
        reason: String,
        log: String,
    },
}

#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub kernel: String,
    pub column: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All that was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Series and release, oldest first.
    pub kernels: Vec<(String, String)>,
    /// Suites on each kernel.
    pub suites: Vec<Cell>,
    /// Sessions dumped on `kernel` and restored on `column`.
    pub crossings: Vec<Cell>,
}

impl Report {
    pub fn failures(&self) -> Vec<&Cell> {
        let all = self.suites.iter().chain(&self.crossings);
        all.filter(|cell| matches!(cell.outcome, Outcome::Failed { .. })).collect()
    }

    /// Both tables, in Markdown, which reads well on a terminal too.
    pub fn markdown(&self) -> String {
        let mut text = table("kernel", &self.kernels, &self.suites);
        if !self.crossings.is_empty() {
            text += "\n";
            text += &table("dumped on, restored on", &self.kernels, &self.crossings);
        }
        text
    }
}

fn table(corner: &str, kernels: &[(String, String)], cells: &[Cell]) -> String {
    if cells.is_empty() {
        return String::new();
    }
    let mut columns: Vec<&str> = Vec::new();
    for cell in cells {
        if !columns.contains(&cell.column.as_str()) {
            columns.push(&cell.column);
        }
    }
    let mut rows = vec![[vec![corner.to_owned()], columns.iter().map(|&name| name.to_owned()).collect()].concat()];
    for (name, release) in kernels {
        let of = |column: &str| cells.iter().find(|cell| cell.kernel == *name && cell.column == column);
        let shown = |column: &&str| match of(column).map(|cell| &cell.outcome) {
            Some(Outcome::Passed { .. }) => "yes".to_owned(),
            Some(Outcome::Failed { .. }) => "**no**".to_owned(),
            None => String::new(),
        };
        rows.push([vec![release.clone()], columns.iter().map(shown).collect()].concat());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=columns.len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:width$} ").unwrap();
        }
        text += "|\n";
        if index == 0 {
            text += &"| --- ".repeat(row.len());
            text += "|\n";
        }
    }
    text
}
