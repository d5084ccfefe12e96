//! Launches of `kernels/gradient_norm.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Blocks, and so sums, that the squares of a group's gradients are added in.
pub(super) const BLOCKS: usize = 256;

kernel_arguments! {
    struct GradientNormArguments {
        gradients: u64,
        sums: u64,
        norm: u64,
        count: u64,
    }
}

pub(super) fn run(cuda: &Cuda, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
    let work = |read: usize, written: usize| Work {
        operations: (2 * read / size_of::<f32>()) as u64,
        unit: ArithmeticUnit::Float32,
        bytes_read: read as u64,
        bytes_written: written as u64,
    };
    for (group, gradients) in gradients.iter().enumerate() {
        let sums = sums.part(group * BLOCKS, [BLOCKS].into());
        cuda.launch(
            "gradient_squares",
            [BLOCKS, 1, 1],
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
            count: (gradients.len() * BLOCKS) as u64,
        },
        work(sums.bytes(), norm.bytes()),
    )
}
