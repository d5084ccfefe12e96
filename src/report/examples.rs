//! The predictions whose images a report shows.

use crate::train::Prediction;

/// Misclassified images, of which there may be many.
const MISTAKES: usize = 12;
const LEAST_CERTAIN: usize = 12;
/// Correctly classified images of all classes together.
const CORRECT: usize = 24;
const CORRECT_PER_CLASS: usize = 4;
const GRAD_CAMS: usize = 8;

/// The probability of the predicted class.
fn confidence(prediction: &Prediction) -> f64 {
    prediction.probabilities()[prediction.class()]
}

fn is_correct(prediction: &Prediction) -> bool {
    prediction.class() == prediction.target
}

/// The most confident first; images of the same confidence in the order of the data set.
fn by_confidence<'a>(predictions: impl Iterator<Item = &'a Prediction>) -> Vec<&'a Prediction> {
    let mut sorted: Vec<(f64, &Prediction)> =
        predictions.map(|prediction| (confidence(prediction), prediction)).collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.index.cmp(&b.1.index)));
    sorted.into_iter().map(|(_, prediction)| prediction).collect()
}

/// The most confident mistakes.
pub fn mistakes(predictions: &[Prediction]) -> Vec<&Prediction> {
    let mut wrong = by_confidence(predictions.iter().filter(|prediction| !is_correct(prediction)));
    wrong.truncate(MISTAKES);
    wrong
}

/// The predictions of the lowest confidence, right or wrong; the least confident first.
pub fn least_certain(predictions: &[Prediction]) -> Vec<&Prediction> {
    let sorted = by_confidence(predictions.iter());
    sorted.into_iter().rev().take(LEAST_CERTAIN).collect()
}

/// The most confident correct predictions of each class, class after class. With many classes, one of each of the first classes.
pub fn correct(predictions: &[Prediction], classes: usize) -> Vec<&Prediction> {
    let per_class = (CORRECT / classes.max(1)).clamp(1, CORRECT_PER_CLASS);
    let of_class = |class: usize| {
        let right = predictions.iter().filter(move |prediction| prediction.target == class && is_correct(prediction));
        by_confidence(right).into_iter().take(per_class)
    };
    (0..classes).flat_map(of_class).take(CORRECT).collect()
}

/// Examples for Grad-CAM: the most confident correct prediction of each class, then the most confident wrong one of each,
/// then the next of both, and so on.
pub fn representative(predictions: &[Prediction], classes: usize) -> Vec<&Prediction> {
    let mut kinds: Vec<Vec<&Prediction>> = Vec::new();
    for correct in [true, false] {
        for class in 0..classes {
            let of_kind = |prediction: &&Prediction| prediction.target == class && is_correct(prediction) == correct;
            kinds.push(by_confidence(predictions.iter().filter(of_kind)));
        }
    }
    let longest = kinds.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|turn| kinds.iter().filter_map(move |kind| kind.get(turn).copied()));
    turns.take(GRAD_CAMS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predictions of these targets, predicted classes and logits; a larger logit is a larger confidence.
    fn predictions(all: &[(usize, usize, f32)], classes: usize) -> Vec<Prediction> {
        let prediction = |(index, &(target, predicted, logit)): (usize, &(usize, usize, f32))| {
            let mut logits = vec![0.0; classes];
            logits[predicted] = logit;
            Prediction::new(index, target, logits)
        };
        all.iter().enumerate().map(prediction).collect()
    }

    fn indices(found: &[&Prediction]) -> Vec<usize> {
        found.iter().map(|prediction| prediction.index).collect()
    }

    #[test]
    fn mistakes_and_doubts_are_ordered_by_confidence() {
        let all = predictions(&[(0, 0, 9.0), (0, 1, 2.0), (1, 1, 1.0), (1, 0, 5.0), (0, 0, 3.0), (1, 0, 5.0)], 2);
        assert_eq!(indices(&mistakes(&all)), [3, 5, 1]);
        assert_eq!(indices(&least_certain(&all)), [2, 1, 4, 5, 3, 0]);
        let many = predictions(&[(0, 1, 2.0); 40], 2);
        assert_eq!((mistakes(&many).len(), least_certain(&many).len()), (MISTAKES, LEAST_CERTAIN));
    }

    #[test]
    fn correct_ones_are_of_every_class_and_few() {
        let all = predictions(&[(1, 1, 2.0), (0, 0, 3.0), (1, 0, 9.0), (1, 1, 4.0), (0, 0, 1.0)], 2);
        assert_eq!(indices(&correct(&all, 2)), [1, 4, 3, 0]);
        for (classes, expected) in [(2, 8), (5, 20), (7, 21), (20, 20), (40, CORRECT), (1000, CORRECT)] {
            let of_each: Vec<_> = (0..classes).flat_map(|class| [(class, class, 2.0); 9]).collect();
            assert_eq!(correct(&predictions(&of_each, classes), classes).len(), expected, "{classes} classes");
        }
    }

    #[test]
    fn examples_take_turns_between_classes_right_and_wrong() {
        let all = predictions(&[(0, 0, 1.0), (0, 0, 2.0), (1, 0, 3.0), (1, 1, 4.0), (0, 1, 1.0)], 2);
        assert_eq!(indices(&representative(&all, 2)), [1, 3, 4, 2, 0]);
    }
}
