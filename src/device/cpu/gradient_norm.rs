//! The Euclidean norm of all gradients. Bound by memory: each gradient is read once.

use super::jobs;
use super::memory::Views;
use super::vectorised::vectorised;
use crate::tensor::Tensor;

/// Gradients per partial sum.
const BLOCK: usize = 64 * 1024;
const LANES: usize = 16;

/// The number of partial sums for gradients of that length.
pub(super) fn sums(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

pub(super) fn run(gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) {
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

vectorised! {
    /// Each lane adds every sixteenth square, so that the order of additions does not depend on the processor's vector
    /// length.
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
}
