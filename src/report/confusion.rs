//! The confusion matrix and the per-class results that follow from it.

use std::cmp::Reverse;

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
    /// Of the images of this class, the share that is predicted correctly; none without images.
    pub recall: Option<f64>,
    /// Of the images predicted as this class, the share that belongs to it; none if there are no such images, or none of this class.
    pub precision: Option<f64>,
    /// Harmonic mean of precision and recall; none without images of this class.
    pub f1: Option<f64>,
}

/// Two classes that are confused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The index of the true class.
    pub actual: usize,
    /// The index of the predicted class.
    pub predicted: usize,
    /// Number of images of the one that are predicted as the other.
    pub images: usize,
    /// Number of images of the true class.
    pub of: usize,
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

    /// The pairs of classes that are confused, the most frequent first; of equally frequent ones that with the larger share of its class.
    pub fn pairs(&self) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (actual, row) in self.counts.iter().enumerate() {
            let of = row.iter().sum();
            let confused = row.iter().enumerate().filter(|&(predicted, &images)| predicted != actual && images > 0);
            pairs.extend(confused.map(|(predicted, &images)| Pair { actual, predicted, images, of }));
        }
        pairs.sort_by_key(|pair| (Reverse(pair.images), pair.of, pair.actual, pair.predicted));
        pairs
    }

    /// Recall, precision and F1 of every class.
    pub fn classes(&self, names: &[String]) -> Vec<ClassResult> {
        let results = names.iter().zip(&self.counts).enumerate().map(|(class, (name, row))| {
            let images = row.iter().sum();
            let predicted = self.counts.iter().map(|row| row[class]).sum();
            // A class that was not tested has no results, even if other images were taken for it.
            let share = |part: usize, whole: usize| (images > 0 && whole > 0).then(|| part as f64 / whole as f64);
            let (recall, precision) = (share(row[class], images), share(row[class], predicted));
            let f1 = share(2 * row[class], images + predicted);
            ClassResult { class: name.clone(), images, recall, precision, f1 }
        });
        results.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_defined_is_not_a_number() {
        let counts = vec![vec![3, 1, 0, 0], vec![2, 0, 0, 2], vec![4, 0, 0, 0], vec![0, 0, 0, 0]];
        let names = ["a", "b", "c", "d"].map(String::from);
        let found = Confusion { counts }.classes(&names);
        let found: Vec<_> = found.iter().map(|class| (class.recall, class.precision, class.f1)).collect();
        assert_eq!(found[0], (Some(0.75), Some(3.0 / 9.0), Some(6.0 / 13.0)));
        assert_eq!(found[1], (Some(0.0), Some(0.0), Some(0.0)));
        assert_eq!(found[2], (Some(0.0), None, Some(0.0)), "nothing was predicted as it");
        assert_eq!(found[3], (None, None, None), "it has no images, though two were predicted as it");
    }

    #[test]
    fn pairs_are_those_that_are_confused_most() {
        let counts = vec![vec![5, 1, 0], vec![2, 1, 0], vec![1, 2, 9]];
        let pairs = Confusion { counts }.pairs();
        let found: Vec<_> = pairs.iter().map(|pair| (pair.actual, pair.predicted, pair.images, pair.of)).collect();
        assert_eq!(found, [(1, 0, 2, 3), (2, 1, 2, 12), (0, 1, 1, 6), (2, 0, 1, 12)]);
        assert_eq!(Confusion::new(&[], 3).pairs(), []);
    }
}
