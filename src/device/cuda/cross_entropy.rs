//! Launches of `kernels/cross_entropy.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::CrossEntropy;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 512;

kernel_arguments! {
    struct CrossEntropyArguments {
        logits: u64,
        targets: u64,
        result: u64,
        gradient: u64,
        rows: i32,
        classes: i32,
        scale: f32,
        padding: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &CrossEntropy) -> Result<()> {
    let CrossEntropy { logits, targets, result, logits_gradient, scale } = *arguments;
    cuda.launch(
        "cross_entropy",
        [1, 1, 1],
        THREADS,
        0,
        &CrossEntropyArguments {
            logits: logits.address(),
            targets: targets.address(),
            result: result.address(),
            gradient: logits_gradient.map_or(0, Tensor::address),
            rows: logits.shape().rows() as i32,
            classes: logits.shape().channels() as i32,
            scale,
            padding: 0,
        },
        Work {
            operations: 6 * logits.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (logits.bytes() + targets.bytes()) as u64,
            bytes_written: (result.bytes() + logits_gradient.map_or(0, Tensor::bytes)) as u64,
        },
    )
}
