//! Who is taken for whom.

use serde::Serialize;

use crate::train::Prediction;

/// Counts of predictions: `counts[true class][said class]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<Vec<usize>>,
}

/// How one class fared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassResult {
    /// Its name.
    pub class: String,
    /// Its pictures.
    pub images: usize,
    /// Of this class's pictures, the share that was recognised.
    pub recall: f64,
    /// Of the pictures taken for this class, the share that is.
    pub precision: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
}

impl Confusion {
    /// Counts predictions of so many classes.
    pub fn new(predictions: &[Prediction], classes: usize) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        for prediction in predictions {
            counts[prediction.target][prediction.class()] += 1;
        }
        Self { counts }
    }

    /// One row for each true class, with a count for each class that was said.
    pub fn rows(&self) -> &[Vec<usize>] {
        &self.counts
    }

    /// Recall, precision and F1 of every class. Shares of nothing are 0.
    pub fn classes(&self, names: &[String]) -> Vec<ClassResult> {
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let results = names.iter().zip(&self.counts).enumerate().map(|(class, (name, row))| {
            let images = row.iter().sum();
            let taken_for = self.counts.iter().map(|row| row[class]).sum();
            let (recall, precision) = (share(row[class], images), share(row[class], taken_for));
            let sum = recall + precision;
            let f1 = if sum == 0.0 { 0.0 } else { 2.0 * recall * precision / sum };
            ClassResult { class: name.clone(), images, recall, precision, f1 }
        });
        results.collect()
    }
}
