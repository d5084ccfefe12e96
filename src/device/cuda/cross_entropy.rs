//! Launches of `kernels/cross_entropy.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::{CrossEntropy, LossReduction};
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 512;

kernel_arguments! {
    struct CrossEntropyArguments {
        logits: u64,
        targets: u64,
        share: u64,
        class_weights: u64,
        result: u64,
        gradient: u64,
        rows: i32,
        classes: i32,
        scale: f32,
        label_smoothing: f32,
        divides_by_weights: i32,
        padding: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &CrossEntropy) -> Result<()> {
    let CrossEntropy { logits, targets, share, class_weights, label_smoothing, reduction, result, logits_gradient } =
        *arguments;
    let rows = logits.shape().rows();
    let (scale, divides_by_weights) = match (reduction, class_weights) {
        (LossReduction::Sum, _) => (1.0, false),
        (LossReduction::Mean, Some(_)) if share.is_none() => (1.0, true),
        (LossReduction::Mean, _) => (1.0 / rows as f32, false),
    };
    cuda.launch(
        if share.is_some() { "cross_entropy_mixed" } else { "cross_entropy" },
        [1, 1, 1],
        THREADS,
        0,
        &CrossEntropyArguments {
            logits: logits.address(),
            targets: targets.address(),
            share: share.map_or(0, Tensor::address),
            class_weights: class_weights.map_or(0, Tensor::address),
            result: result.address(),
            gradient: logits_gradient.map_or(0, Tensor::address),
            rows: rows as i32,
            classes: logits.shape().channels() as i32,
            scale,
            label_smoothing,
            divides_by_weights: i32::from(divides_by_weights),
            padding: 0,
        },
        Work {
            operations: 6 * logits.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (logits.bytes() + targets.bytes() + class_weights.map_or(0, Tensor::bytes)) as u64,
            bytes_written: (result.bytes() + logits_gradient.map_or(0, Tensor::bytes)) as u64,
        },
    )
}
