//! Stochastic gradient descent with Nesterov momentum, as `torch.optim.SGD(nesterov=True)`:
//!
//! ```text
//! g = scale * gradient + weight_decay * value
//! velocity = momentum * velocity + g
//! value -= learning_rate * (g + momentum * velocity)
//! ```

use super::{GroupSettings, Hyperparameters, OF_ADAMW, Optimizer, OptimizerKind};
use crate::device::cpu::vectorised;
use crate::device::{UpdatePiece, UpdateRule};
use crate::error::{Error, Result};

pub(super) const KIND: OptimizerKind =
    OptimizerKind { name: "nesterov", summary: "SGD with Nesterov momentum, which --momentum sets", build };

static RULE: UpdateRule = UpdateRule { kernel: "nesterov", slots: 1, words: 3, operations: 8, cpu: update };

struct Nesterov {
    momentum: f64,
}

fn build(hyperparameters: &Hyperparameters) -> Result<Box<dyn Optimizer>> {
    hyperparameters.require_default(KIND.name, &OF_ADAMW)?;
    let Hyperparameters { momentum, .. } = *hyperparameters;
    if momentum == 0.0 {
        return Err(Error::usage("the optimizer nesterov needs a momentum above 0").hint("0.9 is usual"));
    }
    Ok(Box::new(Nesterov { momentum }))
}

impl Optimizer for Nesterov {
    fn slots(&self) -> &'static [&'static str] {
        &["velocity"]
    }

    fn rule(&self) -> &'static UpdateRule {
        &RULE
    }

    fn words(&self, group: &GroupSettings, _step: u64, words: &mut [f32]) {
        words.copy_from_slice(&[group.learning_rate as f32, group.weight_decay as f32, self.momentum as f32]);
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
