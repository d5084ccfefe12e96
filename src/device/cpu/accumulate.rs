//! Adds the gradients of a batch to those of the batches before it. Bound by memory: it reads both and writes the sums.

use super::jobs;
use super::memory::Views;
use super::vectorised::vectorised;
use crate::tensor::Tensor;

/// Values that one thread adds at a time.
const BLOCK: usize = 64 * 1024;

pub(super) fn run(gradients: &Tensor, sums: &Tensor, words: &Tensor) {
    let mut views = Views::default();
    let words = views.read::<f32>(words);
    let (keep, add) = (words[0], words[1]);
    let gradients = views.read::<f32>(gradients);
    jobs::for_each_piece(views.write::<f32>(sums), BLOCK, |index, sums| {
        let gradients = &gradients[index * BLOCK..gradients.len().min((index + 1) * BLOCK)];
        match keep == 0.0 {
            true => begin(sums, gradients, add),
            false => go_on(sums, gradients, keep, add),
        }
    });
}

vectorised! {
    fn begin(sums: &mut [f32], gradients: &[f32], add: f32) {
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            *sum = add * gradient;
        }
    }

    fn go_on(sums: &mut [f32], gradients: &[f32], keep: f32, add: f32) {
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            *sum = keep * *sum + add * gradient;
        }
    }
}
