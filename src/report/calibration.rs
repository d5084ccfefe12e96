//! How probable a model says that its predictions are, and how often they are right.

use crate::train::Prediction;

/// Bins of equal width.
const BINS: usize = 15;

/// With fewer images per bin that has any, the shares of correct ones are mostly chance, and so is the calibration error.
const FEWEST_IN_BIN: usize = 10;

/// Images whose predicted class has a similar probability.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bin {
    /// Number of images.
    pub images: usize,
    /// Number of images that are classified correctly.
    pub correct: usize,
    /// Sum of the probabilities of the predicted classes.
    probability: f64,
}

impl Bin {
    /// The mean probability of the predicted classes; none without images.
    pub fn confidence(&self) -> Option<f64> {
        (self.images > 0).then(|| self.probability / self.images as f64)
    }

    /// The share of images that are classified correctly; none without images.
    pub fn accuracy(&self) -> Option<f64> {
        (self.images > 0).then(|| self.correct as f64 / self.images as f64)
    }
}

/// A model's predictions by the probability of the predicted class.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    bins: Vec<Bin>,
}

impl Calibration {
    /// Sorts predictions into bins.
    pub fn new(predictions: &[Prediction]) -> Self {
        let mut bins = vec![Bin::default(); BINS];
        for prediction in predictions {
            let class = prediction.class();
            let probability = prediction.probabilities()[class];
            // A bin contains its upper bound, not its lower one.
            let index = ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            let bin = &mut bins[index];
            bin.images += 1;
            bin.correct += usize::from(class == prediction.target);
            bin.probability += probability;
        }
        Self { bins }
    }

    /// The bins, from probability 0 to 1.
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// The expected calibration error: the difference between confidence and accuracy, as the mean over all images of the
    /// difference in their bin. None if there are too few images for it to mean anything.
    pub fn error(&self) -> Option<f64> {
        let used = self.bins.iter().filter(|bin| bin.images > 0).count();
        (self.images() >= FEWEST_IN_BIN * used.max(1)).then(|| self.difference())
    }

    fn difference(&self) -> f64 {
        let difference: f64 = self.bins.iter().map(|bin| (bin.probability - bin.correct as f64).abs()).sum();
        difference / self.images().max(1) as f64
    }

    /// By how much the mean probability exceeds the accuracy; negative for a model that is too cautious.
    pub fn excess(&self) -> f64 {
        let excess: f64 = self.bins.iter().map(|bin| bin.probability - bin.correct as f64).sum();
        excess / self.images().max(1) as f64
    }

    fn images(&self) -> usize {
        self.bins.iter().map(|bin| bin.images).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions(all: &[(usize, f32)]) -> Vec<Prediction> {
        let prediction = |(index, &(target, probability)): (usize, &(usize, f32))| {
            // The first of two classes has this probability.
            Prediction::new(index, target, vec![(probability / (1.0 - probability)).ln(), 0.0])
        };
        all.iter().enumerate().map(prediction).collect()
    }

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 5e-7, "{value} is not {expected}");
    }

    #[test]
    fn the_error_weighs_bins_by_their_images() {
        let found = Calibration::new(&predictions(&[(0, 0.9), (0, 0.9), (0, 0.9), (1, 0.9), (1, 0.6)]));
        // 3 of 4 right at 0.9, 0 of 1 at 0.6: (4 * 0.15 + 1 * 0.6) / 5.
        close(found.difference(), 0.24);
        close(found.excess(), 0.24);
        // Errors in both directions do not cancel each other, but they do in the excess.
        let found = Calibration::new(&predictions(&[(0, 0.6), (1, 0.9)]));
        close(found.difference(), 0.65);
        close(found.excess(), 0.25);
        close(Calibration::new(&predictions(&[(0, 1.0 - 1e-7)])).difference(), 0.0);
    }

    #[test]
    fn few_images_have_no_error() {
        // Two bins.
        let of = |images: usize| {
            let all: Vec<(usize, f32)> = (0..images).map(|image| (0, if image % 2 == 0 { 0.9 } else { 0.6 })).collect();
            Calibration::new(&predictions(&all)).error()
        };
        assert_eq!((of(0), of(19)), (None, None));
        close(of(20).unwrap(), 0.25);
    }

    #[test]
    fn bins_count_images_and_correct_ones() {
        let found = Calibration::new(&predictions(&[(0, 0.61), (1, 0.65), (0, 0.1), (1, 0.1)]));
        let bins = found.bins();
        assert_eq!(bins.len(), BINS);
        assert_eq!(bins.iter().map(|bin| bin.images).sum::<usize>(), 4);
        // 0.61 and 0.65 are between 9/15 and 10/15. The class of the last two is the second, at 0.9.
        assert_eq!((bins[9].images, bins[9].correct), (2, 1));
        assert_eq!((bins[13].images, bins[13].correct), (2, 1));
        close(bins[9].confidence().unwrap(), 0.63);
        assert_eq!(bins[9].accuracy(), Some(0.5));
        assert_eq!((bins[0].confidence(), bins[0].accuracy()), (None, None));
    }
}
