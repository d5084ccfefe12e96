//! One step of gradient descent over a flat group of parameters. Bound by memory: values and gradients read, values
//! written, and the same for velocities.

use super::jobs::{self, Pieces};
use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::interface::{Clip, SgdStep};
use crate::tensor::Tensor;

const BLOCK: usize = 64 * 1024;
const LANES: usize = 16;

/// Sums of squares that gradients of that length come to.
pub(super) fn sums(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

pub(super) fn gradient_norm(gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) {
    let mut views = Views::default();
    let sums = views.write::<f32>(sums);
    let mut rest = &mut *sums;
    for gradients in gradients {
        let gradients = views.read::<f32>(gradients);
        let (here, others) = rest.split_at_mut(self::sums(gradients.len()));
        jobs::for_each_piece(here, 1, |block, sum| {
            let mut lanes = [0.0; LANES];
            add_squares(&gradients[block * BLOCK..gradients.len().min((block + 1) * BLOCK)], &mut lanes);
            sum[0] = lanes.iter().sum();
        });
        rest = others;
    }
    let sum: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    views.write::<f32>(norm)[0] = sum.sqrt() as f32;
}

pub(super) fn step(arguments: &SgdStep) {
    let SgdStep { learning_rate, momentum, weight_decay, .. } = *arguments;
    let mut views = Views::default();
    let first = |tensor: &Tensor, views: &mut Views| views.read::<f32>(tensor)[0];
    let loss = arguments.loss.map_or(0.0, |loss| first(loss, &mut views));
    let norm = arguments.clip.map_or(0.0, |clip| first(clip.norm, &mut views));
    if !(loss.is_finite() && norm.is_finite()) {
        return;
    }
    let scale = arguments.clip.map_or(1.0, |clip| Clip::factor(clip.max_norm, norm));
    let values = views.write::<f32>(arguments.values);
    let gradients = views.read::<f32>(arguments.gradients);
    let gradients = |index: usize| &gradients[index * BLOCK..gradients.len().min((index + 1) * BLOCK)];
    match arguments.velocity.map(|tensor| Pieces::new(views.write::<f32>(tensor), BLOCK)) {
        Some(velocity) => jobs::for_each_piece(values, BLOCK, |index, values| {
            // SAFETY: each job has an index of its own.
            let velocity = unsafe { velocity.piece(index) };
            update_with_momentum(values, gradients(index), velocity, scale, [learning_rate, momentum, weight_decay]);
        }),
        None => jobs::for_each_piece(values, BLOCK, |index, values| {
            update(values, gradients(index), scale, learning_rate, weight_decay);
        }),
    }
}

vectorised! {
    /// In lanes of a fixed number, so that the order of additions does not depend on the processor's vectors.
    fn add_squares(values: &[f32], lanes: &mut [f32; LANES]) {
        let (groups, rest) = values.as_chunks::<LANES>();
        for group in groups {
            for (lane, value) in lanes.iter_mut().zip(group) {
                *lane += value * value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += value * value;
        }
    }

    fn update(values: &mut [f32], gradients: &[f32], scale: f32, learning_rate: f32, weight_decay: f32) {
        for (value, gradient) in values.iter_mut().zip(gradients) {
            *value -= learning_rate * (scale * gradient + weight_decay * *value);
        }
    }

    fn update_with_momentum(
        values: &mut [f32],
        gradients: &[f32],
        velocity: &mut [f32],
        scale: f32,
        factors: [f32; 3],
    ) {
        let [learning_rate, momentum, weight_decay] = factors;
        for ((value, gradient), velocity) in values.iter_mut().zip(gradients).zip(velocity) {
            *velocity = momentum * *velocity + (scale * gradient + weight_decay * *value);
            *value -= learning_rate * *velocity;
        }
    }
}
