//! One step of gradient descent over a flat group of parameters. Bound by memory: values and gradients read, values
//! written, and the same for velocities.

use rayon::prelude::*;

use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::SgdStep;

const BLOCK: usize = 64 * 1024;

pub(super) fn step(arguments: &SgdStep) {
    let SgdStep { learning_rate, momentum, weight_decay, .. } = *arguments;
    let mut views = Views::default();
    let values = views.write::<f32>(arguments.values);
    let gradients = views.read::<f32>(arguments.gradients);
    let blocks = values.par_chunks_mut(BLOCK).zip(gradients.par_chunks(BLOCK));
    match arguments.velocity.map(|tensor| views.write::<f32>(tensor)) {
        Some(velocity) => blocks.zip(velocity.par_chunks_mut(BLOCK)).for_each(|((values, gradients), velocity)| {
            update_with_momentum(values, gradients, velocity, learning_rate, momentum, weight_decay);
        }),
        None => blocks.for_each(|(values, gradients)| update(values, gradients, learning_rate, weight_decay)),
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
