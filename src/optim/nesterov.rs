//! Stochastic gradient descent with Nesterov momentum, as `torch.optim.SGD(nesterov=True)`:
//!
//! ```text
//! g = scale * gradient + weight_decay * value
//! velocity = momentum * velocity + g
//! value -= learning_rate * (g + momentum * velocity)
//! ```

use std::ops::Bound::Excluded;

use super::groups::GroupSettings;
use super::hyperparameter::Hyperparameter;
use super::optimizer::{Optimizer, OptimizerKind};
use super::sgd::MOMENTUM_MEANING;
use crate::device::cpu::vectorised;
use crate::device::{UpdatePiece, UpdateRule};

pub(super) static KIND: OptimizerKind = OptimizerKind {
    name: "nesterov",
    summary: "SGD with Nesterov momentum",
    hyperparameters: &[Hyperparameter {
        name: "momentum",
        meaning: MOMENTUM_MEANING,
        default: 0.9,
        range: (Excluded(0.0), Excluded(1.0)),
    }],
    build: |values| Box::new(Nesterov { momentum: values[0] }),
};

static RULE: UpdateRule = UpdateRule { kernel: "nesterov", slots: 1, words: 3, operations: 8, cpu: update };

struct Nesterov {
    momentum: f64,
}

impl Optimizer for Nesterov {
    fn slots(&self) -> &'static [&'static str] {
        &["velocity"]
    }

    fn rule(&self) -> &'static UpdateRule {
        &RULE
    }

    fn words(&self, group: &GroupSettings, _step: u64, lowered_momentum: f64, words: &mut [f32]) {
        let momentum = (self.momentum - lowered_momentum).max(0.0);
        words.copy_from_slice(&[group.learning_rate as f32, group.weight_decay as f32, momentum as f32]);
    }
}

fn update(UpdatePiece { values, gradients, slots: [velocity, _], scale, words }: UpdatePiece) {
    step(values, gradients, velocity, scale, words[0], words[1], words[2]);
}

vectorised! {
    fn step(
        values: &mut [f32],
        gradients: &[f32],
        velocity: &mut [f32],
        scale: f32,
        learning_rate: f32,
        weight_decay: f32,
        momentum: f32,
    ) {
        for ((value, gradient), velocity) in values.iter_mut().zip(gradients).zip(velocity) {
            let gradient = scale * gradient + weight_decay * *value;
            *velocity = momentum * *velocity + gradient;
            *value -= learning_rate * (gradient + momentum * *velocity);
        }
    }
}
