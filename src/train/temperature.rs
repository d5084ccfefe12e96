//! The temperature of a model: a number by which its outputs are divided, so that the probabilities of its predictions agree with how
//! often they are right (Guo et al., "On Calibration of Modern Neural Networks", 2017).
//!
//! It has the least cross entropy on images that were not trained on. Their targets are those of Platt ("Probabilistic Outputs for
//! Support Vector Machines", 1999): of n images, a class has the probability (n + 1) / (n + 2), and the others share the rest. Few images
//! that are all classified correctly then do not make the model certain.

use super::evaluate::Prediction;

/// The largest factor by which outputs are multiplied or divided.
const LARGEST: f64 = 20.0;

/// Halvings of the range of factors, which leave nothing of it in double precision.
const HALVINGS: usize = 60;

/// The temperature for these predictions; none without any.
pub fn temperature(predictions: &[Prediction]) -> Option<f64> {
    let classes = predictions.first()?.logits.len();
    let uncertainty = 1.0 / (predictions.len() as f64 + 2.0);
    // The derivative of the cross entropy by the factor rises, so that its zero is the minimum.
    let slope = |factor: f64| {
        let of_one = |prediction: &Prediction| {
            let others = uncertainty / (classes - 1).max(1) as f64;
            let rows =
                prediction.divided_by(1.0 / factor).probabilities().into_iter().zip(&prediction.logits).enumerate();
            let terms = rows.map(|(class, (probability, &logit))| {
                let wanted = if class == prediction.target { 1.0 - uncertainty } else { others };
                (probability - wanted) * f64::from(logit)
            });
            terms.sum::<f64>()
        };
        predictions.iter().map(of_one).sum::<f64>()
    };
    let (mut low, mut high) = (-LARGEST.ln(), LARGEST.ln());
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        match slope(middle.exp()) < 0.0 {
            true => low = middle,
            false => high = middle,
        }
    }
    Some((-(low + high) / 2.0).exp())
}

#[cfg(test)]
mod tests {
    use super::super::evaluate::softmax;
    use super::*;
    use crate::data::random::{Purpose, RandomStream};

    fn prediction(target: usize, logits: &[f32]) -> Prediction {
        Prediction::new(0, target, logits.to_vec())
    }

    #[test]
    fn outputs_that_are_too_large_by_a_factor_are_divided_by_it() {
        let mut random = RandomStream::new(1, Purpose::Drawing, 0, 0);
        let mut predictions = Vec::new();
        for _ in 0..20_000 {
            let logits: Vec<f32> = (0..3).map(|_| random.uniform(-3.0, 3.0) as f32).collect();
            let (mut rest, probabilities) = (random.unit(), softmax(&logits));
            let target = probabilities.iter().position(|probability| {
                rest -= probability;
                rest < 0.0
            });
            predictions.push(prediction(target.unwrap_or(2), &logits));
        }
        for factor in [0.4, 1.0, 2.5] {
            let mut scaled = predictions.clone();
            scaled.iter_mut().flat_map(|one| &mut one.logits).for_each(|logit| *logit *= factor);
            let found = temperature(&scaled).unwrap();
            assert!((found / f64::from(factor) - 1.0).abs() < 0.04, "{found} is not {factor}");
        }
    }

    #[test]
    fn few_images_make_nothing_certain() {
        let all_correct = vec![prediction(0, &[1.0, -1.0]); 8];
        let found = temperature(&all_correct).unwrap();
        let scaled = [1.0, -1.0].map(|logit| (logit / found) as f32);
        // Eight correct images of eight: 9/10.
        assert!((softmax(&scaled)[0] - 0.9).abs() < 1e-6, "{found}");
        assert_eq!(temperature(&[]), None);
        let equal = temperature(&[prediction(1, &[2.0, 2.0])]).unwrap();
        assert!(equal.is_finite() && equal > 0.0);
        let wrong = temperature(&vec![prediction(1, &[9.0, -9.0]); 8]).unwrap();
        assert!((wrong - LARGEST).abs() < 1e-6, "{wrong}");
    }
}
