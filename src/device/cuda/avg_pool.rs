//! Launches of `kernels/avg_pool.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::{Cuda, of_type};
use crate::device::Gradient;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;

kernel_arguments! {
    struct AvgPoolForwardArguments {
        input: u64,
        output: u64,
        pixels: i32,
        channels: i32,
        outputs: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct AvgPoolBackwardArguments {
        output_gradient: u64,
        input_gradient: u64,
        pixels: i32,
        channels: i32,
        outputs: i32,
        accumulate: i32,
    }
}

pub(super) fn forward(cuda: &Cuda, input: &Tensor, output: &Tensor) -> Result<()> {
    cuda.launch(
        of_type(input.element_type(), "avg_pool_forward_fp32", "avg_pool_forward_bf16"),
        [output.len().div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &AvgPoolForwardArguments {
            input: input.address(),
            output: output.address(),
            pixels: (input.len() / output.len().max(1)) as i32,
            channels: output.shape().channels() as i32,
            outputs: output.len() as i32,
            padding: 0,
        },
        Work {
            operations: input.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: input.bytes() as u64,
            bytes_written: output.bytes() as u64,
        },
    )
}

pub(super) fn backward(cuda: &Cuda, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
    let Gradient { tensor, accumulate } = input_gradient;
    let before = if *accumulate { tensor.bytes() } else { 0 };
    cuda.launch(
        of_type(tensor.element_type(), "avg_pool_backward_fp32", "avg_pool_backward_bf16"),
        [output_gradient.len().div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &AvgPoolBackwardArguments {
            output_gradient: output_gradient.address(),
            input_gradient: tensor.address(),
            pixels: (tensor.len() / output_gradient.len().max(1)) as i32,
            channels: output_gradient.shape().channels() as i32,
            outputs: output_gradient.len() as i32,
            accumulate: i32::from(*accumulate),
        },
        Work {
            operations: tensor.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (output_gradient.bytes() + before) as u64,
            bytes_written: tensor.bytes() as u64,
        },
    )
}
