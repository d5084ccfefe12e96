//! The results of images, printed one by one.

use clap::ValueEnum;
use serde::Serialize;

use super::super::output::{csv_line, json, print_while_open, result_line};
use crate::error::Result;

/// The form of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for people: the path, and the classes with their probabilities
    Text,
    /// A JSON array, as with --json
    Json,
    /// A JSON object per line
    Jsonl,
    /// A table with one line per image
    Csv,
}

#[derive(Serialize)]
pub struct ClassProbability {
    pub class: String,
    pub probability: f64,
}

/// The result of one image.
#[derive(Serialize)]
pub struct Row {
    /// Characters that are not Unicode are replaced.
    pub path: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Classified {
        /// The predicted one first, then the most probable.
        classes: Vec<ClassProbability>,
        #[serde(skip_serializing_if = "Option::is_none")]
        logits: Option<Vec<f32>>,
    },
    Unreadable {
        error: String,
    },
}

/// Prints rows in one form.
pub struct Rows {
    format: Format,
    /// Classes of an image.
    top: usize,
    printed: usize,
}

impl Rows {
    pub fn new(format: Format, top: usize) -> Self {
        Self { format, top, printed: 0 }
    }

    /// Prints a row. Returns whether anyone still reads.
    pub fn print(&mut self, row: &Row) -> Result<bool> {
        let text = match (self.format, &row.outcome) {
            // People read of it on standard error.
            (Format::Text, Outcome::Unreadable { .. }) => return Ok(true),
            (Format::Text, Outcome::Classified { classes, .. }) => {
                let classes: Vec<_> =
                    classes.iter().map(|one| format!("{} {:.3}", one.class, one.probability)).collect();
                result_line(&format!("{}: {}", row.path, classes.join(", ")))
            }
            (Format::Json, _) => format!("{}{}", if self.printed == 0 { "[" } else { "," }, json(row)?),
            (Format::Jsonl, _) => json(row)? + "\n",
            (Format::Csv, _) if self.printed == 0 => self.header()? + &self.record(row)?,
            (Format::Csv, _) => self.record(row)?,
        };
        self.printed += 1;
        print_while_open(text.as_bytes())
    }

    /// Prints what follows the last row.
    pub fn end(&self) -> Result<()> {
        let end = match (self.format, self.printed) {
            (Format::Json, 1..) => "]\n",
            _ => "",
        };
        print_while_open(end.as_bytes()).map(|_| ())
    }

    fn header(&self) -> Result<String> {
        let columns = (1..=self.top).flat_map(|rank| [format!("class_{rank}"), format!("probability_{rank}")]);
        csv_line(std::iter::once("path".into()).chain(columns).chain(["error".into()]))
    }

    fn record(&self, row: &Row) -> Result<String> {
        let (mut fields, error) = match &row.outcome {
            Outcome::Classified { classes, .. } => {
                let fields = classes.iter().flat_map(|one| [one.class.clone(), one.probability.to_string()]);
                (fields.collect(), String::new())
            }
            Outcome::Unreadable { error } => (Vec::new(), error.clone()),
        };
        fields.resize(2 * self.top, String::new());
        csv_line(std::iter::once(row.path.clone()).chain(fields).chain([error]))
    }
}
