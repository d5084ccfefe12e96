//! The confusion matrix and the per-class results that follow from it.

use serde::Serialize;

use crate::train::Prediction;

/// Counts of predictions: `counts[true class][predicted class]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<Vec<usize>>,
}

/// The results of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassResult {
    /// Its name.
    pub class: String,
    /// Number of images of this class.
    pub images: usize,
    /// Of the images of this class, the share that is predicted correctly.
    pub recall: f64,
    /// Of the images predicted as this class, the share that belongs to it.
    pub precision: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
}

impl Confusion {
    /// Counts the predictions of a network with `classes` classes.
    pub fn new(predictions: &[Prediction], classes: usize) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        for prediction in predictions {
            counts[prediction.target][prediction.class()] += 1;
        }
        Self { counts }
    }

    /// One row per true class, with one count per predicted class.
    pub fn rows(&self) -> &[Vec<usize>] {
        &self.counts
    }

    /// Recall, precision and F1 of every class; 0 where they are undefined.
    pub fn classes(&self, names: &[String]) -> Vec<ClassResult> {
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let results = names.iter().zip(&self.counts).enumerate().map(|(class, (name, row))| {
            let images = row.iter().sum();
            let predicted = self.counts.iter().map(|row| row[class]).sum();
            let (recall, precision) = (share(row[class], images), share(row[class], predicted));
            let sum = recall + precision;
            let f1 = if sum == 0.0 { 0.0 } else { 2.0 * recall * precision / sum };
            ClassResult { class: name.clone(), images, recall, precision, f1 }
        });
        results.collect()
    }
}
