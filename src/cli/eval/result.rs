//! What an evaluation measures.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::{ClassResult, Measures};

/// The result of the command, as `--json` prints it.
#[derive(Serialize)]
pub struct EvalResult {
    /// The folder that contains the images.
    pub folder: String,
    /// `test` or `validation`, if the data set has splits.
    pub split: Option<&'static str>,
    pub images: u64,
    pub skipped: usize,
    /// Images of types that are not supported, by type.
    pub unsupported: BTreeMap<String, usize>,
    /// Images of classes that the model does not know, by class.
    pub unknown_classes: BTreeMap<String, usize>,
    pub accuracy: f64,
    #[serde(flatten)]
    pub measures: Measures,
    pub loss: f64,
    /// The class that is predicted from this probability on, if a threshold was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<(String, f64)>,
    pub classes: Vec<ClassResult>,
    /// `confusion[actual][predicted]`
    pub confusion: Vec<Vec<usize>>,
}
