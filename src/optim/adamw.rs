//! Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`; `t` counts steps from 1:
//!
//! ```text
//! g = scale * gradient
//! value *= 1 - learning_rate * weight_decay
//! mean += (1 - beta1) * (g - mean)
//! square = beta2 * square + (1 - beta2) * g * g
//! value -= learning_rate / (1 - beta1^t) * mean / (sqrt(square) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! What depends on `t` and the learning rate alone is computed on the host in float64, as PyTorch does.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use super::groups::GroupSettings;
use super::hyperparameter::Hyperparameter;
use super::optimizer::{Optimizer, OptimizerKind};
use crate::device::cpu::vectorised;
use crate::device::{UpdatePiece, UpdateRule};

pub(super) static KIND: OptimizerKind = OptimizerKind {
    name: "adamw",
    summary: "Adam with decoupled weight decay",
    hyperparameters: &[
        Hyperparameter { name: "beta1", meaning: "decay rate of the mean of gradients", default: 0.9, range: SHARE },
        Hyperparameter {
            name: "beta2",
            meaning: "decay rate of the mean of squared gradients",
            default: 0.999,
            range: SHARE,
        },
        Hyperparameter {
            name: "epsilon",
            meaning: "number added to the denominator of the update",
            default: 1e-8,
            range: (Excluded(0.0), Unbounded),
        },
    ],
    build: |values| Box::new(AdamW { beta1: values[0], beta2: values[1], epsilon: values[2] }),
};

const SHARE: (Bound<f64>, Bound<f64>) = (Included(0.0), Excluded(1.0));

/// See [`AdamW::words`].
const WORDS: usize = 7;

static RULE: UpdateRule = UpdateRule { kernel: "adamw", slots: 2, words: WORDS, operations: 12, cpu: update };

struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
}

impl Optimizer for AdamW {
    fn slots(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn rule(&self) -> &'static UpdateRule {
        &RULE
    }

    fn words(&self, group: &GroupSettings, step: u64, lowered_momentum: f64, words: &mut [f32]) {
        let Self { beta1, beta2, epsilon } = *self;
        let beta1 = (beta1 - lowered_momentum).max(0.0);
        let step = step as f64;
        let (first_correction, second_correction) = (1.0 - beta1.powf(step), 1.0 - beta2.powf(step));
        let all: [f64; WORDS] = [
            1.0 - group.learning_rate * group.weight_decay,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            group.learning_rate / first_correction,
            second_correction.sqrt(),
            epsilon,
        ];
        words.copy_from_slice(&all.map(|word| word as f32));
    }

    fn counts_steps(&self) -> bool {
        true
    }
}

fn update(UpdatePiece { values, gradients, slots: [mean, square], scale, words }: UpdatePiece) {
    let &[decay, gain, keep, square_gain, rate, correction, epsilon] = words else {
        unreachable!("the rule has {WORDS} words");
    };
    step(values, gradients, mean, square, scale, decay, gain, keep, square_gain, rate, correction, epsilon);
}

vectorised! {
    fn step(
        values: &mut [f32],
        gradients: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        scale: f32,
        decay: f32,
        gain: f32,
        keep: f32,
        square_gain: f32,
        rate: f32,
        correction: f32,
        epsilon: f32,
    ) {
        for (((value, gradient), mean), square) in values.iter_mut().zip(gradients).zip(mean).zip(square) {
            let gradient = scale * gradient;
            *mean += gain * (gradient - *mean);
            *square = keep * *square + square_gain * gradient * gradient;
            *value = decay * *value - rate * (*mean / (square.sqrt() / correction + epsilon));
        }
    }
}
