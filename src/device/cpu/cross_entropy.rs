//! Softmax cross entropy over at most a few thousand classes, which is small enough to compute in float64.

use super::memory::Views;
use crate::device::interface::{CrossEntropy, LossReduction};

pub(super) fn run(arguments: &CrossEntropy) {
    let classes = arguments.logits.shape().channels();
    let mut views = Views::default();
    let logits = views.read::<f32>(arguments.logits);
    let targets = views.read::<i32>(arguments.targets);
    let share = arguments.share.map(|share| f64::from(views.read::<f32>(share)[0]));
    let weights = arguments.class_weights.map(|weights| views.read::<f32>(weights));
    let result = views.write::<f32>(arguments.result);
    let mut gradient = arguments.logits_gradient.map(|tensor| views.write::<f32>(tensor));
    let weight = |class: usize| weights.map_or(1.0, |weights| f64::from(weights[class]));
    let scale = match (arguments.reduction, weights) {
        (LossReduction::Sum, _) => 1.0,
        (LossReduction::Mean, Some(_)) if share.is_none() => {
            1.0 / targets.iter().map(|&target| weight(target as usize)).sum::<f64>()
        }
        (LossReduction::Mean, _) => f64::from(1.0 / targets.len() as f32),
    };
    let smoothing = f64::from(arguments.label_smoothing);
    // What smoothing gives to a class of weight 1.
    let spread = smoothing / classes as f64;
    let smoothed = spread * (0..classes).map(weight).sum::<f64>();
    let (mut loss, mut correct) = (0.0, 0);
    for (row, (logits, &target)) in logits.chunks_exact(classes).zip(targets).enumerate() {
        let target = target as usize;
        let other = targets[row.checked_sub(1).unwrap_or(targets.len() - 1)] as usize;
        let largest = first_largest(logits);
        let exponential = |logit: f32| (f64::from(logit) - f64::from(logits[largest])).exp();
        let sum: f64 = logits.iter().map(|&logit| exponential(logit)).sum();
        let of_class = |class: usize| sum.ln() + f64::from(logits[largest]) - f64::from(logits[class]);
        let [own, rest] = share.map_or([1.0, 0.0], |share| [share, 1.0 - share]);
        let of_target = (1.0 - smoothing) * weight(target) * own;
        let of_other = (1.0 - smoothing) * weight(other) * rest;
        loss += of_target * of_class(target);
        if share.is_some() {
            loss += of_other * of_class(other);
        }
        if smoothing > 0.0 {
            loss += spread * (0..classes).map(|class| weight(class) * of_class(class)).sum::<f64>();
        }
        correct += usize::from(largest == if own < rest { other } else { target });
        if let Some(gradient) = &mut gradient {
            let gradient = &mut gradient[row * classes..(row + 1) * classes];
            for (class, (gradient, &logit)) in gradient.iter_mut().zip(logits).enumerate() {
                let expected = spread * weight(class)
                    + if class == target { of_target } else { 0.0 }
                    + if class == other { of_other } else { 0.0 };
                let total = of_target + of_other + smoothed;
                *gradient = ((exponential(logit) / sum * total - expected) * scale) as f32;
            }
        }
    }
    result[0] = (loss * scale) as f32;
    result[1] = correct as f32;
}

/// The index of the first of the largest logits. A NaN is larger than any number, as in PyTorch.
fn first_largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (class, &logit) in logits.iter().enumerate() {
        if logit > logits[best] || (logit.is_nan() && !logits[best].is_nan()) {
            best = class;
        }
    }
    best
}
