//! Files of features: safetensors and CSV.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::super::output::csv_line;
use crate::error::{Context, Error, Result};
use crate::file::{begins_with, write_atomically};
use crate::weights::{OutputTensor, TensorFile, save};

const FEATURES: &str = "features";
const PATHS: &str = "paths";
/// The columns of a CSV file; the number of a feature follows its name.
const PATH: &str = "path";
const FEATURE: &str = "feature_";
/// The digest of the network's body.
const WEIGHTS: &str = "weights";

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    Csv,
}

impl Format {
    /// That of the file's extension.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("csv") => Ok(Self::Csv),
            _ => Err(Error::usage(format!(
                "--output {}: expected a name that ends in .safetensors or .csv",
                path.display()
            ))),
        }
    }

    /// Whether a file contains features in this format.
    pub fn is_of(self, path: &Path) -> bool {
        match self {
            Self::Safetensors => TensorFile::open(path).is_ok_and(|file| file.metadata().contains_key(PATHS)),
            Self::Csv => begins_with(path, &format!("{PATH},{FEATURE}0")),
        }
    }
}

/// Images and their features.
#[derive(Debug, Clone)]
pub struct Table {
    /// One for each image. Characters that are not Unicode are replaced.
    pub paths: Vec<String>,
    /// `[images, dimension]`
    pub values: Vec<f32>,
    /// Features of an image.
    pub dimension: usize,
    /// The digest of the network's body.
    weights: String,
}

impl Table {
    /// A table without images.
    pub fn new(dimension: usize, weights: String) -> Self {
        Self { paths: Vec::new(), values: Vec::new(), dimension, weights }
    }

    /// Reads a file that [`Table::write`] wrote, with a network that has so many features and this digest.
    ///
    /// # Errors
    /// When it is another file, or the features are those of another network.
    pub fn open(path: &Path, features: usize, weights: &str) -> Result<Self> {
        let shown = path.display();
        let file = TensorFile::open(path)?;
        let other = || {
            Error::new(format!("{shown}: expected a file of features, with the tensor {FEATURES} and a list of paths"))
                .hint("`retune embed MODEL IMAGES --output FILE.safetensors` writes such a file")
        };
        let [images, dimension] = *file.entry(FEATURES).map_err(|_| other())?.shape else { return Err(other()) };
        let list = file.metadata().get(PATHS).ok_or_else(other)?;
        let paths: Vec<String> =
            serde_json::from_str(list).context(|| format!("{shown}: unreadable `{PATHS}` in the metadata"))?;
        if paths.len() != images {
            return Err(Error::new(format!(
                "{shown}: expected features of {} images, found the shape [{images}, {dimension}]",
                paths.len()
            )));
        }
        if dimension != features || file.metadata().get(WEIGHTS).is_some_and(|other| other != weights) {
            return Err(Error::new(format!("{shown}: the features were computed with another network"))
                .hint("give the model that was used for that file, or write the file again with this one"));
        }
        Ok(Self { paths, values: file.read_finite_f32(FEATURES)?, dimension, weights: weights.into() })
    }

    /// Writes the file atomically.
    pub fn write(&self, path: &Path, format: Format) -> Result<()> {
        match format {
            Format::Safetensors => {
                let tensor = OutputTensor::f32(FEATURES, &[self.paths.len(), self.dimension], &self.values[..]);
                let paths = serde_json::to_string(&self.paths).context(|| "cannot write the metadata")?;
                let metadata = [(PATHS, paths), (WEIGHTS, self.weights.clone())];
                let metadata: BTreeMap<_, _> = metadata.map(|(name, text)| (name.to_string(), text)).into();
                save(path, &[tensor], &metadata)
            }
            Format::Csv => {
                let features = (0..self.dimension).map(|number| format!("{FEATURE}{number}"));
                let header = csv_line(std::iter::once(PATH.into()).chain(features))?;
                let row = |(path, row): (&String, &[f32])| {
                    csv_line(std::iter::once(path.clone()).chain(row.iter().map(f32::to_string)))
                };
                let rows = self.paths.iter().zip(self.values.chunks_exact(self.dimension)).map(row);
                let rows = rows.collect::<Result<Vec<String>>>()?;
                write_atomically(path, |file| {
                    std::iter::once(&header).chain(&rows).try_for_each(|line| file.write_all(line.as_bytes()))
                })
            }
        }
    }
}
