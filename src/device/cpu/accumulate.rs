//! Adds values to weighted sums of those before them. Bound by memory: it reads both and writes the sums.

use super::jobs;
use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::interface::Accumulate;
use crate::tensor::Tensor;

/// Values that one thread adds at a time.
const BLOCK: usize = 64 * 1024;

pub(super) fn run(arguments: &Accumulate) {
    let mut views = Views::default();
    let mut is_finite = |tensor: Option<&Tensor>| tensor.is_none_or(|tensor| views.read::<f32>(tensor)[0].is_finite());
    if !(is_finite(arguments.loss) && is_finite(arguments.norm)) {
        return;
    }
    let words = views.read::<f32>(arguments.words);
    let (keep, add) = (words[0], words[1]);
    let values = views.read::<f32>(arguments.values);
    jobs::for_each_piece(views.write::<f32>(arguments.sums), BLOCK, |index, sums| {
        let values = &values[index * BLOCK..values.len().min((index + 1) * BLOCK)];
        match keep == 0.0 {
            true => begin(sums, values, add),
            false => go_on(sums, values, keep, add),
        }
    });
}

vectorised! {
    fn begin(sums: &mut [f32], values: &[f32], add: f32) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = add * value;
        }
    }

    fn go_on(sums: &mut [f32], values: &[f32], keep: f32, add: f32) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = keep * *sum + add * value;
        }
    }
}
