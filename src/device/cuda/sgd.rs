//! Launches of `kernels/sgd.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::SgdStep;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Values of a thread.
const GROUP: usize = 4;

kernel_arguments! {
    struct SgdArguments {
        values: u64,
        gradients: u64,
        velocity: u64,
        copy: u64,
        count: u64,
        loss: u64,
        norm: u64,
        learning_rate: f32,
        momentum: f32,
        weight_decay: f32,
        max_norm: f32,
        vectorised: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct GradientNormArguments {
        gradients: u64,
        sums: u64,
        norm: u64,
        count: u64,
    }
}

/// Blocks, and so sums, that the squares of a group's gradients are added in.
pub(super) const NORM_BLOCKS: usize = 256;

pub(super) fn gradient_norm(cuda: &Cuda, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
    let work = |read: usize, written: usize| Work {
        operations: (2 * read / size_of::<f32>()) as u64,
        unit: ArithmeticUnit::Float32,
        bytes_read: read as u64,
        bytes_written: written as u64,
    };
    for (group, gradients) in gradients.iter().enumerate() {
        let sums = sums.part(group * NORM_BLOCKS, [NORM_BLOCKS].into());
        cuda.launch(
            "gradient_squares",
            [NORM_BLOCKS, 1, 1],
            THREADS,
            0,
            &GradientNormArguments {
                gradients: gradients.address(),
                sums: sums.address(),
                norm: 0,
                count: gradients.len() as u64,
            },
            work(gradients.bytes(), sums.bytes()),
        )?;
    }
    cuda.launch(
        "gradient_norm",
        [1, 1, 1],
        THREADS,
        0,
        &GradientNormArguments {
            gradients: 0,
            sums: sums.address(),
            norm: norm.address(),
            count: (gradients.len() * NORM_BLOCKS) as u64,
        },
        work(sums.bytes(), norm.bytes()),
    )
}

pub(super) fn step(cuda: &Cuda, arguments: &SgdStep) -> Result<()> {
    let SgdStep { values, gradients, velocity, copy, learning_rate, momentum, weight_decay, loss, clip } = *arguments;
    let length = values.len();
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    if length == 0 {
        return Ok(());
    }
    let vectorised = [Some(values), Some(gradients), velocity, copy]
        .into_iter()
        .flatten()
        .all(|tensor| tensor.address().is_multiple_of((GROUP * tensor.element_type().size()) as u64));
    cuda.launch(
        "sgd",
        [length.div_ceil(GROUP * THREADS), 1, 1],
        THREADS,
        0,
        &SgdArguments {
            values: values.address(),
            gradients: gradients.address(),
            velocity: velocity.map_or(0, Tensor::address),
            copy: copy.map_or(0, Tensor::address),
            count: length as u64,
            loss: loss.map_or(0, Tensor::address),
            norm: clip.map_or(0, |clip| clip.norm.address()),
            learning_rate,
            momentum,
            weight_decay,
            max_norm: clip.map_or(0.0, |clip| clip.max_norm),
            vectorised: i32::from(vectorised),
            padding: 0,
        },
        Work {
            operations: (length * if velocity.is_some() { 6 } else { 4 }) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (values.bytes() + gradients.bytes() + bytes(velocity)) as u64,
            bytes_written: (values.bytes() + bytes(velocity) + bytes(copy)) as u64,
        },
    )
}
