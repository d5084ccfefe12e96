//! One step of gradient descent over a flat group of parameters. Bound by memory: values and gradients read, values
//! written, and the same for velocities.

use super::jobs::{self, Pieces};
use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::SgdStep;

const BLOCK: usize = 64 * 1024;

pub(super) fn step(arguments: &SgdStep) {
    let SgdStep { learning_rate, momentum, weight_decay, .. } = *arguments;
    let mut views = Views::default();
    let values = views.write::<f32>(arguments.values);
    let gradients = views.read::<f32>(arguments.gradients);
    let gradients = |index: usize| &gradients[index * BLOCK..gradients.len().min((index + 1) * BLOCK)];
    match arguments.velocity.map(|tensor| Pieces::new(views.write::<f32>(tensor), BLOCK)) {
        Some(velocity) => jobs::for_each_piece(values, BLOCK, |index, values| {
            // SAFETY: each job has an index of its own.
            let velocity = unsafe { velocity.piece(index) };
            update_with_momentum(values, gradients(index), velocity, learning_rate, momentum, weight_decay);
        }),
        None => jobs::for_each_piece(values, BLOCK, |index, values| {
            update(values, gradients(index), learning_rate, weight_decay);
        }),
    }
}

vectorised! {
    fn update(values: &mut [f32], gradients: &[f32], learning_rate: f32, weight_decay: f32) {
        for (value, gradient) in values.iter_mut().zip(gradients) {
            *value -= learning_rate * (gradient + weight_decay * *value);
        }
    }

    fn update_with_momentum(
        values: &mut [f32],
        gradients: &[f32],
        velocity: &mut [f32],
        learning_rate: f32,
        momentum: f32,
        weight_decay: f32,
    ) {
        for ((value, gradient), velocity) in values.iter_mut().zip(gradients).zip(velocity) {
            *velocity = momentum * *velocity + (gradient + weight_decay * *value);
            *value -= learning_rate * *velocity;
        }
    }
}
