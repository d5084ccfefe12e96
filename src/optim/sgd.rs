//! Stochastic gradient descent, as `torch.optim.SGD`:
//!
//! ```text
//! g = scale * gradient + weight_decay * value
//! velocity = momentum * velocity + g, value -= learning_rate * velocity     (with momentum)
//! value -= learning_rate * g                                                (without)
//! ```

use std::ops::Bound::{Excluded, Included};

use super::groups::GroupSettings;
use super::hyperparameter::Hyperparameter;
use super::optimizer::{Optimizer, OptimizerKind};
use crate::device::cpu::vectorised;
use crate::device::{UpdatePiece, UpdateRule};

pub(super) static KIND: OptimizerKind = OptimizerKind {
    name: "sgd",
    summary: "stochastic gradient descent",
    hyperparameters: &[Hyperparameter {
        name: "momentum",
        meaning: MOMENTUM_MEANING,
        default: 0.0,
        range: (Included(0.0), Excluded(1.0)),
    }],
    build: |values| Box::new(Sgd { momentum: values[0] }),
};

/// What the momentum is, for all optimisers that have one.
pub(super) const MOMENTUM_MEANING: &str = "share of the previous update that is added to the next";

/// Learning rate, weight decay, momentum.
const WORDS: usize = 3;

static PLAIN: UpdateRule = UpdateRule { kernel: "sgd", slots: 0, words: WORDS, operations: 4, cpu: update_plain };
static MOMENTUM: UpdateRule =
    UpdateRule { kernel: "sgd", slots: 1, words: WORDS, operations: 6, cpu: update_with_momentum };

struct Sgd {
    momentum: f64,
}

impl Optimizer for Sgd {
    fn slots(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["velocity"] }
    }

    fn rule(&self) -> &'static UpdateRule {
        if self.momentum == 0.0 { &PLAIN } else { &MOMENTUM }
    }

    fn words(&self, group: &GroupSettings, _step: u64, lowered_momentum: f64, words: &mut [f32]) {
        let momentum = (self.momentum - lowered_momentum).max(0.0);
        words.copy_from_slice(&[group.learning_rate as f32, group.weight_decay as f32, momentum as f32]);
    }
}

fn update_plain(UpdatePiece { values, gradients, scale, words, .. }: UpdatePiece) {
    plain(values, gradients, scale, words[0], words[1]);
}

fn update_with_momentum(UpdatePiece { values, gradients, slots: [velocity, _], scale, words }: UpdatePiece) {
    with_momentum(values, gradients, velocity, scale, words[0], words[1], words[2]);
}

vectorised! {
    fn plain(values: &mut [f32], gradients: &[f32], scale: f32, learning_rate: f32, weight_decay: f32) {
        for (value, gradient) in values.iter_mut().zip(gradients) {
            *value -= learning_rate * (scale * gradient + weight_decay * *value);
        }
    }

    fn with_momentum(
        values: &mut [f32],
        gradients: &[f32],
        velocity: &mut [f32],
        scale: f32,
        learning_rate: f32,
        weight_decay: f32,
        momentum: f32,
    ) {
        for ((value, gradient), velocity) in values.iter_mut().zip(gradients).zip(velocity) {
            *velocity = momentum * *velocity + (scale * gradient + weight_decay * *value);
            *value -= learning_rate * *velocity;
        }
    }
}
