//! What a set of predictions says of a model beyond its accuracy, and how far the accuracy itself can be trusted.

use serde::Serialize;

use super::calibration::Calibration;
use super::confusion::Confusion;
use crate::train::Prediction;

/// With more classes than this, it is of interest whether the true class is among the first so many.
const TOP: usize = 5;

/// The 95 % quantile of the normal distribution, on both sides.
const Z: f64 = 1.959_963_984_540_054;

/// Measures of a set of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measures {
    /// The 95 % interval of the accuracy, from 0 to 1.
    pub accuracy_interval: [f64; 2],
    /// The mean recall of the classes that have images.
    pub balanced_accuracy: f64,
    /// The share of images whose class is among the five most probable; for more than five classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5_accuracy: Option<f64>,
    /// The expected calibration error: how far the probability of the predicted class is from the share of correct images among
    /// those of similar probability, on average; none if there are too few images.
    pub calibration_error: Option<f64>,
}

impl Measures {
    /// Those of predictions, of which there is at least one, by a network with `classes` classes.
    pub fn new(predictions: &[Prediction], classes: usize) -> Self {
        let correct = predictions.iter().filter(|prediction| prediction.class() == prediction.target).count();
        let in_first = |prediction: &&Prediction| {
            let own = prediction.logits[prediction.target];
            // Of equal logits, those of earlier classes come first, as in `Prediction::class`.
            let before = |(class, &logit): (usize, &f32)| logit > own || (logit == own && class < prediction.target);
            prediction.logits.iter().enumerate().filter(|&it| before(it)).count() < TOP
        };
        Self {
            accuracy_interval: interval(correct, predictions.len()),
            balanced_accuracy: balanced_accuracy(&Confusion::new(predictions, classes)),
            top5_accuracy: (classes > TOP)
                .then(|| predictions.iter().filter(in_first).count() as f64 / predictions.len() as f64),
            calibration_error: Calibration::new(predictions).error(),
        }
    }
}

/// The 95 % interval of a share, by Wilson's score: the shares for which this many successes would be no surprise. Unlike that of
/// the normal distribution, it is right for few images, and for a share of 0 or 1.
pub fn interval(successes: usize, trials: usize) -> [f64; 2] {
    let (share, trials) = (successes as f64 / trials as f64, trials as f64);
    let widening = 1.0 + Z * Z / trials;
    let centre = (share + Z * Z / (2.0 * trials)) / widening;
    let half = Z * (share * (1.0 - share) / trials + Z * Z / (4.0 * trials * trials)).sqrt() / widening;
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

fn balanced_accuracy(confusion: &Confusion) -> f64 {
    let recalls: Vec<f64> = confusion
        .rows()
        .iter()
        .enumerate()
        .filter_map(|(class, row)| {
            let images: usize = row.iter().sum();
            (images > 0).then(|| row[class] as f64 / images as f64)
        })
        .collect();
    recalls.iter().sum::<f64>() / recalls.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions(all: &[(usize, &[f32])]) -> Vec<Prediction> {
        let prediction =
            |(index, &(target, logits)): (usize, &(usize, &[f32]))| Prediction::new(index, target, logits.to_vec());
        all.iter().enumerate().map(prediction).collect()
    }

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 5e-7, "{value} is not {expected}");
    }

    /// The first four are those of R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
    /// Medicine 17 (1998), method 3.
    #[test]
    fn intervals_are_those_of_wilson() {
        for (successes, trials, expected) in [
            (81, 263, [0.2553, 0.3662]),
            (15, 148, [0.0624, 0.1605]),
            (0, 20, [0.0, 0.1611]),
            (1, 29, [0.0061, 0.1718]),
            (20, 20, [1.0 - 0.1611, 1.0]),
        ] {
            for (found, expected) in interval(successes, trials).into_iter().zip(expected) {
                assert!((found - expected).abs() < 5e-5, "{successes} of {trials}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn classes_without_images_do_not_count_for_the_balanced_accuracy() {
        let yes: &[f32] = &[1.0, 0.0, 0.0];
        let found = predictions(&[(0, yes), (0, yes), (0, yes), (1, yes)]);
        let measures = Measures::new(&found, 3);
        close(measures.balanced_accuracy, 0.5);
        assert_eq!(measures.top5_accuracy, None);
    }

    #[test]
    fn the_first_five_count_from_six_classes_on() {
        let logits: &[f32] = &[6.0, 5.0, 4.0, 3.0, 2.0, 2.0];
        let of = |targets: &[usize]| {
            let all: Vec<(usize, &[f32])> = targets.iter().map(|&target| (target, logits)).collect();
            Measures::new(&predictions(&all), 6).top5_accuracy
        };
        assert_eq!(of(&[0, 4, 5, 5]), Some(0.5));
        assert_eq!(of(&[1, 2, 3, 4]), Some(1.0));
    }
}
